//! A network interface (section 5.1) over a tap device.

mod header;
mod tap;
mod vhost;

use std::io;
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, Events, MutEventSubscriber};
use pouch_vmm_api::config::NetworkConfig;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
};
use vm_memory::Bytes;
use vmm_sys_util::epoll::EventSet;

use super::queue_events::LoopDevice;
use super::{VirtQueue, VirtioDevice, id, read_config_bytes};
use crate::bus::lock;
use header::{HEADER_LENGTH, set_buffer_count};
pub use tap::{Tap, TapError};
pub use vhost::{VhostError, VhostNet};

const QUEUE_SIZES: [u16; 2] = [256, 256];
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// The longest frame: a 64 KiB packet whose segmentation is left to the receiver, with its
/// headers.
const MAX_FRAME: usize = 65_562 + HEADER_LENGTH;
/// Frames that are handled before other devices are served.
const BATCH: usize = 64;

/// What the tap device can do for a guest's driver.
const FEATURES: u64 = 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_MTU
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6;

/// The configuration space of an interface (section 5.1.4): its address and the size of its packets.
pub fn config_space(config: &NetworkConfig) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..6].copy_from_slice(&config.mac.0);
    bytes[10..].copy_from_slice(&config.mtu.to_le_bytes());
    bytes
}

/// Counters, in frames and bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetCounters {
    /// Frames to the guest.
    pub received: u64,
    /// Frames to the guest that were lost.
    pub receive_dropped: u64,
    /// Frames from the guest.
    pub transmitted: u64,
    /// Frames from the guest that were lost.
    pub transmit_dropped: u64,
}

/// A network interface.
pub struct Net {
    tap: Tap,
    config: [u8; 12],
    queues: Vec<VirtQueue>,
    /// Buffer for a frame between tap and guest.
    frame: Box<[u8; MAX_FRAME]>,
    /// Bytes of a frame from the tap that the guest had no buffers for.
    held: Option<usize>,
    /// The tap device has failed for good.
    gone: bool,
    counters: NetCounters,
}

/// The result of a turn of reception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    /// The tap has no more frames; it notifies of the next one.
    All,
    /// A batch, and there may be more.
    Batch,
    /// The guest has no more buffers; it notifies when it has.
    NoRoom,
    /// The tap device is gone.
    Gone,
}

impl Net {
    /// An interface with this configuration space over `tap`.
    pub fn new(tap: Tap, config: [u8; 12]) -> Self {
        // A boxed array, so that no frame lies on the stack.
        let frame = Box::new([0; MAX_FRAME]);
        Net {
            tap,
            config,
            queues: Vec::new(),
            frame,
            held: None,
            gone: false,
            counters: NetCounters::default(),
        }
    }

    /// Counters.
    pub fn counters(&self) -> NetCounters {
        self.counters
    }

    /// Moves frames from the tap to the guest.
    fn receive(&mut self) -> Received {
        let Some(queue) = self.queues.get_mut(RECEIVE) else { return Received::NoRoom };
        let mut result = Received::Batch;
        for _ in 0..BATCH {
            let held = self.held.take().map(Ok);
            let length = match held.unwrap_or_else(|| next_frame(&self.tap, &mut self.gone, &mut self.frame))
            {
                Ok(length) => length,
                Err(end) => {
                    result = end;
                    break;
                }
            };
            match deliver(queue, &mut self.frame[..length]) {
                Delivery::Done => self.counters.received += 1,
                Delivery::Broken => self.counters.receive_dropped += 1,
                Delivery::NoRoom => {
                    self.held = Some(length);
                    result = Received::NoRoom;
                    break;
                }
            }
        }
        queue.signal();
        // Serve other devices first. The next turn is requested only here, and only if needed, or it would be requested
        // for ever.
        if result == Received::Batch {
            queue.kick_self();
        }
        result
    }

