//! Delivers the driver's notifications to a device on the event loop.

use std::sync::{Arc, Mutex};

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::lock;

/// A device whose queues are worked on by the event loop, so without ever blocking.
pub trait LoopDevice: Send {
    /// The driver notified the queue of this index. May come before the device is activated.
    fn process_queue(&mut self, index: usize);
}

/// The notifications of one device's queues.
pub struct QueueEvents<D: LoopDevice> {
    device: Arc<Mutex<D>>,
    kicks: Vec<EventFd>,
}

impl<D: LoopDevice> QueueEvents<D> {
    /// Brings `kicks`, one a queue, to `device`.
    pub fn new(device: Arc<Mutex<D>>, kicks: Vec<EventFd>) -> Self {
        QueueEvents { device, kicks }
    }
}

impl<D: LoopDevice> MutEventSubscriber for QueueEvents<D> {
    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        let index = events.data() as usize;
        if let Some(kick) = self.kicks.get(index) {
            // Nothing to read: the event was taken together with an earlier one.
            let _ = kick.read();
            lock(&self.device).process_queue(index);
        }
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (index, kick) in (0..).zip(&self.kicks) {
            if let Err(error) = ops.add(Events::with_data(kick, index, EventSet::IN)) {
                crate::log_line!("a queue's notifications cannot be watched: {error}");
            }
        }
    }
}
