//! What keeps a guest that takes over the VMM from the host.
//!
//! The host starts the VMM in namespaces of its own (`pouch_vmm_api::spawn`). Before it builds its VM the
//! VMM gives up what it still has ([`confine`]). Each of its threads keeps only the system calls that it
//! needs ([`seccomp`]), and what serves files keeps the share. `docs/security.md` lists what is left.

pub mod confine;
mod landlock;
mod requests;
pub mod seccomp;

pub use confine::{ConfineError, confine, replace_proc};
