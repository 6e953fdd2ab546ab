//! The memory balloon (section 5.5), of which only free page reporting is used: the guest kernel reports
//! unused pages, and they are returned to the host.
//!
//! Nothing asks the guest to inflate the balloon. The queues for inflating exist because drivers set them up
//! in any case. Their buffers are returned without effect.

use std::io;

use vm_memory::GuestAddress;

use super::queue::Chain;
use super::queue_events::LoopDevice;
use super::{VirtQueue, VirtioDevice, id};
use crate::memory::{self, Memory};

/// The guest reports unused pages (section 5.5.3).
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

/// The queues: inflate, deflate, and free page reporting. (The statistics queue, which would
/// stand between, is not offered.)
const QUEUE_SIZES: [u16; 3] = [128, 128, 128];
const REPORTING: usize = 2;

/// Bytes of one range that are released at once: the largest range that Linux reports (`MAX_PAGE_ORDER`).
const MAX_RANGE: u64 = 4 << 20;
/// Ranges that are released in one turn of the event loop: a full report of Linux
/// (`PAGE_REPORTING_CAPACITY`). A range costs the host a system call and up to a millisecond.
const RANGES_IN_A_TURN: usize = 32;

/// The balloon.
#[derive(Default)]
pub struct Balloon {
    queues: Vec<VirtQueue>,
    /// Bytes given back to the host since the start.
    discarded: u64,
}

impl Balloon {
    /// Bytes given back to the host since the start.
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
        1 << VIRTIO_BALLOON_F_REPORTING
    }

    /// Pages wanted and pages given (`struct virtio_balloon_config`): none.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, queues: Vec<VirtQueue>, _features: u64) -> io::Result<()> {
        self.queues = queues;
        Ok(())
    }
}

impl LoopDevice for Balloon {
    fn process_queue(&mut self, index: usize) {
        let Some(queue) = self.queues.get_mut(index) else { return };
        let mut budget = if index == REPORTING { RANGES_IN_A_TURN } else { 0 };
        let mut discarded = 0;
        queue.for_each(|memory, chain| {
            discarded += report(memory, chain, &mut budget);
            0
        });
        self.discarded = self.discarded.saturating_add(discarded);
    }
}

/// Releases the ranges of the chain's buffers. Releasing is optional: ranges beyond the budget are kept, as if they had
/// not been reported.
fn report(memory: &Memory, chain: Chain, budget: &mut usize) -> u64 {
    let mut discarded = 0;
    for buffer in chain.writable().take(*budget) {
        *budget -= 1;
        discarded += discard(memory, buffer.addr(), u64::from(buffer.len()).min(MAX_RANGE));
    }
    discarded
}

fn discard(memory: &Memory, start: GuestAddress, length: u64) -> u64 {
    memory::discard(memory, start, length).unwrap_or_else(|error| {
        crate::log_line!("guest memory could not be released: {error}");
        0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::hostile::Guest;
    use crate::memory::tests::create;
    use std::sync::Arc;
    use virtio_queue::desc::RawDescriptor;
    use virtio_queue::desc::split::Descriptor;
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::Bytes;
    use vmm_sys_util::eventfd::EventFd;

    const MIB: u64 = 1 << 20;
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;

    /// A balloon whose guest reports the ranges, in chains of `in_chain`.
    fn reporting(memory: &Memory, ranges: &[(u64, u32)], in_chain: usize) -> Balloon {
        let mock = MockSplitQueue::new(memory, 128);
        let descriptors = (1..).zip(ranges).map(|(next, &(start, length))| {
            let last = usize::from(next) % in_chain == 0 || usize::from(next) == ranges.len();
            RawDescriptor::from(Descriptor::new(start, length, if last { WRITE } else { WRITE | NEXT }, next))
        });
        mock.add_desc_chains(&descriptors.collect::<Vec<_>>(), 0).unwrap();
        let queue = |queue| {
            let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            VirtQueue::new(queue, Arc::new(memory.clone()), kick, Guest::interrupt())
        };
        let mut balloon = Balloon::default();
        balloon.activate((0..3).map(|_| queue(mock.create_queue().unwrap())).collect(), 0).unwrap();
        balloon
    }

    #[test]
    fn what_the_guest_reports_goes_back_and_what_it_inflates_stays() {
        let memory = create(64);
        memory.write_obj(7u8, GuestAddress(8 * MIB)).unwrap();
        let mut balloon = reporting(&memory, &[(8 * MIB, MIB as u32)], 1);
        balloon.process_queue(0);
        assert_eq!((balloon.discarded(), memory.read_obj::<u8>(GuestAddress(8 * MIB)).unwrap()), (0, 7));
        balloon.process_queue(REPORTING);
        assert_eq!((balloon.discarded(), memory.read_obj::<u8>(GuestAddress(8 * MIB)).unwrap()), (MIB, 0));
    }

    #[test]
    fn one_turn_is_bounded_whatever_the_guest_reports() {
        let memory = create(64);
        // Every second page in turn, so that nothing can be put together.
        let pages: Vec<_> = (0..120).map(|page| (16 * MIB + page * 2 * 4096, 4096)).collect();
        for in_chain in [1, 60] {
            let mut balloon = reporting(&memory, &pages, in_chain);
            balloon.process_queue(REPORTING);
            assert_eq!(balloon.discarded(), RANGES_IN_A_TURN as u64 * 4096);
        }
        // One range of nearly 4 GiB.
        let mut balloon = reporting(&memory, &[(0x10_0000, u32::MAX)], 1);
        balloon.process_queue(REPORTING);
        assert_eq!(balloon.discarded(), MAX_RANGE);
    }
}
