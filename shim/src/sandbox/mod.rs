//! A VM and the process on the host that owns it.

pub mod agent;
pub mod child;
pub mod client;
pub mod clock;
pub mod creation;
pub mod disk;
pub mod exec;
mod exec_queue;
mod guest_network;
pub mod host;
mod idmap;
pub mod launch;
pub mod mount_points;
pub mod protocol;
pub mod server;
pub mod settings;
pub mod share;
pub mod stats;
pub mod view;
pub mod vm;
pub mod vm_files;
pub mod vmm_log;
