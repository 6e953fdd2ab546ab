//! The thread of a disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::request::Disk;
use crate::devices::virtio::VirtQueue;
use crate::devices::virtio::worker::wait_for_kick;

/// How long a driver that takes its queue away waits for requests of which the host's disk does not answer.
const RESET_TIME: Duration = Duration::from_secs(1);

/// A queue to serve until it is taken away.
struct Job {
    queue: VirtQueue,
    stop: Arc<AtomicBool>,
    done: SyncSender<()>,
}

/// What the thread of a disk does.
pub struct Worker {
    disk: Disk,
    jobs: Receiver<Job>,
}

impl Worker {
    /// The worker of a disk, and the other end of it.
    pub fn new(disk: Disk) -> (Self, Handle) {
        // A queue is handed over when the one before it was taken away.
        let (sender, jobs) = mpsc::sync_channel(1);
        (Worker { disk, jobs }, Handle { jobs: sender, serving: None })
    }

    /// Serves the queues that the driver sets up, one after the other, until the handle is dropped.
    pub fn run(self) {
        while let Ok(Job { queue, stop, done }) = self.jobs.recv() {
            serve(&self.disk, queue, &stop);
            // Nobody waits if the disk was taken away meanwhile.
            let _ = done.send(());
        }
    }
}

/// Serves the queue until `stop` is set, which comes with a notification.
fn serve(disk: &Disk, mut queue: VirtQueue, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        queue.for_each(|memory, chain| disk.serve(memory, chain));
        if let Err(error) = wait_for_kick(&[&queue]) {
            crate::log_line!("a disk's notifications cannot be waited for: {error}");
            return;
        }
    }
}

/// The device's end of a worker. The worker ends when it is dropped, after the requests in progress.
pub struct Handle {
    jobs: SyncSender<Job>,
    serving: Option<Serving>,
}

/// A queue that is being served.
struct Serving {
    stop: Arc<AtomicBool>,
    kick: EventFd,
    done: Receiver<()>,
}

impl Serving {
    /// Has the worker leave the queue.
    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // A full counter wakes it as well.
        let _ = self.kick.write(1);
    }
}

impl Handle {
    /// Gives the worker a queue.
    ///
    /// # Errors
    /// It has one already, or has ended.
    pub fn start(&mut self, queue: VirtQueue) -> io::Result<()> {
        if self.serving.is_some() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let kick = queue.kick().try_clone()?;
        let (stop, (done, ended)) = (Arc::<AtomicBool>::default(), mpsc::sync_channel(1));
        let job = Job { queue, stop: stop.clone(), done };
        self.jobs.try_send(job).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.serving = Some(Serving { stop, kick, done: ended });
        Ok(())
    }

    /// Takes the queue away; false if a request does not end. When it is gone, guest memory is not used any more.
    pub fn take_back(&mut self) -> bool {
        let Some(serving) = &self.serving else { return true };
        serving.stop();
        if serving.done.recv_timeout(RESET_TIME) == Err(RecvTimeoutError::Timeout) {
            return false;
        }
        self.serving = None;
        true
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.stop();
        }
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
