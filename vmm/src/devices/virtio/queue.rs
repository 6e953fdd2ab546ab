//! A queue of a running device.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_queue::{DescriptorChain, Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::{Interrupt, USED_BUFFER};
use crate::memory::Memory;

/// Chains that are worked through before something else has its turn: more than a queue holds.
const TURN: usize = 512;

/// A chain of buffers that the driver made available.
pub type Chain = DescriptorChain<Arc<Memory>>;

/// A queue that the driver has set up, with the descriptor through which the driver notifies the
/// device and the interrupt for the other way.
pub struct VirtQueue {
    queue: Queue,
    memory: Arc<Memory>,
    kick: EventFd,
    interrupt: Arc<Interrupt>,
}

impl VirtQueue {
    /// A queue over guest `memory`.
    pub fn new(queue: Queue, memory: Arc<Memory>, kick: EventFd, interrupt: Arc<Interrupt>) -> Self {
        VirtQueue { queue, memory, kick, interrupt }
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Where the driver put the rings.
    pub fn ring(&self) -> &Queue {
        &self.queue
    }

    /// The driver's notifications.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// The interrupt.
    pub fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// The descriptor that becomes readable when the driver notifies the device.
    pub fn kick_fd(&self) -> RawFd {
        self.kick.as_raw_fd()
    }

    /// Takes a notification, waiting for it if the descriptor blocks.
    ///
    /// # Errors
    /// The error of `read(2)`.
    pub fn take_kick(&self) -> io::Result<()> {
        self.kick.read().map(drop)
    }

    /// The next chain that the driver made available. A malformed ring gives none.
    pub fn pop(&mut self) -> Option<Chain> {
        self.queue.pop_descriptor_chain(self.memory.clone())
    }

    /// The next chain. If there is none, the driver is asked to notify of the next. A malformed ring has
    /// none either; otherwise the guest could keep the device busy for ever.
    pub fn pop_or_wait(&mut self) -> Option<Chain> {
        self.pop().or_else(|| if self.enable_kicks() { self.pop() } else { None })
    }

    /// Puts the chain that was popped last back; calling it again puts the one before it back.
    pub fn unpop(&mut self) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
    }

    /// Gives the chain that starts at `head` back with `length` bytes written.
    pub fn push(&mut self, head: u16, length: u32) {
        if let Err(error) = self.queue.add_used(self.memory.as_ref(), head, length) {
            crate::log_line!("a used ring cannot be written: {error}");
        }
    }

    /// Raises the interrupt if the driver wants one for what was pushed.
    pub fn signal(&mut self) {
        // A ring that cannot be read: the driver is broken, one interrupt more does not harm.
        if self.queue.needs_notification(self.memory.as_ref()).unwrap_or(true) {
            self.interrupt.raise(USED_BUFFER);
        }
    }

    /// Asks the driver not to notify while the device works through the queue.
    pub fn disable_kicks(&mut self) {
        let _ = self.queue.disable_notification(self.memory.as_ref());
    }

    /// Asks the driver to notify again; true if chains came in meanwhile and must be looked at.
    pub fn enable_kicks(&mut self) -> bool {
        self.queue.enable_notification(self.memory.as_ref()).unwrap_or(false)
    }

    /// Has the device called again, as if the driver had notified it. A device does this at the end of its turn if there
    /// may be more work.
    pub fn kick_self(&self) {
        // A full counter wakes the device as well.
        let _ = self.kick.write(1);
    }

    /// Processes the chains: `handle` returns the bytes that it wrote into each. The interrupt is raised at
    /// the end if the driver wants it. The number of chains is limited; if there are more, the device is called
    /// again after the others.
    pub fn for_each(&mut self, mut handle: impl FnMut(&Memory, Chain) -> u32) {
        let mut left = TURN;
        loop {
            self.disable_kicks();
            let mut any = false;
            while left > 0
                && let Some(chain) = self.pop()
            {
                let head = chain.head_index();
                let written = handle(&self.memory, chain);
                self.push(head, written);
                any = true;
                left -= 1;
            }
            if any {
                self.signal();
            }
            if left == 0 {
                return self.kick_self();
            }
            if !self.enable_kicks() || !any {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::hostile::{FIRST_AVAILABLE_INDEX, Guest};
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn a_driver_that_never_stops_gets_a_turn_and_then_another() {
        let guest = Guest::new(1);
        let mut queue = guest.queues().remove(0);
        let mut served = 0;
        let add = |memory: &Memory, count: usize| {
            memory.write_obj(count as u16 + 1, GuestAddress(FIRST_AVAILABLE_INDEX)).unwrap();
        };
        add(&queue.memory().clone(), served);
        for turn in 1..=3 {
            queue.for_each(|memory, _| {
                served += 1;
                add(memory, served);
                0
            });
            assert_eq!(served, turn * TURN);
            assert_eq!(queue.kick().read().unwrap(), 1, "it asks for its next turn");
        }
    }
}
