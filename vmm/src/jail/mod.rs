//! The jail of the VMM: what protects the host from a guest that takes over its VMM.
//!
//! The host starts the VMM in new namespaces (`pouch_vmm_api::spawn`). Before it builds its VM, the VMM drops
//! its remaining privileges ([`confine`]). Each of its threads can only make the system calls that it needs
//! ([`seccomp`]), and threads that serve files can only access the share. `docs/security.md` lists what
//! remains.

pub mod allocator;
pub mod confine;
mod landlock;
mod requests;
pub mod seccomp;

pub use confine::{ConfineError, confine, replace_proc};
