//! All devices that a guest sees.

pub mod exit_port;
pub mod keyboard;
pub mod serial;
pub mod virtio;
