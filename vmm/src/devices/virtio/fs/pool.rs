//! The threads that serve the file system.
//!
//! A request can block for a long time, on a disk or on a server of the host that does not respond. So there
//! is always one thread more than requests in progress, up to a limit: a thread that takes a request while no
//! other is idle first starts another. A single process in the guest uses one thread, and a second one waits.
//!
//! If the process of a blocked request is killed, the guest goes on and the thread stays (`flights.rs`). Such threads do
//! not count, up to a limit of their own, so that they do not use up those for other requests.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::event::{Timespec, epoll};

use super::server::Server;
use crate::bus::lock;
use crate::devices::virtio::VirtQueue;
use crate::devices::virtio::queue::Chain;

/// Threads at most: one for each request that fits in the queue, and one for the queue of urgent requests. A request
/// takes two entries, for itself and for its answer.
pub const MAX_THREADS: usize = super::QUEUE_SIZES[1] as usize / 2 + 1;
/// Threads at most, beside these, whose requests were interrupted.
const MAX_ABANDONED: usize = 512;
/// Seconds after which an idle thread ends.
const IDLE_SECONDS: i64 = 10;
/// Bytes of a thread's stack.
const STACK: usize = 256 << 10;

/// The queues, the server, and the threads between them.
pub struct Pool {
    server: Server,
    queues: Mutex<Vec<VirtQueue>>,
    /// Wakes one of the waiting threads for each notification.
    notifications: OwnedFd,
    /// Threads that wait for a request.
    idle: AtomicUsize,
    threads: AtomicUsize,
    /// Threads whose requests were interrupted. The request may end before its interruption is counted.
    abandoned: AtomicIsize,
}

/// A request that was taken from a queue.
struct Taken {
    queue: usize,
    chain: Chain,
}

impl Pool {
    /// Serves `queues`; the calling thread becomes the first of the pool.
    ///
    /// # Errors
    /// The error of epoll(7).
    pub fn new(server: Server, queues: Vec<VirtQueue>) -> io::Result<Arc<Self>> {
        let notifications = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (index, queue) in (0..).zip(&queues) {
            // Edge-triggered, so that each notification wakes one thread, and its counter need not be read.
            let events = epoll::EventFlags::IN | epoll::EventFlags::ET;
            // SAFETY: the descriptor is open for as long as the queue is borrowed.
            let kick = unsafe { BorrowedFd::borrow_raw(queue.kick().as_raw_fd()) };
            epoll::add(&notifications, kick, epoll::EventData::new_u64(index), events)?;
        }
        let queues = Mutex::new(queues);
        let (idle, threads) = (AtomicUsize::new(1), AtomicUsize::new(1));
        let abandoned = AtomicIsize::new(0);
        Ok(Arc::new(Pool { server, queues, notifications, idle, threads, abandoned }))
    }

    /// The server.
    #[cfg(test)]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The number of threads.
    #[cfg(test)]
    pub fn threads(&self) -> usize {
        self.threads.load(Ordering::SeqCst)
    }

    /// The number of threads whose requests were interrupted.
    #[cfg(test)]
    pub fn abandoned(&self) -> isize {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// Serves until this thread is idle for long.
    pub fn run(self: Arc<Self>) {
        loop {
            let woken = self.wait();
            let others = self.idle.fetch_sub(1, Ordering::SeqCst) - 1;
            match woken {
                Ok(false) if others > 0 => break,
                Ok(_) => self.serve(),
                Err(error) => {
                    crate::log_line!("waiting for the file system's notifications failed: {error}");
                    break;
                }
            }
            self.idle.fetch_add(1, Ordering::SeqCst);
        }
        self.threads.fetch_sub(1, Ordering::SeqCst);
    }

    /// Waits for a notification; false if there was none for long.
    fn wait(&self) -> io::Result<bool> {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }];
        // The last waiting thread is always kept.
        let patience = Timespec { tv_sec: IDLE_SECONDS, tv_nsec: 0 };
        let patience = (self.idle.load(Ordering::SeqCst) > 1).then_some(&patience);
        match epoll::wait(&self.notifications, events.as_mut_slice(), patience) {
            Ok(count) => Ok(count > 0),
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Serves requests until the queues are empty.
    fn serve(self: &Arc<Self>) {
        while let Some(Taken { queue, chain }) = self.take() {
            if self.idle.load(Ordering::SeqCst) == 0 {
                self.start_another();
            }
            let memory = lock(&self.queues)[queue].memory().clone();
            let answers = self.server.serve(&memory, queue, chain);
            match answers {
                // Another thread has answered it.
                [None, _] => _ = self.abandoned.fetch_sub(1, Ordering::SeqCst),
                [Some(_), Some(_)] => _ = self.abandoned.fetch_add(1, Ordering::SeqCst),
                [Some(_), None] => {}
            }
            for used in answers.into_iter().flatten() {
                let mut queues = lock(&self.queues);
                queues[used.queue].push(used.head, used.written);
                queues[used.queue].signal();
            }
        }
    }

    /// The next request of any queue. If there are more, another thread is woken for them.
    fn take(&self) -> Option<Taken> {
        let mut queues = lock(&self.queues);
        for index in 0..queues.len() {
            if let Some(chain) = queues[index].pop_or_wait() {
                // Enable notifications for further requests, because this one may take long.
                // This thread may have been woken for a later queue.
                for queue in &mut queues[index..] {
                    if queue.enable_kicks() {
                        queue.kick_self();
                    }
                }
                return Some(Taken { queue: index, chain });
            }
        }
        None
    }

    /// Starts a thread that waits for requests, up to the limit.
    fn start_another(self: &Arc<Self>) {
        let abandoned = usize::try_from(self.abandoned.load(Ordering::SeqCst)).unwrap_or(0);
        if self.threads.fetch_add(1, Ordering::SeqCst) >= MAX_THREADS + abandoned.min(MAX_ABANDONED) {
            self.threads.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        self.idle.fetch_add(1, Ordering::SeqCst);
        let pool = self.clone();
        // It inherits the filter of system calls.
        let started =
            thread::Builder::new().name("fs".to_owned()).stack_size(STACK).spawn(move || pool.run());
        if let Err(error) = started {
            self.idle.fetch_sub(1, Ordering::SeqCst);
            self.threads.fetch_sub(1, Ordering::SeqCst);
            crate::log_line!("a thread of the shared file system could not be started: {error}");
        }
    }
}
