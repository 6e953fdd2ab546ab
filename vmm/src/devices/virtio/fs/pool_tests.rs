//! The pool's threads at work at the same time, on as many processors as the machine has.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::abi::*;
use super::message::object;
use super::pool::{MAX_THREADS, Pool};
use super::server::Server;
use crate::bus::lock;
use crate::devices::virtio::VirtQueue;
use crate::devices::virtio::hostile::Guest;
use crate::memory::{self, Memory};

/// Entries of a queue. Each request has two.
const SIZE: u16 = 256;
/// Requests of a queue that is full.
const FULL: u16 = SIZE / 2;
/// Requests at a time where each does something.
const SLOTS: u16 = 32;
/// Where the rings, the requests and the room for the answers lie.
const RINGS: u64 = 0x1_0000;
const REQUESTS: u64 = 0x10_0000;
const ANSWERS: u64 = 0x20_0000;
const ROOM: u32 = 0x2000;
/// How often each slot makes a file, writes, reads, and removes it.
const ROUNDS: u64 = 300;
const HANG: Duration = Duration::from_secs(120);

/// A guest's driver of one queue.
struct Driver {
    /// The number of the request in its first slot.
    first: u64,
    /// Where its rings, its requests and the room for its answers begin.
    base: u64,
    memory: Arc<Memory>,
    kick: EventFd,
    available: u16,
    used: u16,
}

impl Driver {
    /// A driver that uses the memory from `base` on, and its queue as the device gets it.
    fn new(memory: Arc<Memory>, base: u64) -> (Self, VirtQueue) {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_size(SIZE);
        queue.set_desc_table_address(Some((base + RINGS) as u32), Some(0));
        queue.set_avail_ring_address(Some((base + RINGS + 0x1000) as u32), Some(0));
        queue.set_used_ring_address(Some((base + RINGS + 0x2000) as u32), Some(0));
        queue.set_ready(true);
        let kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let queue = VirtQueue::new(queue, memory.clone(), kick.try_clone().unwrap(), Guest::interrupt());
        (Driver { first: base + 1, base, memory, kick, available: 0, used: 0 }, queue)
    }

    /// Makes a request available in the entries of this slot.
    fn send(&mut self, slot: u16, opcode: u32, node: u64, parts: &[&[u8]]) {
        let body = parts.concat();
        let [at, answer] =
            [REQUESTS, ANSWERS].map(|area| self.base + area + u64::from(slot) * u64::from(ROOM));
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: self.first + u64::from(slot),
            node,
            ..InHeader::default()
        };
        let request = [header.as_slice(), &body].concat();
        self.memory.write_slice(&request, GuestAddress(at)).unwrap();
        let head = slot * 2;
        let descriptors: [(u64, u32, u16, u16); 2] =
            [(at, request.len() as u32, 1, head + 1), (answer, ROOM, 2, 0)];
        for (index, (address, length, flags, next)) in (u64::from(head)..).zip(descriptors) {
            let field = |offset| GuestAddress(self.base + RINGS + index * 16 + offset);
            self.memory.write_obj(address, field(0)).unwrap();
            self.memory.write_obj(length, field(8)).unwrap();
            self.memory.write_obj(flags, field(12)).unwrap();
            self.memory.write_obj(next, field(14)).unwrap();
        }
        let ring = self.base + RINGS + 0x1000;
        let entry = GuestAddress(ring + 4 + u64::from(self.available % SIZE) * 2);
        self.memory.write_obj(head, entry).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.store(self.available, GuestAddress(ring + 2), Ordering::SeqCst).unwrap();
        self.kick.write(1).unwrap();
    }

    /// Waits for the next answer; returns its slot, and its body or the number of errno(3).
    fn receive(&mut self) -> (u16, Result<Vec<u8>, i32>) {
        let ring = self.base + RINGS + 0x2000;
        self.skip();
        let entry = GuestAddress(ring + 4 + u64::from(self.used.wrapping_sub(1) % SIZE) * 8);
        let [head, length]: [u32; 2] = self.memory.read_obj(entry).unwrap();
        let slot = (head / 2) as u16;
        let mut answer = vec![0; length as usize];
        self.memory
            .read_slice(&mut answer, GuestAddress(self.base + ANSWERS + u64::from(slot) * u64::from(ROOM)))
            .unwrap();
        let header: OutHeader = object(&answer).expect("an answer has a header");
        assert_eq!((header.len, header.unique), (length, self.first + u64::from(slot)));
        let body = answer[size_of::<OutHeader>()..].to_vec();
        (slot, if header.error == 0 { Ok(body) } else { Err(-header.error) })
    }

    /// Waits for the end of a request, which may have no answer.
    fn skip(&mut self) {
        let begin = Instant::now();
        while self.memory.load::<u16>(GuestAddress(self.base + RINGS + 0x2002), Ordering::SeqCst).unwrap()
            == self.used
        {
            assert!(begin.elapsed() < HANG, "no answer");
            thread::yield_now();
        }
        self.used = self.used.wrapping_add(1);
    }

    fn ask(&mut self, opcode: u32, node: u64, parts: &[&[u8]]) -> Vec<u8> {
        self.send(0, opcode, node, parts);
        self.receive().1.unwrap()
    }
}

