//! A device's interrupt.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Bit of the interrupt status register: a buffer was used (section 4.2.2).
pub const USED_BUFFER: u32 = 1;

/// A device's interrupt line and the status register that says why it was raised.
pub struct Interrupt {
    line: EventFd,
    status: AtomicU32,
    /// Reasons that are always reported.
    standing: AtomicU32,
}

impl Interrupt {
    /// An interrupt whose line is an irqfd of KVM.
    pub fn new(line: EventFd) -> Self {
        Interrupt { line, status: AtomicU32::new(0), standing: AtomicU32::new(0) }
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
    /// interrupt again.
    pub fn take_status(&self) -> u32 {
        self.status.swap(0, Ordering::SeqCst) | self.standing.load(Ordering::SeqCst)
    }

    /// The line, for the host kernel to raise when it has used a buffer. The status register cannot track this, so from
    /// now on it always reports a used buffer; a driver that checks in vain finds its rings unchanged.
    ///
    /// # Errors
    /// The error of `dup(2)`.
    pub fn raised_elsewhere(&self) -> io::Result<EventFd> {
        self.standing.store(USED_BUFFER, Ordering::SeqCst);
        self.line()
    }

    /// A second descriptor of the line, to register with KVM.
    ///
    /// # Errors
    /// The error of `dup(2)`.
    pub fn line(&self) -> io::Result<EventFd> {
        self.line.try_clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit of the interrupt status register: the configuration changed.
    const CONFIG_CHANGE: u32 = 2;

    #[test]
    fn a_reason_is_told_once_unless_somebody_else_raises_the_line() {
        let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        interrupt.raise(USED_BUFFER);
        interrupt.raise(CONFIG_CHANGE);
        assert_eq!(interrupt.take_status(), USED_BUFFER | CONFIG_CHANGE);
        assert_eq!(interrupt.take_status(), 0);
        interrupt.raised_elsewhere().unwrap().write(1).unwrap();
        assert_eq!((interrupt.take_status(), interrupt.take_status()), (USED_BUFFER, USED_BUFFER));
        assert_eq!(interrupt.line().unwrap().read().unwrap(), 3, "all of them raised the same line");
    }
}
