//! Sockets between host and guest (section 5.10).
//!
//! Only the host opens connections. The agent listens, so that its listener survives a snapshot. Connections
//! from the guest would be another way to attack the host, so they are refused; an attempt only makes the
//! muxer retry pending connections. The host gets one end of a socket pair for each connection, through the
//! control socket.

mod connection;
mod muxer;
mod packet;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, Events, MutEventSubscriber};
use virtio_vsock::packet::VsockPacket;
use vmm_sys_util::epoll::EventSet;

use super::queue_events::LoopDevice;
use super::{VirtQueue, VirtioDevice, id, read_config_bytes};
use crate::bus::lock;
use muxer::Muxer;
pub use muxer::{ConnectCallback, ConnectError, Counters};
use packet::{HEADER_LENGTH, Header, MAX_PAYLOAD};

/// The driver fills the receive queue with buffers of 4 KiB when it starts: a queue as large as
/// throughput needs, and no larger.
const QUEUE_SIZES: [u16; 3] = [64, 128, 16];
/// Buffers that are filled before other devices are served.
const TURN: usize = 512;
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// The host's context identifier (VMADDR_CID_HOST).
pub const HOST_CID: u64 = 2;

/// The socket device.
pub struct Vsock {
    guest_cid: u64,
    queues: Vec<VirtQueue>,
    muxer: Muxer,
}

impl Vsock {
    /// A device for a guest with the given context identifier.
    ///
    /// # Errors
    /// If an epoll or timer descriptor cannot be created.
    pub fn new(guest_cid: u32) -> io::Result<Self> {
        Ok(Vsock { guest_cid: guest_cid.into(), queues: Vec::new(), muxer: Muxer::new()? })
    }

    /// Connects to `port` of the guest, trying again until something listens there or
    /// `timeout_ms` milliseconds have passed, then calls `done`.
    pub fn connect(&mut self, port: u32, timeout_ms: u32, done: ConnectCallback) {
        self.muxer.connect(port, timeout_ms, done);
        self.deliver();
    }

    /// Counters.
    pub fn counters(&self) -> Counters {
        self.muxer.counters()
    }

    /// Handles events of the connections' descriptors and the timer.
    fn process_streams(&mut self) {
        self.muxer.process_events();
        self.deliver();
    }

    /// Moves packets from the connections to the guest, as far as it has buffers.
    fn deliver(&mut self) {
        let Some(queue) = self.queues.get_mut(RECEIVE) else { return };
        let mut any = false;
        let mut left = TURN;
        while self.muxer.has_packets() {
            // Malformed buffers can come without end.
            if left == 0 {
                queue.kick_self();
                break;
            }
            left -= 1;
            let Some(mut chain) = queue.pop_or_wait() else { break };
            let head = chain.head_index();
            let memory = queue.memory().clone();
            let written = match VsockPacket::from_rx_virtq_chain(memory.as_ref(), &mut chain, MAX_PAYLOAD) {
                Ok(mut packet) => match self.muxer.next_packet(packet.data_slice()) {
                    Some(header) => header.write(&mut packet, self.guest_cid),
                    None => {
                        queue.unpop();
                        break;
                    }
                },
                Err(error) => {
                    crate::log_line!("malformed buffer for a vsock packet: {error}");
                    0
                }
            };
            queue.push(head, written);
            any = true;
        }
        if any {
            queue.signal();
        }
    }

    /// Takes packets from the guest.
    fn transmit(&mut self) {
        let Some(queue) = self.queues.get_mut(TRANSMIT) else { return };
        let (muxer, guest_cid) = (&mut self.muxer, self.guest_cid);
        queue.for_each(|memory, mut chain| {
            match VsockPacket::from_tx_virtq_chain(memory, &mut chain, MAX_PAYLOAD) {
                Ok(packet) => match Header::read(&packet, guest_cid) {
                    Some(header) => muxer.receive(header, packet.data_slice()),
                    None => crate::log_line!("a socket packet has the wrong addresses or type"),
                },
                Err(error) => crate::log_line!("malformed vsock packet: {error}"),
            }
            0
        });
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u32 {
        id::VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, queues: Vec<VirtQueue>, _features: u64) -> io::Result<()> {
        self.queues = queues;
        Ok(())
    }
}

impl LoopDevice for Vsock {
    fn process_queue(&mut self, index: usize) {
        if index == TRANSMIT {
            self.transmit();
        }
        // Buffers came in, or the guest's packets call for answers.
        self.deliver();
    }
}

/// Delivers events of the connections' descriptors to the device.
pub struct StreamEvents {
    device: Arc<Mutex<Vsock>>,
    epoll: RawFd,
}

impl StreamEvents {
    /// Watches the connections of `device`.
    pub fn new(device: Arc<Mutex<Vsock>>) -> Self {
        let epoll = lock(&device).muxer.as_raw_fd();
        StreamEvents { device, epoll }
    }
}

impl MutEventSubscriber for StreamEvents {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        lock(&self.device).process_streams();
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.epoll, EventSet::IN)) {
            crate::log_line!("socket connections cannot be watched: {error}");
        }
    }
}

// The crate's constant is private; the protocol's header has 44 bytes (section 5.10.6).
const _: () = assert!(HEADER_LENGTH == 44);