/// What a slot does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Create,
    Write { node: u64, handle: u64 },
    Read { node: u64, handle: u64 },
    Release { node: u64, handle: u64 },
    Unlink { node: u64 },
}

struct Slot {
    number: u16,
    round: u64,
    step: Step,
}

impl Slot {
    fn name(&self) -> String {
        format!("{}-{}\0", self.number, self.round)
    }

    /// What the file of this round holds.
    fn content(&self) -> Vec<u8> {
        vec![(u64::from(self.number) * 7 + self.round) as u8; 100 + usize::from(self.number) * 50]
    }

    fn send(&self, driver: &mut Driver) {
        let slot = self.number;
        match self.step {
            Step::Create => {
                let create = CreateIn { flags: libc::O_RDWR as u32, mode: 0o600, ..CreateIn::default() };
                driver.send(slot, op::CREATE, ROOT, &[create.as_slice(), self.name().as_bytes()]);
            }
            Step::Write { node, handle } => {
                let content = self.content();
                let write = WriteIn { handle, size: content.len() as u32, ..WriteIn::default() };
                driver.send(slot, op::WRITE, node, &[write.as_slice(), &content]);
            }
            Step::Read { node, handle } => {
                let read = ReadIn { handle, size: 4096, ..ReadIn::default() };
                driver.send(slot, op::READ, node, &[read.as_slice()]);
            }
            Step::Release { node, handle } => {
                let release = ReleaseIn { handle, ..ReleaseIn::default() };
                driver.send(slot, op::RELEASE, node, &[release.as_slice()]);
            }
            Step::Unlink { .. } => driver.send(slot, op::UNLINK, ROOT, &[self.name().as_bytes()]),
        }
    }

    /// Looks at an answer, and goes on.
    fn take(&mut self, answer: &[u8]) {
        self.step = match self.step {
            Step::Create => {
                let entry: EntryOut = object(answer).unwrap();
                let opened: OpenOut = object(&answer[size_of::<EntryOut>()..]).unwrap();
                Step::Write { node: entry.node, handle: opened.handle }
            }
            Step::Write { node, handle } => {
                assert_eq!(object::<WriteOut>(answer).unwrap().size as usize, self.content().len());
                Step::Read { node, handle }
            }
            Step::Read { node, handle } => {
                assert!(answer == self.content(), "slot {}, round {}", self.number, self.round);
                Step::Release { node, handle }
            }
            Step::Release { node, .. } => Step::Unlink { node },
            Step::Unlink { .. } => {
                self.round += 1;
                Step::Create
            }
        };
    }
}

