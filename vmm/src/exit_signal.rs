//! Signals the end of a VM from its threads to the event loop.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;

use pouch_vmm_api::exit::ExitReason;
use vmm_sys_util::eventfd::EventFd;

/// The end of a VM, signalled once by the first thread that detects it.
pub struct ExitSignal {
    reason: OnceLock<ExitReason>,
    event: EventFd,
}

impl ExitSignal {
    /// A VM that has not ended.
    ///
    /// # Errors
    /// If a descriptor cannot be created.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?;
        Ok(ExitSignal { reason: OnceLock::new(), event })
    }

    /// Ends the VM; an earlier reason is kept.
    pub fn end(&self, reason: ExitReason) {
        if self.reason.set(reason).is_ok() {
            // The counter is at 0, so there is room.
            let _ = self.event.write(1);
        }
    }

    /// Why the VM ended, if it has.
    pub fn reason(&self) -> Option<ExitReason> {
        self.reason.get().cloned()
    }
}

impl AsRawFd for ExitSignal {
    /// Readable when the VM has ended.
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
