//! Requests in progress, so that a request can be abandoned when the process that waits for it is killed.
//!
//! If a server of the host (NFS, FUSE) does not respond, the thread that serves the request is blocked in the
//! kernel, and only killing the whole VMM would free it. The process in the guest must not wait for it: its
//! request is answered with `EINTR`, and the result of the thread is discarded later.

use std::collections::HashMap;
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

/// All requests in progress, by the guest's number.
#[derive(Default)]
pub struct Flights(Mutex<HashMap<u64, Arc<Flight>>>);

impl Flights {
    /// Adds a request in progress.
    pub fn begin(&self, unique: u64, flight: &Arc<Flight>) {
        lock(&self.0).insert(unique, flight.clone());
    }

    /// Removes a request.
    pub fn end(&self, unique: u64) {
        lock(&self.0).remove(&unique);
    }

    /// How many there are.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        lock(&self.0).len()
    }

    /// The request of this number, if it is in progress.
    pub fn get(&self, unique: u64) -> Option<Arc<Flight>> {
        lock(&self.0).get(&unique).cloned()
    }
}
