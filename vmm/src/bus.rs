//! Dispatch of the guest's accesses to device registers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device with registers, in port or memory space.
pub trait BusDevice: Send {
    /// Fills `data` from `offset` bytes into the device's range.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data` written `offset` bytes into the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// One address space of device registers.
#[derive(Default)]
pub struct Bus {
    devices: BTreeMap<u64, (u64, Arc<Mutex<dyn BusDevice>>)>,
}

/// Two devices have overlapping addresses.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the registers at {base:#x}, {length} bytes, overlap another device's")]
pub struct OverlapError {
    base: u64,
    length: u64,
}

impl Bus {
    /// Adds a device at `base`, `length` bytes long.
    ///
    /// # Errors
    /// [`OverlapError`] if another device has an address there.
    pub fn insert(
        &mut self,
        base: u64,
        length: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), OverlapError> {
        let before = self.devices.range(..base + length).next_back();
        if length == 0 || before.is_some_and(|(start, (other, _))| start + other > base) {
            return Err(OverlapError { base, length });
        }
        self.devices.insert(base, (length, device));
        Ok(())
    }

    /// Reads registers; where no device answers, all bits are set, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(device).read(offset, data);
        }
    }

    /// Writes registers; where no device answers, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(device).write(offset, data);
        }
    }

    fn find(&self, address: u64, length: usize) -> Option<(u64, &Mutex<dyn BusDevice>)> {
        let (base, (size, device)) = self.devices.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(length as u64)?;
        (end <= *size).then_some((offset, device.as_ref()))
    }
}

/// Locks, also if another thread panicked while it held the lock. The device may then be in any
/// state, which affects only the guest.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Register(u8);

    impl BusDevice for Register {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::default();
        bus.insert(0x100, 0x10, Arc::new(Mutex::new(Register(1)))).unwrap();
        bus.insert(0x110, 0x10, Arc::new(Mutex::new(Register(2)))).unwrap();
        bus
    }

    #[test]
    fn accesses_reach_the_right_device() {
        let bus = bus();
        let mut byte = [0];
        bus.write(0x110, &[7]);
        bus.read(0x112, &mut byte);
        assert_eq!(byte, [9]);
        bus.read(0x10f, &mut byte);
        assert_eq!(byte, [16]);
    }

    #[test]
    fn accesses_across_an_end_or_to_nothing_read_as_ones() {
        let bus = bus();
        for address in [0, 0xff, 0x11f, 0x120, u64::MAX] {
            let mut word = [0, 0];
            bus.read(address, &mut word);
            assert_eq!(word, [0xff, 0xff], "{address:#x}");
            bus.write(address, &word);
        }
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = bus();
        for base in [0xf8, 0x100, 0x10f, 0x11f] {
            assert!(bus.insert(base, 0x10, Arc::new(Mutex::new(Register(0)))).is_err(), "{base:#x}");
        }
        assert!(bus.insert(0x120, 0x10, Arc::new(Mutex::new(Register(0)))).is_ok());
    }
}
