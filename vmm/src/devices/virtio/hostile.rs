//! Queues of a hostile guest, for device tests: descriptors with arbitrary addresses, loops, overlaps and
//! wrong lengths, and rings with entries that were never offered.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::{Interrupt, VirtQueue, VirtioDevice};
use crate::memory::{self, Memory};

const MEMORY_MIB: u32 = 4;
const MEMORY_END: u64 = (MEMORY_MIB as u64) << 20;
/// Entries of each queue.
const SIZE: u16 = 16;
/// Where the rings of the first queue lie, and what lies between those of two queues.
const RINGS: u64 = 0x1_0000;
const RING_STRIDE: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where the first queue's count of what was made available lies (section 2.7.6).
pub const FIRST_AVAILABLE_INDEX: u64 = RINGS + AVAILABLE + 2;
/// Where sensible descriptors point.
const DATA: u64 = 0x10_0000;

/// What a driver writes to start a device with one queue of [`Guest`] (section 3.1.1), and in the last step to reset
/// it: (register, value).
pub const START: [(u64, u32); 13] = [
    (0x70, 1),
    (0x70, 3),
    (0x24, 1),
    (0x20, 1),
    (0x70, 11),
    (0x38, SIZE as u32),
    (0x80, RINGS as u32),
    (0x90, (RINGS + AVAILABLE) as u32),
    (0xa0, (RINGS + USED) as u32),
    (0x44, 1),
    (0x70, 15),
    (0x50, 0),
    (0x70, 0),
];

/// One descriptor (section 2.7.5).
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

/// What the guest writes before it notifies the device once.
#[derive(Clone, Debug)]
pub struct Round {
    queue: usize,
    descriptors: Vec<Descriptor>,
    heads: Vec<u16>,
    /// How far the available index goes on; an honest guest's goes on by the number of heads.
    advance: u16,
    /// What the data area holds, again and again.
    data: Vec<u8>,
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..8_u64).prop_map(|page| DATA + page * 0x1000),
        2 => DATA..DATA + 0x8000,
        1 => RINGS..RINGS + RING_STRIDE,
        1 => MEMORY_END - 64..MEMORY_END + 64,
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0..64_u32,
        4 => prop::sample::select(vec![1, 12, 16, 40, 44, 80, 512, 4096, 0x1_0000]),
        1 => any::<u32>(),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    // The flags are those of chained, writable and indirect buffers.
    let flags = prop_oneof![12 => 0..4_u16, 1 => 0..8_u16];
    (address(), length(), flags, next).prop_map(|(address, length, flags, next)| Descriptor {
        address,
        length,
        flags,
        next,
    })
}

/// Some rounds over the queues of a device, whose data are made by `data`.
pub fn rounds(
    queues: usize,
    data: impl Strategy<Value = Vec<u8>> + Clone,
) -> impl Strategy<Value = Vec<Round>> {
    let head = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    let advance = prop_oneof![8 => 0..=SIZE, 1 => any::<u16>()];
    let round =
        (0..queues, vec(descriptor(), usize::from(SIZE)), vec(head, usize::from(SIZE)), advance, data)
            .prop_map(|(queue, descriptors, heads, advance, data)| Round {
                queue,
                descriptors,
                heads,
                advance,
                data,
            });
    vec(round, 1..6)
}

/// Bytes without any meaning.
pub fn noise() -> impl Strategy<Value = Vec<u8>> + Clone {
    vec(prop_oneof![Just(0u8), any::<u8>()], 64..512)
}

thread_local! {
    // Guest memory stays mapped until its process ends, so that the thousands of guests of a test
    // must share theirs.
    static MEMORY: Arc<Memory> = Arc::new(memory::tests::create(MEMORY_MIB));
}

/// The memory of this thread's guests, all zeros.
fn fresh_memory() -> Arc<Memory> {
    let memory = MEMORY.with(Arc::clone);
    memory::discard(&memory, GuestAddress(0), MEMORY_END).unwrap();
    memory
}

/// The memory and the queues of a guest.
pub struct Guest {
    memory: Arc<Memory>,
    next_available: Vec<u16>,
}

