//! The protocol between the host side and the agent in the guest.
//!
//! The messages and the service are defined in `proto/agent.proto`. [`agent`] has the generated messages, and
//! [`agent_ttrpc`] the generated client and server.

mod errors;

pub use errors::{command_error, with_command_error};

/// The message types.
#[allow(warnings, missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// The client and the server trait of the service.
#[allow(warnings, missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]
pub mod agent_ttrpc {
    use super::agent;
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}

/// The blocking client of the service.
#[allow(warnings, missing_docs, clippy::all, clippy::undocumented_unsafe_blocks)]
pub mod agent_client {
    use super::agent;
    include!(concat!(env!("OUT_DIR"), "/sync/agent_ttrpc.rs"));
}

pub mod settings;

/// The vsock port on which the agent serves ttrpc.
pub const AGENT_PORT: u32 = 1024;

/// The vsock port on which the agent takes the connections of standard streams.
pub const STREAM_PORT: u32 = 1025;

/// Bytes of the token that a standard stream's connection starts with (little-endian).
pub const STREAM_TOKEN_LENGTH: usize = 8;

/// A resolver's query came by UDP.
pub const RESOLVER_UDP: u8 = 0;

/// A resolver's query came by TCP.
pub const RESOLVER_TCP: u8 = 1;

/// How many of a guest's queries may wait for an answer.
pub const RESOLVER_QUERIES_MAX: usize = 256;

/// Under this directory of the guest lie all storages that the host asks for.
pub const GUEST_RUN_DIR: &str = "/run/pouch";

/// The virtio-fs tag of the share tree, and its mount point in the guest.
pub const SHARE_TAG: &str = "share";

/// Where the agent mounts the share tree.
pub const SHARE_MOUNT_POINT: &str = "/run/pouch/share";
