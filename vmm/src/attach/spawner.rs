//! Starts the threads of disks that come while the VM runs.
//!
//! The event loop may not start threads, and a thread inherits the filter of the one that starts it. So a thread of its
//! own, which reads nothing that a guest wrote, starts them.

use std::io;
use std::sync::mpsc::{self, SyncSender};
use std::thread;

use crate::jail::seccomp::ThreadKind;

/// A thread to start, and whom to tell.
struct Order {
    name: String,
    work: Box<dyn FnOnce() + Send>,
    answer: SyncSender<io::Result<()>>,
}

/// The thread that starts others.
pub struct Spawner(SyncSender<Order>);

impl Spawner {
    /// Starts it; it ends when this is dropped.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start() -> io::Result<Self> {
        let (sender, orders) = mpsc::sync_channel::<Order>(1);
        thread::Builder::new().name("spawner".to_owned()).spawn(move || {
            ThreadKind::Spawner.enter();
            while let Ok(Order { name, work, answer }) = orders.recv() {
                let started = thread::Builder::new().name(name).spawn(move || {
                    ThreadKind::Block.enter();
                    work();
                });
                // Its asker waits.
                let _ = answer.send(started.map(drop));
            }
        })?;
        Ok(Spawner(sender))
    }

    /// Has a disk's thread started, which does `work`.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn(&self, name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let (answer, started) = mpsc::sync_channel(1);
        let gone = || io::Error::other("the thread that starts threads has ended");
        self.0.send(Order { name, work: Box::new(work), answer }).map_err(|_| gone())?;
        started.recv().map_err(|_| gone())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a process of its own: a filter that lacks a call ends the process.
    #[test]
    fn a_thread_is_started_from_behind_the_filters() {
        // SAFETY: the child has one thread, and uses no lock that another thread of its parent's may have held but
        // those of the allocator, which the C library takes care of.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let run = || {
                let spawner = Spawner::start().ok()?;
                let (sender, done) = mpsc::channel();
                for number in 0..3 {
                    let sender = sender.clone();
                    spawner.spawn(format!("blk-{number}"), move || sender.send(number).unwrap()).ok()?;
                }
                let mut seen: Vec<i32> = done.iter().take(3).collect();
                seen.sort_unstable();
                (seen == [0, 1, 2]).then_some(())
            };
            let status = i32::from(run().is_none());
            // SAFETY: ends the process.
            unsafe { libc::_exit(status) };
        }
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert_eq!(status, 0, "{status:#x}");
    }
}
