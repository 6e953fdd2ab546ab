//! Requests in progress, so that a request can be abandoned when the process that waits for it is killed.
//!
//! If a server of the host (NFS, FUSE) does not respond, the thread that serves the request is blocked in the
//! kernel, and only killing the whole VMM would free it. The process in the guest must not wait for it: its
//! request is answered with `EINTR`, and the result of the thread is discarded later.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::bus::lock;
use crate::devices::virtio::queue::Chain;

/// Buffers to return to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The index of their queue.
    pub queue: usize,
    /// Their first descriptor.
    pub head: u16,
    /// Bytes that were written into them.
    pub written: u32,
}

/// A request in progress.
pub struct Flight {
    /// The index of its queue.
    pub queue: usize,
    /// Its buffers.
    pub chain: Chain,
    claimed: AtomicBool,
}

impl Flight {
    /// A request from the queue of this index.
    pub fn new(queue: usize, chain: Chain) -> Arc<Self> {
        Arc::new(Flight { queue, chain, claimed: AtomicBool::new(false) })
    }

    /// Takes the right to answer, which exists once. Without it guest memory must not be written, because the guest may
    /// have reused it.
    pub fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::SeqCst)
    }

    /// The request's buffers, answered with so many bytes.
    pub fn used(&self, written: u32) -> Used {
        Used { queue: self.queue, head: self.chain.head_index(), written }
    }
}

/// Interruptions of requests that are not in progress, at most. The queues have room for no more requests.
const MAX_EARLY: usize = 256;

#[derive(Default)]
struct Table {
    /// By the guest's number.
    flying: HashMap<u64, Arc<Flight>>,
    /// Requests that were interrupted before they began, or after their end.
    early: VecDeque<u64>,
}

/// All requests in progress.
#[derive(Default)]
pub struct Flights(Mutex<Table>);

impl Flights {
    /// Adds a request in progress; false if it was interrupted already. The process that makes it was being killed, and
    /// the queue of interruptions is served first.
    pub fn begin(&self, unique: u64, flight: &Arc<Flight>) -> bool {
        let mut table = lock(&self.0);
        if let Some(index) = table.early.iter().position(|early| *early == unique) {
            table.early.remove(index);
            return false;
        }
        table.flying.insert(unique, flight.clone());
        true
    }

    /// Drops interruptions, as a guest that mounts again uses its numbers again.
    pub fn clear_early(&self) {
        lock(&self.0).early.clear();
    }

    /// Removes a request.
    pub fn end(&self, unique: u64) {
        lock(&self.0).flying.remove(&unique);
    }

    /// How many there are.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        lock(&self.0).flying.len()
    }

    /// The request of this number, to be interrupted. If it is not in progress, it is not to begin.
    pub fn interrupted(&self, unique: u64) -> Option<Arc<Flight>> {
        let mut table = lock(&self.0);
        let found = table.flying.get(&unique).cloned();
        if found.is_none() {
            if table.early.len() == MAX_EARLY {
                table.early.pop_front();
            }
            table.early.push_back(unique);
        }
        found
    }
}