    /// Moves frames from the guest to the tap.
    fn transmit(&mut self) {
        let Some(queue) = self.queues.get_mut(TRANSMIT) else { return };
        let (tap, frame, counters) = (&self.tap, &mut self.frame, &mut self.counters);
        // The buffer is shared with reception: a frame held there must survive.
        let mut own = self.held.map(|_| Box::new([0; MAX_FRAME]));
        let frame = own.as_mut().unwrap_or(frame);
        queue.for_each(|memory, chain| {
            let mut length = 0;
            for buffer in chain.readable() {
                let end = length + buffer.len() as usize;
                let Some(part) = frame.get_mut(length..end) else {
                    length = 0;
                    break;
                };
                if memory.read_slice(part, buffer.addr()).is_err() {
                    length = 0;
                    break;
                }
                length = end;
            }
            if length >= HEADER_LENGTH && tap.write(&frame[..length]).is_ok() {
                counters.transmitted += 1;
            } else {
                // Drop what cannot be sent, as a real interface does.
                counters.transmit_dropped += 1;
            }
            0
        });
    }
}

/// Reads a frame; or says why there is none.
fn next_frame(tap: &Tap, gone: &mut bool, frame: &mut [u8; MAX_FRAME]) -> Result<usize, Received> {
    loop {
        if *gone {
            return Err(Received::Gone);
        }
        match tap.read(frame.as_mut_slice()) {
            Ok(length) if length >= HEADER_LENGTH => return Ok(length),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Received::All),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A tap device has frames with headers, or an error when its interface was removed.
            other => {
                crate::log_line!("a tap device was removed: {:?}", other.err());
                *gone = true;
            }
        }
    }
}

enum Delivery {
    Done,
    NoRoom,
    Broken,
}

/// Puts one frame into as many buffers of the guest as it needs.
fn deliver(queue: &mut VirtQueue, frame: &mut [u8]) -> Delivery {
    let mut used: Vec<(u16, u32)> = Vec::new();
    let mut rest = 0;
    let mut first_buffer = None;
    while rest < frame.len() {
        let Some(chain) = queue.pop_or_wait() else {
            for _ in &used {
                queue.unpop();
            }
            return Delivery::NoRoom;
        };
        let head = chain.head_index();
        let mut written = 0u32;
        for buffer in chain.writable() {
            let count = (buffer.len() as usize).min(frame.len() - rest);
            if queue.memory().write_slice(&frame[rest..rest + count], buffer.addr()).is_err() {
                break;
            }
            first_buffer = first_buffer.or(Some((buffer.addr(), buffer.len())));
            rest += count;
            // At most MAX_FRAME.
            written += count as u32;
        }
        used.push((head, written));
        if written == 0 {
            // Buffers that take nothing: give them back, or this would never end.
            for &(head, _) in &used {
                queue.push(head, 0);
            }
            return Delivery::Broken;
        }
    }
    // The header says how many chains the frame took (section 5.1.6.4).
    if let Some((address, length)) = first_buffer
        && length as usize >= HEADER_LENGTH
    {
        set_buffer_count(queue.memory(), address, used.len());
    }
    for (head, written) in used {
        queue.push(head, written);
    }
    Delivery::Done
}

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        id::NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, queues: Vec<VirtQueue>, features: u64) -> io::Result<()> {
        self.tap.set_offloads(features)?;
        self.queues = queues;
        Ok(())
    }

    fn reset(&mut self) -> bool {
        self.queues.clear();
        self.held = None;
        true
    }
}

impl LoopDevice for Net {
    fn process_queue(&mut self, index: usize) {
        match index {
            // New buffers, or its own call: the tap tells of new frames only.
            RECEIVE => {
                self.receive();
            }
            TRANSMIT => self.transmit(),
            _ => {}
        }
    }
}

/// Brings frames that arrive at the tap to the device.
pub struct TapEvents(pub Arc<Mutex<Net>>);

impl MutEventSubscriber for TapEvents {
    fn process(&mut self, _events: Events, ops: &mut EventOps<'_>) {
        let mut net = lock(&self.0);
        // Edge-triggered: the event is for frames that came since the tap was last read empty. Where frames stay
        // in it, the queue's notification brings the next turn, the guest's or the device's own.
        if net.receive() == Received::Gone
            && let Err(error) = ops.remove(Events::empty(&net.tap))
        {
            crate::log_line!("a removed tap device could not be removed from the event loop: {error}");
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        let net = lock(&self.0);
        if let Err(error) = ops.add(Events::new(&net.tap, EventSet::IN | EventSet::EDGE_TRIGGERED)) {
            crate::log_line!("a tap device cannot be watched: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
