//! The shim for containerd: its Task service, for the runtime `io.containerd.pouch-vm.v2`.
//!
//! containerd starts the shim with the action `start`, which leaves a server behind and prints its address
//! ([`bootstrap`]). The server ([`service`]) handles the requests for one container ([`container`]) and its further
//! processes ([`exec`]), and publishes events ([`events`]). After a shim was killed, containerd runs the action
//! `delete`. The service is as thin as the command line: what it does to a container is in [`crate::host`].
//!
//! A pod comes as a container that is its sandbox ([`pod`]), or by the sandbox API ([`sandbox_service`]).

mod bootstrap;
mod container;
mod events;
mod exec;
mod joint;
mod loop_device;
mod metrics;
mod options;
mod pod;
mod rootfs;
mod sandbox_config;
mod sandbox_files;
mod sandbox_service;
mod sandbox_spec;
mod service;

use std::path::{Path, PathBuf};

pub use bootstrap::main;

use crate::container::lookup::root_of_containerd;
use crate::container::state::DEFAULT_ROOT;

/// What containerd calls the runtime.
const RUNTIME: &str = "io.containerd.pouch-vm.v2";

/// Where the states of containers of a namespace of containerd are.
fn state_root(namespace: &str) -> PathBuf {
    root_of_containerd(Path::new(DEFAULT_ROOT), namespace)
}
