//! The host side of pouch-vm.
//!
//! Three layers, of which none imports one above it:
//!
//! - [`streams`]: where the standard streams of a process lead on this host.
//! - [`sandbox`]: one VM and the agent in it, with [`network`] and [`cgroup`].
//! - [`container`]: the OCI view of a container: bundle, state, hooks, and the translation of its specification for
//!   the guest.
//!
//! [`host`] is the sandbox host process, which runs these layers for one VM as long as the VM exists. [`cli`], the
//! command line of the OCI runtime, consists of short-lived processes that send it requests; [`task`] is the shim for
//! containerd, which does the same.

/// The name of the container's processes on the host.
pub const PROCESS_NAME: &std::ffi::CStr = c"pouch-vm";

pub mod cgroup;
pub mod cli;
pub mod config;
pub mod container;
pub mod failure;
pub mod heap;
pub mod host;
pub mod install;
pub mod logging;
pub mod network;
pub mod sandbox;
pub mod streams;
pub mod task;
