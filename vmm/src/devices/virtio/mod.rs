//! virtio devices over memory-mapped registers (Virtual I/O Device specification 1.2).

pub mod balloon;
pub mod block;
pub mod fs;
pub mod interrupt;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod queue_events;
pub mod rng;
pub mod slot;
pub mod vsock;
pub mod worker;

#[cfg(test)]
pub(crate) mod hostile;

use std::io;

pub use interrupt::Interrupt;
pub use queue::VirtQueue;

/// Device identifiers (section 5).
pub mod id {
    /// Network interface.
    pub const NET: u32 = 1;
    /// Disk.
    pub const BLOCK: u32 = 2;
    /// Console.
    pub const CONSOLE: u32 = 3;
    /// Entropy source.
    pub const RNG: u32 = 4;
    /// Memory balloon.
    pub const BALLOON: u32 = 5;
    /// Socket.
    pub const VSOCK: u32 = 19;
    /// File system.
    pub const FS: u32 = 26;
}

/// A device behind the transport.
///
/// Features that belong to the transport and the queues (section 6) are the transport's; a device
/// names only its own, bits 0 to 23 and 50 to 127, of which the first 64 exist.
pub trait VirtioDevice: Send {
    /// One of [`id`].
    fn id(&self) -> u32;
    /// The most entries that each queue may have: powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// The device's own features.
    fn features(&self) -> u64;
    /// Fills `data` from `offset` bytes into the device's configuration; what lies outside it
    /// stays as it is (zeros).
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// The driver is ready: `queues` are all set up, and `features` are those that it took.
    ///
    /// # Errors
    /// The device cannot start; the driver is told by the status register.
    fn activate(&mut self, queues: Vec<VirtQueue>, features: u64) -> io::Result<()>;
    /// The driver takes its queues away from the running device. False if the device cannot do
    /// without; only those that come and go while the VM runs need to.
    fn reset(&mut self) -> bool {
        false
    }
}

/// Copies the part of a device's `config` that an access of `data.len()` bytes at `offset` sees.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let Ok(offset) = usize::try_from(offset) else { return };
    let Some(rest) = config.get(offset..) else { return };
    let count = rest.len().min(data.len());
    data[..count].copy_from_slice(&rest[..count]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_beyond_the_configuration_read_zeros() {
        let read = |offset| {
            let mut data = [0; 2];
            read_config_bytes(&[1, 2, 3], offset, &mut data);
            data
        };
        assert_eq!([read(0), read(2), read(3), read(u64::MAX)], [[1, 2], [3, 0], [0, 0], [0, 0]]);
    }
}
