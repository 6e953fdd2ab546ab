//! The reset line of a PC's keyboard controller, without its other functions.
//!
//! A Linux guest without ACPI resets itself through it (`reboot=k`).

use std::sync::Arc;

use pouch_vmm_api::exit::ExitReason;

use crate::bus::BusDevice;
use crate::exit_signal::ExitSignal;

/// The command register, port 0x64.
const COMMAND: u64 = 4;
/// Pulse the reset line.
const RESET: u8 = 0xfe;

/// The keyboard controller.
pub struct Keyboard {
    signal: Arc<ExitSignal>,
}

impl Keyboard {
    /// A controller whose reset line ends the VM through `signal`.
    pub fn new(signal: Arc<ExitSignal>) -> Self {
        Keyboard { signal }
    }
}

impl BusDevice for Keyboard {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Status 0: both buffers are empty, so a guest does not wait for them.
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if (offset, data) == (COMMAND, &[RESET]) {
            self.signal.end(ExitReason::Reset);
        }
    }
}
