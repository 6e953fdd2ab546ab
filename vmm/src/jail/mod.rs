//! What keeps a guest that takes over the VMM from the host.
//!
//! The process that starts a VMM puts it into namespaces of its own ([`spawn`]); before it builds
//! its VM the VMM gives up what it still has ([`confine`]); and each of its threads keeps only the
//! system calls that it needs ([`seccomp`]). `docs/security.md` lists what is left.

mod bpf;
pub mod confine;
pub mod seccomp;
pub mod spawn;

pub use confine::{ConfineError, confine, replace_proc};
pub use spawn::{JailedChild, Spawn, SpawnError};
