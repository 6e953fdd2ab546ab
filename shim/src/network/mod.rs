//! The container's network: gives the guest what the engine configured in the network namespace.
//!
//! [`namespace`] puts the sandbox host process into the namespace, unless [`occupants`] finds other processes
//! in it. When the container starts, [`inspect`] reads the configuration. Each Ethernet interface gets a
//! [`tap`] device, for which [`devices`] has the descriptor, and [`redirect`] passes frames between the two. The VMM creates a virtio interface for the
//! tap device, and the agent gives it the name, addresses and routes of the engine's interface ([`wiring`]).
//! [`resolver`] forwards DNS queries of the guest to the engine's resolver, and [`watch`] follows later
//! changes of the engine. [`loopback`] forwards connections to the loopback addresses of a pod.

pub mod devices;
pub mod inspect;
pub mod loopback;
pub mod namespace;
pub mod netlink;
pub mod occupants;
pub mod redirect;
pub mod resolver;
pub mod tap;
pub mod watch;
pub mod wiring;

use std::error::Error;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;

use pouch_protocol::agent::SetNetworkRequest;
use pouch_vmm_api::config::{MAX_NETWORK_SLOTS, NetworkConfig};

use netlink::NetlinkError;

/// A VM, or the agent in it, refused a request.
pub type GuestError = Box<dyn Error + Send + Sync>;

/// The VM that gets the network, and the agent in it.
pub trait Guest {
    /// Gives the VM an interface over a tap device; returns the number of its virtio device. With `vhost`, the host's
    /// kernel moves the frames.
    ///
    /// # Errors
    /// The VMM's error.
    fn plug_network(
        &self,
        tap: &File,
        vhost: Option<&File>,
        config: NetworkConfig,
    ) -> Result<u32, GuestError>;

    /// Has the agent configure the network.
    ///
    /// # Errors
    /// The agent's error.
    fn set_network(&self, request: SetNetworkRequest) -> Result<(), GuestError>;

    /// Has the agent listen for queries on this address. Queries and answers are sent on the returned stream
    /// (agent.proto, ForwardResolverRequest).
    ///
    /// # Errors
    /// The error of the agent or the VMM.
    fn forward_resolver(&self, address: Ipv4Addr) -> Result<UnixStream, GuestError>;

    /// Has the agent connect to a TCP port of the guest's loopback addresses; returns the connection.
    ///
    /// # Errors
    /// The error of the agent or the VMM; the agent's, if nobody listens.
    fn connect_port(&self, port: u16) -> Result<UnixStream, GuestError>;
}

/// The engine's network could not be set up in the guest.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The kernel refused a request.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A part of it is not supported in a VM.
    #[error("the network namespace has {what}, {problem}")]
    Unsupported {
        /// The unsupported part.
        what: String,
        /// Why it is not supported.
        problem: &'static str,
    },
    /// It belongs to another container.
    #[error(
        "linux.namespaces network: the namespace belongs to another container with a VM and cannot be shared; \
         connect both containers to one network instead"
    )]
    Taken,
    /// There are too many interfaces.
    #[error(
        "no slot is left for the interface {0}: a VM can have {MAX_NETWORK_SLOTS} interfaces in its life, \
         including removed ones"
    )]
    TooMany(String),
    /// No tap device.
    #[error("a tap device for {interface} could not be created with /dev/net/tun")]
    Tap {
        /// The engine's interface.
        interface: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// The VMM refuses the interface.
    #[error("the VM refused the interface for {interface}")]
    Plug {
        /// The engine's interface.
        interface: String,
        /// The VMM's error.
        source: GuestError,
    },
    /// The agent refuses.
    #[error("the network could not be set up in the guest")]
    Guest(#[source] GuestError),
    /// The engine's resolver does not reach the guest.
    #[error("the engine's DNS resolver could not be connected to the guest")]
    Resolver(#[from] resolver::ResolverError),
    /// Connections to loopback addresses do not reach the guest.
    #[error("connections to localhost in the pod's network namespace could not be forwarded to the guest")]
    Loopback(#[from] loopback::LoopbackError),
}
