//! The interface on an event loop, and with hostile queues.

use super::*;
use crate::devices::virtio::hostile::{Guest, noise, rounds};
use crate::devices::virtio::queue_events::QueueEvents;
use crate::event_loop::Subscriber;
use crate::memory::{self, Memory};
use event_manager::{EventManager, SubscriberOps};
use proptest::prelude::*;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

/// An interface on an event loop, with so many buffers for reception.
struct Running {
    net: Arc<Mutex<Net>>,
    events: EventManager<Subscriber>,
    receive: EventFd,
    memory: Memory,
}

/// Bytes of a buffer.
const BUFFER: u32 = 2048;
const WRITE: u16 = 2;

impl Running {
    fn new(tap: OwnedFd) -> Self {
        let memory = memory::tests::create(64);
        let mut net = Net::new(Tap::pretend(File::from(tap)), [0; 12]);
        let kicks: Vec<_> = (0..2).map(|_| EventFd::new(libc::EFD_NONBLOCK).unwrap()).collect();
        let rings = [0x10_0000, 0x20_0000].map(|start| {
            MockSplitQueue::<Memory>::create(&memory, GuestAddress(start), 256).create_queue().unwrap()
        });
        let queue = |(ring, kick): (_, &EventFd)| {
            let kick = kick.try_clone().unwrap();
            VirtQueue::new(ring, Arc::new(memory.clone()), kick, Guest::interrupt())
        };
        net.queues = rings.into_iter().zip(&kicks).map(queue).collect();
        let receive = kicks[RECEIVE].try_clone().unwrap();
        let net = Arc::new(Mutex::new(net));
        let mut events = EventManager::<Subscriber>::new().unwrap();
        events.add_subscriber(Arc::new(Mutex::new(TapEvents(net.clone()))));
        events.add_subscriber(Arc::new(Mutex::new(QueueEvents::new(net.clone(), kicks))));
        Running { net, events, receive, memory }
    }

    /// Adds buffers for reception and notifies the device.
    fn add_buffers(&self, count: u64) {
        let mock = MockSplitQueue::create(&self.memory, GuestAddress(0x10_0000), 256);
        let buffer = |index| Descriptor::new(0x100_0000 + index * 0x1000, BUFFER, WRITE, 0);
        let buffers: Vec<_> = (0..count).map(|index| RawDescriptor::from(buffer(index))).collect();
        mock.add_desc_chains(&buffers, 0).unwrap();
        self.receive.write(1).unwrap();
    }

    /// Runs the loop until nothing is left to do; returns the frames that the guest has got.
    fn settle(&mut self) -> u64 {
        let idle = (0..100).any(|_| self.events.run_with_timeout(0).unwrap() == 0);
        assert!(idle, "the event loop does not come to rest");
        self.net.lock().unwrap().counters().received
    }
}

fn tap() -> (UnixDatagram, OwnedFd) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    ours.set_nonblocking(true).unwrap();
    (ours, theirs.into())
}

#[test]
fn an_interface_without_traffic_is_idle() {
    let (wire, tap) = tap();
    let mut running = Running::new(tap);
    running.add_buffers(20);
    assert_eq!(running.settle(), 0);
    wire.send(&[1; 100]).unwrap();
    wire.send(&[2; 100]).unwrap();
    assert_eq!(running.settle(), 2);
    wire.send(&[3; 100]).unwrap();
    assert_eq!(running.settle(), 3);
}

#[test]
fn frames_wait_for_a_guest_without_buffers_and_none_is_lost() {
    let (wire, tap) = tap();
    let mut running = Running::new(tap);
    assert_eq!(running.settle(), 0);
    // More than a batch.
    let sent = (0..200).filter(|_| wire.send(&[1; 100]).is_ok()).count() as u64;
    assert!(sent > BATCH as u64);
    assert_eq!(running.settle(), 0);
    running.add_buffers(256);
    assert_eq!(running.settle(), sent);
}

#[test]
fn an_interface_whose_tap_went_away_is_idle() {
    // A pipe whose writer is gone: an end of file, and an event that stays.
    let (reader, writer) = std::io::pipe().unwrap();
    let mut running = Running::new(reader.into());
    running.add_buffers(20);
    drop(writer);
    assert_eq!(running.settle(), 0);
    assert!(running.net.lock().unwrap().gone);
    running.add_buffers(1);
    assert_eq!(running.settle(), 0);
}

proptest! {
    #[test]
    fn an_interface_stands_any_queue(rounds in rounds(2, noise()), held in HEADER_LENGTH..MAX_FRAME) {
        // It takes every frame and has none: what the guest gets was held for it.
        let nowhere = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        let mut guest = Guest::new(2);
        let mut net = Net {
            tap: Tap::pretend(nowhere),
            config: [0; 12],
            queues: guest.queues(),
            frame: Box::new([0; MAX_FRAME]),
            held: None,
            gone: false,
            counters: NetCounters::default(),
        };
        for round in &rounds {
            net.held = net.held.or(Some(held));
            let queue = guest.play(round);
            net.process_queue(queue);
        }
    }
}
