//! The system calls that each kind of thread may make. Any other ends the process.
//!
//! [`calls`] lists the calls of each kind, [`limits`] which arguments they may have.

mod calls;
mod limits;
#[cfg(test)]
mod tests;

use std::sync::OnceLock;

use pouch_seccomp::{Only, Other, Rule};
use seccompiler::{BackendError, BpfProgram};

use self::calls::{BLOCK, COMMON, FS, MAIN, SPAWNER, VCPU};
use self::limits::{LIMITS, REFUSED};
use super::landlock;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// The event loop.
    Main,
    /// Runs guest code.
    Vcpu,
    /// Serves a disk.
    Block,
    /// Serves the shared file system.
    Fs,
    /// Starts threads that serve disks.
    Spawner,
}

impl ThreadKind {
    fn calls(self) -> impl Iterator<Item = &'static (libc::c_long, &'static str)> {
        let (own, started) = match self {
            ThreadKind::Main => (MAIN, &[][..]),
            ThreadKind::Vcpu => (VCPU, &[][..]),
            ThreadKind::Block => (BLOCK, &[][..]),
            ThreadKind::Fs => (FS, &[][..]),
            ThreadKind::Spawner => (SPAWNER, BLOCK),
        };
        COMMON.iter().chain(own).chain(started)
    }

    /// What limits the arguments of a call of this kind of thread.
    fn limit(self, call: libc::c_long) -> Option<Only> {
        LIMITS.iter().find(|(kinds, of, ..)| *of == call && kinds.contains(&self)).map(|limit| limit.2)
    }

    /// The filter of this kind of thread.
    fn filter(self) -> Result<BpfProgram, BackendError> {
        let refused = REFUSED.iter().filter(|(kinds, ..)| kinds.contains(&self));
        let refused = refused.map(|(_, call, error, _)| (*call, Rule::Fail(*error)));
        let allowed =
            self.calls().map(|(call, _)| (*call, self.limit(*call).map_or(Rule::Allow, Rule::Only)));
        pouch_seccomp::filter(refused.chain(allowed), Other::Kill)
    }

    /// Confines the calling thread to the system calls of its kind, and a thread that serves files also to the
    /// share, permanently, unless filtering is disabled ([`disable`]). If a thread cannot be confined, the
    /// process ends.
    pub fn enter(self) {
        if DISABLED.get().is_some() {
            return;
        }
        if self == ThreadKind::Fs
            && let Err(error) = landlock::restrict_to_share()
        {
            crate::log_line!("a thread could not be restricted to the share: {error}");
            std::process::abort();
        }
        let applied = self
            .filter()
            .map_err(seccompiler::Error::from)
            .and_then(|filter| seccompiler::apply_filter(&filter));
        if let Err(error) = applied {
            crate::log_line!("a thread could not be confined: {error}");
            std::process::abort();
        }
    }
}

static DISABLED: OnceLock<()> = OnceLock::new();

/// Turns the filters off for the whole process, to debug it.
pub fn disable() {
    let _ = DISABLED.set(());
}
