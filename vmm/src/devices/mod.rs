//! The devices that a guest sees. There are no others.

pub mod exit_port;
pub mod keyboard;
pub mod serial;
pub mod virtio;