impl Guest {
    /// A guest with `queues` queues.
    pub fn new(queues: usize) -> Self {
        Guest { memory: fresh_memory(), next_available: vec![0; queues] }
    }

    /// An interrupt that nobody takes.
    pub fn interrupt() -> Arc<Interrupt> {
        Arc::new(Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()))
    }

    /// The queues as the device gets them.
    pub fn queues(&self) -> Vec<VirtQueue> {
        let ring = |index: usize| RINGS + index as u64 * RING_STRIDE;
        let set_up = |index| {
            let mut queue = Queue::new(SIZE).unwrap();
            queue.set_size(SIZE);
            queue.set_desc_table_address(Some(ring(index) as u32), Some(0));
            queue.set_avail_ring_address(Some((ring(index) + AVAILABLE) as u32), Some(0));
            queue.set_used_ring_address(Some((ring(index) + USED) as u32), Some(0));
            queue.set_ready(true);
            assert!(queue.is_valid(self.memory.as_ref()));
            let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
            VirtQueue::new(queue, self.memory.clone(), kick, Guest::interrupt())
        };
        (0..self.next_available.len()).map(set_up).collect()
    }

    /// Writes what the round says, and returns the queue that it is about.
    pub fn play(&mut self, round: &Round) -> usize {
        let ring = GuestAddress(RINGS + round.queue as u64 * RING_STRIDE);
        let write = |offset: u64, bytes: &[u8]| {
            self.memory.write_slice(bytes, GuestAddress(ring.0 + offset)).unwrap();
        };
        for (index, descriptor) in (0..).zip(&round.descriptors) {
            write(index * 16, &descriptor.address.to_le_bytes());
            write(index * 16 + 8, &descriptor.length.to_le_bytes());
            write(index * 16 + 12, &descriptor.flags.to_le_bytes());
            write(index * 16 + 14, &descriptor.next.to_le_bytes());
        }
        for (index, head) in (0..).zip(&round.heads) {
            write(AVAILABLE + 4 + index * 2, &head.to_le_bytes());
        }
        let next = &mut self.next_available[round.queue];
        *next = next.wrapping_add(round.advance);
        write(AVAILABLE + 2, &next.to_le_bytes());
        let area: Vec<u8> = round.data.iter().copied().cycle().take(0x8000).collect();
        self.memory.write_slice(&area, GuestAddress(DATA)).unwrap();
        round.queue
    }
}

/// Activates `device` for the guest and plays the rounds to it: `notify` is what the event loop
/// does when the guest notifies a queue. It must come back, and without a panic.
pub fn play<D: VirtioDevice>(device: &mut D, rounds: &[Round], mut notify: impl FnMut(&mut D, usize)) {
    let mut guest = Guest::new(device.queue_sizes().len());
    device.activate(guest.queues(), 0).unwrap();
    for round in rounds {
        let queue = guest.play(round);
        notify(device, queue);
    }
}

mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::devices::virtio::balloon::Balloon;
    use crate::devices::virtio::block::Block;
    use crate::devices::virtio::mmio::MmioTransport;
    use crate::devices::virtio::queue_events::LoopDevice;
    use crate::devices::virtio::rng::Rng;
    use crate::devices::virtio::slot::Slot;
    use crate::devices::virtio::vsock::Vsock;
    use std::sync::Mutex;

    /// The guest's context identifier, which packets carry as their source.
    const GUEST_CID: u32 = 3;

    /// Packets of sockets (section 5.10.6) that pass the first checks, or nearly.
    fn packets() -> impl Strategy<Value = Vec<u8>> + Clone {
        let word = || prop_oneof![0..16_u32, any::<u32>()];
        let port = || prop_oneof![Just(1024_u32), any::<u32>()];
        (port(), port(), word(), 0..9_u16, word(), word(), word()).prop_map(
            |(source, target, length, operation, flags, room, taken)| {
                let mut bytes = Vec::new();
                bytes.extend(u64::from(GUEST_CID).to_le_bytes());
                bytes.extend(2_u64.to_le_bytes());
                bytes.extend(source.to_le_bytes());
                bytes.extend(target.to_le_bytes());
                bytes.extend(length.to_le_bytes());
                bytes.extend(1_u16.to_le_bytes());
                bytes.extend(operation.to_le_bytes());
                bytes.extend([flags, room, taken].iter().flat_map(|word| word.to_le_bytes()));
                // Each page begins with a packet.
                bytes.resize(0x1000, 7);
                bytes
            },
        )
    }

    /// Accesses to registers: whether it is a write, the register, the value, and the bytes.
    fn accesses() -> impl Strategy<Value = Vec<(bool, u64, u32, usize)>> {
        vec((any::<bool>(), 0..0x48_u64, prop_oneof![0..16_u32, any::<u32>()], 0..9_usize), 1..100)
    }

    fn access(registers: &mut impl BusDevice, (write, register, value, length): (bool, u64, u32, usize)) {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&value.to_le_bytes());
        let bytes = &mut bytes[..length.min(8)];
        match write {
            true => registers.write(register * 4, bytes),
            false => registers.read(register * 4, bytes),
        }
    }

    proptest! {
        // Each has a thread.
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_disk_can_be_taken_from_any_driver(
            steps in 0..START.len() + 1,
            accesses in accesses(),
            round in rounds(1, noise()),
        ) {
            let mut guest = Guest::new(1);
            guest.play(&round[0]);
            let file = tempfile::tempfile().unwrap();
            file.set_len(4096).unwrap();
            let (block, worker) = Block::without_thread(file, 4096, "disk", false);
            let thread = std::thread::spawn(|| worker.run());
            let device = Arc::new(Mutex::new(block));
            let transport = MmioTransport::new(device, guest.memory.clone(), Guest::interrupt()).unwrap();
            let mut slot = Slot::default();
            slot.fill(transport);
            for (register, value) in &START[..steps] {
                slot.write(*register, &value.to_le_bytes());
            }
            accesses.iter().for_each(|one| access(&mut slot, *one));
            drop(slot.empty());
            thread.join().unwrap();
            accesses.iter().for_each(|one| access(&mut slot, *one));
        }
    }

    #[test]
    fn a_driver_starts_a_disk_and_lets_go_of_it_again_and_again() {
        let guest = Guest::new(1);
        let (block, worker) = Block::without_thread(tempfile::tempfile().unwrap(), 0, "disk", false);
        let thread = std::thread::spawn(|| worker.run());
        let device = Arc::new(Mutex::new(block));
        let mut registers = MmioTransport::new(device, guest.memory.clone(), Guest::interrupt()).unwrap();
        let mut status = [0; 4];
        for _ in 0..3 {
            for (step, (register, value)) in START.iter().enumerate() {
                registers.write(*register, &value.to_le_bytes());
                registers.read(0x70, &mut status);
                let expected = match step {
                    0 => 1,
                    1..=3 => 3,
                    4..=9 => 11,
                    10 | 11 => 15,
                    _ => 0,
                };
                assert_eq!(u32::from_le_bytes(status), expected, "step {step}");
            }
        }
        drop(registers);
        thread.join().unwrap();
    }

    proptest! {
        #[test]
        fn the_entropy_device_stands_any_queue(rounds in rounds(1, noise())) {
            play(&mut Rng::default(), &rounds, LoopDevice::process_queue);
        }

        #[test]
        fn the_balloon_stands_any_queue(rounds in rounds(3, noise())) {
            play(&mut Balloon::default(), &rounds, LoopDevice::process_queue);
        }

        #[test]
        fn sockets_stand_any_queue(rounds in rounds(3, packets())) {
            let mut device = Vsock::new(GUEST_CID).unwrap();
            for _ in 0..3 {
                device.connect(1024, 1000, Box::new(|_| ()));
            }
            play(&mut device, &rounds, LoopDevice::process_queue);
        }

        #[test]
        fn registers_stand_any_access(accesses in accesses()) {
            let memory = fresh_memory();
            let device = Arc::new(Mutex::new(Balloon::default()));
            let mut registers = MmioTransport::new(device, memory, Guest::interrupt()).unwrap();
            accesses.iter().for_each(|one| access(&mut registers, *one));
        }
    }
}
