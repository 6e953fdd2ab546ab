//! The memory balloon (section 5.5): gives memory that the guest does not use back to the host.
//!
//! With free page reporting the guest's kernel tells which pages it has no use for, all by
//! itself; inflating is for a host that wants memory back now.

use std::io;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::interrupt::{CONFIG_CHANGE, Interrupt};
use super::queue::Chain;
use super::queue_events::LoopDevice;
use super::{VirtQueue, VirtioDevice, id, read_config_bytes};
use crate::memory::{self, Memory};

/// The guest may take pages back when it runs out (section 5.5.3).
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
/// The guest reports pages that it has no use for (section 5.5.3).
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;
/// Page numbers count pages of 4 KiB, whatever the guest's page size.
const VIRTIO_BALLOON_PFN_SHIFT: u32 = 12;

/// The queues: inflate, deflate, and free page reporting. (The statistics queue, which would
/// stand between, is not offered.)
const QUEUE_SIZES: [u16; 3] = [128, 128, 128];
const INFLATE: usize = 0;
const REPORTING: usize = 2;

/// Page numbers in one request that are looked at: what Linux sends is 256.
const MAX_PFNS: usize = 4096;
/// Ranges in one report: what Linux sends is 32 (`PAGE_REPORTING_CAPACITY`).
const MAX_RANGES: usize = 128;
const PAGE: u64 = 1 << VIRTIO_BALLOON_PFN_SHIFT;

/// `struct virtio_balloon_config`: pages wanted, pages given.
#[derive(Clone, Copy, Default)]
struct Config {
    num_pages: u32,
    actual: u32,
}

/// The balloon.
pub struct Balloon {
    config: Config,
    interrupt: Arc<Interrupt>,
    queues: Vec<VirtQueue>,
    /// Bytes given back to the host since the start.
    discarded: u64,
}

impl Balloon {
    /// An empty balloon that tells changes of its size through `interrupt`.
    pub fn new(interrupt: Arc<Interrupt>) -> Self {
        Balloon { config: Config::default(), interrupt, queues: Vec::new(), discarded: 0 }
    }

    /// Asks the guest to give up `mib` MiB.
    pub fn set_target(&mut self, mib: u32) {
        self.config.num_pages = mib.saturating_mul(256);
        self.interrupt.raise(CONFIG_CHANGE);
    }

    /// MiB that the guest has given up on request.
    pub fn actual_mib(&self) -> u32 {
        self.config.actual / 256
    }

    /// Bytes given back to the host since the start, on request and by reporting.
    pub fn discarded(&self) -> u64 {
        self.discarded
    }
}

impl VirtioDevice for Balloon {
    fn id(&self) -> u32 {
        id::BALLOON
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM | 1 << VIRTIO_BALLOON_F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.config.num_pages.to_le_bytes());
        bytes[4..].copy_from_slice(&self.config.actual.to_le_bytes());
        read_config_bytes(&bytes, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (4, Ok(bytes)) = (offset, <[u8; 4]>::try_from(data)) {
            self.config.actual = u32::from_le_bytes(bytes);
        }
    }

    fn activate(&mut self, queues: Vec<VirtQueue>, _features: u64) -> io::Result<()> {
        self.queues = queues;
        Ok(())
    }
}

impl LoopDevice for Balloon {
    fn process_queue(&mut self, index: usize) {
        let Some(queue) = self.queues.get_mut(index) else { return };
        let mut discarded = 0;
        queue.for_each(|memory, chain| {
            discarded += match index {
                INFLATE => inflate(memory, chain),
                REPORTING => report(memory, chain),
                // A deflated page comes back by itself when the guest touches it.
                _ => 0,
            };
            0
        });
        self.discarded = self.discarded.saturating_add(discarded);
    }
}

/// Gives the pages back whose numbers the chain holds.
fn inflate(memory: &Memory, chain: Chain) -> u64 {
    let (mut discarded, mut left) = (0, MAX_PFNS);
    for buffer in chain.readable() {
        let count = (buffer.len() as usize / 4).min(left);
        if count == 0 {
            break;
        }
        left -= count;
        let mut bytes = vec![0u8; count * 4];
        if memory.read_slice(&mut bytes, buffer.addr()).is_err() {
            break;
        }
        let pfns: Vec<u32> =
            bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        for run in runs(&pfns) {
            discarded += discard(memory, GuestAddress(u64::from(run.0) * PAGE), u64::from(run.1) * PAGE);
        }
    }
    discarded
}

/// Adjoining page numbers as (first, count): one system call gives back a whole run.
fn runs(pfns: &[u32]) -> Vec<(u32, u32)> {
    let mut sorted = pfns.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for pfn in sorted {
        match runs.last_mut() {
            Some((first, count)) if first.checked_add(*count) == Some(pfn) => *count += 1,
            _ => runs.push((pfn, 1)),
        }
    }
    runs
}

/// Gives the ranges back that the chain's buffers are.
fn report(memory: &Memory, chain: Chain) -> u64 {
    chain.writable().take(MAX_RANGES).map(|buffer| discard(memory, buffer.addr(), buffer.len().into())).sum()
}

fn discard(memory: &Memory, start: GuestAddress, length: u64) -> u64 {
    memory::discard(memory, start, length).unwrap_or_else(|error| {
        crate::log_line!("guest memory could not be given back: {error}");
        0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjoining_pages_are_one_run() {
        assert_eq!(runs(&[5, 3, 4, 9, 9, u32::MAX]), [(3, 3), (9, 1), (u32::MAX, 1)]);
        assert_eq!(runs(&[]), []);
    }
}
