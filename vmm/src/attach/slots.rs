//! Devices that are attached while the VM runs.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VmFd;
use pouch_vmm_api::config::NetworkConfig;
use vmm_sys_util::eventfd::EventFd;

use super::{DeviceError, interrupt_line, wire};
use crate::arch::layout;
use crate::bus::lock;
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::net::{Net, Tap, TapEvents, VhostNet, config_space};
use crate::devices::virtio::queue_events::QueueEvents;
use crate::devices::virtio::slot::Slot;
use crate::devices::virtio::{Interrupt, VirtioDevice};
use crate::event_loop::Joiner;
use crate::memory::Memory;
use pouch_errors::chain;

/// An empty slot: its number among the virtio devices, and its registers.
pub type FreeSlot = (usize, Arc<Mutex<Slot>>);

/// How the frames of a plugged-in interface are moved.
pub enum Plugged {
    /// By this process, which counts them.
    EventLoop(Arc<Mutex<Net>>),
    /// The host's kernel.
    Kernel,
}

/// The slots of a VM for devices that are attached later.
pub struct Slots {
    pub(crate) fd: Arc<VmFd>,
    pub(crate) memory: Arc<Memory>,
    /// The last one is used first.
    pub(crate) free: Vec<FreeSlot>,
    pub(crate) joiner: Joiner,
}

impl Slots {
    /// Attaches a network interface over `tap` to a slot; returns the slot's number. The guest's driver finds it when it
    /// probes the slot again. With an open `/dev/vhost-net` the host kernel moves the frames, unless it refuses;
    /// otherwise the event loop does.
    ///
    /// # Errors
    /// [`DeviceError`] if no slot is left, or the tap device is not usable.
    pub fn plug_net(
        &mut self,
        tap: OwnedFd,
        vhost: Option<OwnedFd>,
        config: &NetworkConfig,
    ) -> Result<(Plugged, usize), DeviceError> {
        let number = self.free.last().ok_or(DeviceError::NoSlot)?.0;
        let unusable = |source| DeviceError::Net { mac: config.mac.into(), source };
        let open = |tap: OwnedFd| Tap::new(File::from(tap)).map_err(unusable);
        let space = config_space(config);
        if let Some(vhost) = vhost {
            let second = tap.try_clone().map_err(DeviceError::Descriptor)?;
            match VhostNet::new(File::from(vhost), open(second)?, space, self.memory.clone()) {
                Ok(net) => {
                    self.fill(Arc::new(Mutex::new(net)), |_, _| {})?;
                    return Ok((Plugged::Kernel, number));
                }
                Err(error) => crate::log_line!("vhost-net is not used for this interface: {}", chain(&error)),
            }
        }
        let net = Arc::new(Mutex::new(Net::new(open(tap)?, space)));
        self.fill(net.clone(), |joiner, kicks| {
            joiner.add(Arc::new(Mutex::new(QueueEvents::new(net.clone(), kicks))));
            joiner.add(Arc::new(Mutex::new(TapEvents(net.clone()))));
        })?;
        Ok((Plugged::EventLoop(net), number))
    }

    /// Attaches a device to the last slot; `attend` gets the driver's notifications.
    fn fill(
        &mut self,
        device: Arc<Mutex<dyn VirtioDevice>>,
        attend: impl FnOnce(&Joiner, Vec<EventFd>),
    ) -> Result<(), DeviceError> {
        let (number, slot) = self.free.last().cloned().ok_or(DeviceError::NoSlot)?;
        let interrupt = Arc::new(Interrupt::new(interrupt_line(&self.fd, layout::virtio_irq(number))?));
        let transport = MmioTransport::new(device, self.memory.clone(), interrupt)?;
        let kicks = wire(&self.fd, layout::virtio_base(number), &transport)?;
        self.free.pop();
        // The events first: the driver may start as soon as it sees the device.
        attend(&self.joiner, kicks);
        lock(&slot).fill(transport);
        Ok(())
    }
}
