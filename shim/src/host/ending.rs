//! The end of a process, which others wait for.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its status, as in a shell.
    pub status: u32,
    /// Whether the guest's out-of-memory killer ever killed a process of the container.
    pub out_of_memory: bool,
    /// When.
    pub time: SystemTime,
}

impl Exit {
    /// An end that happens now.
    pub fn now(status: u32) -> Self {
        Exit { status, out_of_memory: false, time: SystemTime::now() }
    }

    /// The end of a process that was killed, or that never ran.
    pub fn killed() -> Self {
        Self::now(128 + libc::SIGKILL as u32)
    }
}

/// The end of a process.
#[derive(Default)]
pub struct Ending(Mutex<Option<Exit>>, Condvar);

impl Ending {
    fn lock(&self) -> MutexGuard<'_, Option<Exit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it ended, if it has.
    pub fn get(&self) -> Option<Exit> {
        *self.lock()
    }

    /// Notes the end. Only the first counts.
    pub fn set(&self, exit: Exit) {
        self.lock().get_or_insert(exit);
        self.1.notify_all();
    }

    /// Waits for the end.
    pub fn wait(&self) -> Exit {
        let mut ended = self.lock();
        loop {
            match *ended {
                Some(exit) => return exit,
                None => ended = self.1.wait(ended).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn all_who_wait_learn_of_the_end() {
        let ending = Arc::new(Ending::default());
        assert_eq!(ending.get(), None);
        let wait = |_| {
            let ending = ending.clone();
            thread::spawn(move || ending.wait())
        };
        let waiting: Vec<_> = (0..3).map(wait).collect();
        let exit = Exit::now(7);
        ending.set(exit);
        ending.set(Exit::killed());
        for thread in waiting {
            assert_eq!(thread.join().unwrap(), exit);
        }
        assert_eq!(ending.wait(), exit);
    }
}
