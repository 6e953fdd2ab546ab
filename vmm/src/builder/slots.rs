//! Devices that come while the VM runs.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VmFd;

use super::devices::{DeviceError, interrupt_line, wire};
use crate::arch::layout;
use crate::bus::lock;
use crate::config::NetworkConfig;
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::net::{Net, TapEvents};
use crate::devices::virtio::queue_events::QueueEvents;
use crate::devices::virtio::slot::Slot;
use crate::event_loop::Joiner;
use crate::memory::Memory;

/// A place without a device: its number among the virtio devices, and its registers.
pub type FreeSlot = (usize, Arc<Mutex<Slot>>);

/// The places of a VM for devices that come later.
pub struct Slots {
    pub(super) fd: Arc<VmFd>,
    pub(super) memory: Arc<Memory>,
    /// The next one is the last.
    pub(super) free: Vec<FreeSlot>,
    pub(super) joiner: Joiner,
}

impl Slots {
    /// Puts a network interface over `tap` into a place; returns it with the place's number. The
    /// guest's driver finds it there when it looks again.
    ///
    /// # Errors
    /// [`DeviceError`] if there is no place left, or the tap device is not usable.
    pub fn plug_net(
        &mut self,
        tap: OwnedFd,
        config: &NetworkConfig,
    ) -> Result<(Arc<Mutex<Net>>, usize), DeviceError> {
        let (number, slot) = self.free.last().cloned().ok_or(DeviceError::NoSlot)?;
        let net = Net::new(File::from(tap), config.mac, config.mtu)
            .map_err(|source| DeviceError::Net { mac: config.mac.into(), source })?;
        let net = Arc::new(Mutex::new(net));
        let interrupt = Arc::new(Interrupt::new(interrupt_line(&self.fd, layout::virtio_irq(number))?));
        let transport = MmioTransport::new(net.clone(), self.memory.clone(), interrupt)?;
        let kicks = wire(&self.fd, layout::virtio_base(number), &transport)?;
        self.free.pop();
        // The events first: the driver may start as soon as it sees the device.
        self.joiner.add(Arc::new(Mutex::new(QueueEvents::new(net.clone(), kicks))));
        self.joiner.add(Arc::new(Mutex::new(TapEvents(net.clone()))));
        lock(&slot).fill(transport);
        Ok((net, number))
    }
}
