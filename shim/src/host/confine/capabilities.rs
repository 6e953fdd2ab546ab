//! The capabilities of a sandbox host process, which are those of its threads.

use std::thread::{self, Scope, ScopedJoinHandle};

use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};

use super::ConfineError;
use crate::failure::Failure;

/// What running a container needs: interfaces and redirections in its network namespace. The process can be in no other
/// namespace, because to enter one takes CAP_SYS_ADMIN.
const NETWORK: Capability = Capability::CAP_NET_ADMIN;

/// Drops the capabilities of the calling thread, and so of the threads that it will start.
///
/// # Errors
/// The kernel's error.
pub fn drop_all_but_network() -> Result<(), CapsError> {
    let kept: CapsHashSet = caps::read(None, CapSet::Permitted)?
        .into_iter()
        .filter(|capability| *capability == NETWORK)
        .collect();
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)
}

/// Does `work` in a thread without capabilities. The threads that it starts have none either, and may outlive it.
///
/// # Errors
/// That of the work, or that there is no such thread.
pub fn without<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> Result<T, Failure> + Send + 'scope,
) -> Result<Working<'scope, T>, Failure> {
    let confined = move || {
        drop_all_but_network().map_err(|error| Failure::of(ConfineError::from(error)))?;
        work()
    };
    let thread = thread::Builder::new().name("create".to_owned()).spawn_scoped(scope, confined);
    thread.map(Working).map_err(|error| Failure::new(format!("a thread could not be started: {error}")))
}

/// Work that is being done.
pub struct Working<'scope, T>(ScopedJoinHandle<'scope, Result<T, Failure>>);

impl<T> Working<'_, T> {
    /// Waits for the result.
    ///
    /// # Errors
    /// That of the work.
    pub fn done(self) -> Result<T, Failure> {
        self.0.join().unwrap_or_else(|_| Err(Failure::new("a thread panicked that created the container")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effective() -> CapsHashSet {
        caps::read(None, CapSet::Effective).unwrap()
    }

    #[test]
    fn threads_of_the_work_have_no_other_capabilities() {
        let before = effective();
        let read = || Ok((effective(), thread::spawn(effective).join().unwrap()));
        let (own, childs) = thread::scope(|scope| without(scope, read).unwrap().done()).unwrap();
        assert!(own.iter().chain(&childs).all(|capability| *capability == NETWORK), "{own:?} {childs:?}");
        assert_eq!(effective(), before, "the thread that waited keeps its own");
    }
}
