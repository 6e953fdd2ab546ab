//! A slot for a device that is attached while the VM runs.
//!
//! An empty slot has the registers of a placeholder (section 4.2.2: device ID 0), which the driver ignores.
//! When a device is attached, the agent makes the driver probe the slot again.

use super::mmio::{MmioTransport, placeholder_register};
use crate::bus::BusDevice;

/// The registers of a slot that may be empty.
#[derive(Default)]
pub struct Slot(Option<MmioTransport>);

impl Slot {
    /// Attaches a device.
    pub fn fill(&mut self, transport: MmioTransport) {
        self.0 = Some(transport);
    }

    /// Takes the device away.
    pub fn empty(&mut self) -> Option<MmioTransport> {
        self.0.take()
    }
}

impl BusDevice for Slot {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match &mut self.0 {
            Some(transport) => transport.read(offset, data),
            None => {
                data.fill(0);
                if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
                    *word = placeholder_register(offset).to_le_bytes();
                }
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(transport) = &mut self.0 {
            transport.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_place_is_a_placeholder() {
        let mut slot = Slot::default();
        let mut word = [0xff; 4];
        slot.read(0, &mut word);
        assert_eq!(&word, b"virt");
        for offset in [0x08, 0x10, 0x70, 0x100, u64::MAX] {
            slot.write(offset, &[0xff; 4]);
            slot.read(offset, &mut word);
            assert_eq!(word, [0; 4], "{offset:#x}");
        }
        let mut byte = [0xff];
        slot.read(0, &mut byte);
        assert_eq!(byte, [0]);
    }
}
