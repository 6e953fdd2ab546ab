//! The host side of pouch-vm.
//!
//! [`cli`] is the command line of the OCI runtime: short-lived processes. [`sandbox::host`] is the sandbox
//! host process, which `create` starts and which lives as long as the container. It owns the VM, communicates
//! with the agent, relays standard streams, and exits with the container's status. [`container`] has the OCI
//! view of a container: its bundle, its state, and the translation of its specification for the guest.

/// The name of the container's processes on the host.
pub const PROCESS_NAME: &std::ffi::CStr = c"pouch-vm";

pub mod cgroup;
pub mod cli;
pub mod config;
pub mod container;
pub mod install;
pub mod logging;
pub mod network;
pub mod sandbox;
pub mod stdio;