/// Drivers of the urgent queue and of the other, and the pool that serves them.
fn served(folder: &Path) -> ([Driver; 2], Arc<Pool>) {
    let bits = rustix::thread::CapabilitiesSecureBits::NO_SETUID_FIXUP;
    rustix::thread::set_capabilities_secure_bits(bits).expect("these tests must be run as root");
    let memory = Arc::new(memory::tests::create(8));
    let ((urgent, first), (mut requests, second)) =
        (Driver::new(memory.clone(), 4 << 20), Driver::new(memory, 0));
    let pool = Pool::new(Server::new(folder.to_owned(), 1000, 1000), vec![first, second]).unwrap();
    let first = pool.clone();
    thread::spawn(move || first.run());
    let init = InitIn { major: 7, minor: 40, flags: u32::MAX, flags2: u32::MAX, ..InitIn::default() };
    requests.ask(op::INIT, 0, &[init.as_slice()]);
    ([urgent, requests], pool)
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < HANG, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn threads_are_bounded_and_killed_processes_leave_them_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let ([mut urgent, mut requests], pool) = served(folder.path());
    let OpenOut { handle, .. } =
        object(&requests.ask(op::OPENDIR, ROOT, &[OpenIn::default().as_slice()])).unwrap();
    let read = ReadIn { handle, size: 4096, ..ReadIn::default() };
    // All wait for the directory.
    let open = pool.server().handles.get(ROOT, handle).unwrap();
    let held = lock(&open.position);
    (0..FULL).for_each(|slot| requests.send(slot, op::READDIR, ROOT, &[read.as_slice()]));
    (0..50).for_each(|slot| urgent.send(slot, op::READDIR, ROOT, &[read.as_slice()]));
    eventually("each has a thread", || pool.threads() >= MAX_THREADS);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(pool.threads(), MAX_THREADS);
    drop(held);
    for (driver, count) in [(&mut requests, FULL), (&mut urgent, 50)] {
        (0..count).for_each(|_| assert!(!driver.receive().1.unwrap().is_empty()));
    }
    // A process that is killed goes, though its thread still waits; after many of these there are threads for others.
    let held = lock(&open.position);
    for round in 1..=3 {
        requests.first = 1000 * round;
        (0..FULL).for_each(|slot| requests.send(slot, op::READDIR, ROOT, &[read.as_slice()]));
        let count = usize::from(FULL) * round as usize;
        eventually("all wait", || pool.server().flights.count() == count);
        for slot in 0..FULL {
            let interrupt = InterruptIn { unique: requests.first + u64::from(slot) };
            urgent.send(slot, op::INTERRUPT, ROOT, &[interrupt.as_slice()]);
        }
        for _ in 0..FULL {
            assert_eq!(requests.receive().1.unwrap_err(), libc::EINTR, "round {round}");
        }
        (0..FULL).for_each(|_| urgent.skip());
    }
    // The urgent queue is served first.
    requests.first = 9000;
    urgent.send(0, op::INTERRUPT, ROOT, &[InterruptIn { unique: 9007 }.as_slice()]);
    urgent.skip();
    requests.send(7, op::READDIR, ROOT, &[read.as_slice()]);
    assert_eq!(requests.receive().1.unwrap_err(), libc::EINTR);
    let statfs = requests.ask(op::STATFS, ROOT, &[]);
    assert!(!statfs.is_empty());
    drop(held);
    eventually("they end", || pool.abandoned() == 0);
}

#[test]
fn files_of_many_requests_at_a_time_are_not_mixed_up() {
    let folder = tempfile::tempdir().unwrap();
    let ([_urgent, mut driver], pool) = served(folder.path());
    let mut slots: Vec<Slot> =
        (0..SLOTS).map(|number| Slot { number, round: 0, step: Step::Create }).collect();
    slots.iter().for_each(|slot| slot.send(&mut driver));
    let mut busy = slots.len();
    while busy > 0 {
        let (number, answer) = driver.receive();
        let slot = &mut slots[usize::from(number)];
        let answer = answer.unwrap_or_else(|error| panic!("{:?}: {error}", slot.step));
        let forgotten = if let Step::Unlink { node } = slot.step { Some(node) } else { None };
        slot.take(&answer);
        if slot.round < ROUNDS {
            slot.send(&mut driver);
        } else {
            busy -= 1;
        }
        // The file that is gone has a descriptor until the guest forgets it.
        if let Some(node) = forgotten {
            pool.server().inodes.forget(node, 1);
        }
    }
    assert!(pool.threads() > 1, "one thread served all");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
