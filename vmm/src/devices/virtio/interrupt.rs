//! A device's interrupt.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Bit of the interrupt status register: a buffer was used (section 4.2.2).
pub const USED_BUFFER: u32 = 1;
/// Bit of the interrupt status register: the configuration changed.
pub const CONFIG_CHANGE: u32 = 2;

/// A device's interrupt line and the status register that says why it was raised.
pub struct Interrupt {
    line: EventFd,
    status: AtomicU32,
}

impl Interrupt {
    /// An interrupt whose line is an irqfd of KVM.
    pub fn new(line: EventFd) -> Self {
        Interrupt { line, status: AtomicU32::new(0) }
    }

    /// Raises the interrupt for `reason`, one of the bits above.
    pub fn raise(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::SeqCst);
        if let Err(error) = self.line.write(1) {
            // The counter of an eventfd is full only if KVM does not read it.
            crate::log_line!("an interrupt was lost: {error}");
        }
    }

    /// The status register, and with that the driver has seen the reasons: a later one raises the
    /// interrupt anew.
    pub fn take_status(&self) -> u32 {
        self.status.swap(0, Ordering::SeqCst)
    }

    /// A second descriptor of the line, to register with KVM.
    ///
    /// # Errors
    /// What `dup(2)` says.
    pub fn line(&self) -> io::Result<EventFd> {
        self.line.try_clone()
    }
}
