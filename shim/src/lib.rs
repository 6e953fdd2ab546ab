//! The host side of pouch-vm.
//!
//! [`cli`] is the OCI runtime's command line: short-lived processes. What lives as long as a
//! container is its sandbox host process ([`sandbox::host`]), which `create` leaves behind: it
//! owns the VM, speaks to the agent in it, relays standard streams, and exits with the container's
//! status. [`container`] is what OCI knows of a container: its bundle, its state, and the
//! translation of its specification into the guest.

/// What the processes that stand for a container are called among the host's.
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
