//! Devices that are attached while the VM runs, and disks that are detached again.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VmFd;
use pouch_vmm_api::config::{DiskConfig, NetworkConfig};
use vmm_sys_util::eventfd::EventFd;

use super::{DeviceError, Spawner, Wires, interrupt_line};
use crate::arch::layout;
use crate::bus::lock;
use crate::devices::virtio::block::{self, Block, BlockError};
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

/// A disk in its slot.
struct PluggedDisk {
    slot: FreeSlot,
    wires: Wires,
    /// Its interrupt line.
    line: EventFd,
    /// Becomes readable when its thread has ended.
    ended: EventFd,
}

/// A disk that the guest has no more, but whose thread may still work on a request.
pub struct Unplugging {
    slot: FreeSlot,
    /// Becomes readable when its thread has ended and its file is closed.
    pub ended: EventFd,
}

/// The slots of a VM for devices that are attached later.
pub struct Slots {
    pub(crate) fd: Arc<VmFd>,
    pub(crate) memory: Arc<Memory>,
    /// Those for network interfaces; the last one is used first.
    pub(crate) free: Vec<FreeSlot>,
    pub(crate) joiner: Joiner,
    /// Those for disks; the first one is used first.
    pub(crate) free_for_disks: VecDeque<FreeSlot>,
    /// Starts the threads of disks; none without slots for them.
    pub(crate) spawner: Option<Spawner>,
    disks: Vec<PluggedDisk>,
}

impl Slots {
    /// The slots of the VM `fd`, all of them free.
    pub fn new(
        fd: Arc<VmFd>,
        memory: Arc<Memory>,
        joiner: Joiner,
        mut for_networks: Vec<FreeSlot>,
        for_disks: Vec<FreeSlot>,
    ) -> Result<Self, DeviceError> {
        let spawner = if for_disks.is_empty() { None } else { Some(Spawner::start()) };
        let spawner = spawner.transpose().map_err(DeviceError::Spawner)?;
        for_networks.reverse();
        let free_for_disks = for_disks.into();
        Ok(Slots { fd, memory, free: for_networks, joiner, free_for_disks, spawner, disks: Vec::new() })
    }

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
        let (transport, wires, _) = self.wire(number, device)?;
        self.free.pop();
        // The events first: the driver may start as soon as it sees the device.
        attend(&self.joiner, wires.kicks);
        lock(&slot).fill(transport);
        Ok(())
    }

    /// The registers of a device for the slot with this number, its wires, and its interrupt line.
    fn wire(
        &self,
        number: usize,
        device: Arc<Mutex<dyn VirtioDevice>>,
    ) -> Result<(MmioTransport, Wires, EventFd), DeviceError> {
        // It is KVM's as long as one of its descriptors is open.
        let line = interrupt_line(&self.fd, layout::virtio_irq(number))?;
        let interrupt = line.try_clone().map_err(DeviceError::Descriptor)?;
        let transport = MmioTransport::new(device, self.memory.clone(), Arc::new(Interrupt::new(interrupt)))?;
        let wires = Wires::connect(&self.fd, layout::virtio_base(number), &transport)?;
        Ok((transport, wires, line))
    }

    /// Attaches a disk with the content of `file` to a slot; returns the slot's number. The guest's driver finds it when
    /// it probes the slot again.
    ///
    /// # Errors
    /// [`DeviceError`] if no slot is left, or a thread or a descriptor cannot be made.
    pub fn plug_disk(&mut self, file: File, config: &DiskConfig) -> Result<usize, DeviceError> {
        let slot = self.free_for_disks.front().cloned().ok_or(DeviceError::NoDiskSlot)?;
        let spawner = self.spawner.as_ref().ok_or(DeviceError::NoDiskSlot)?;
        let new_event = || EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
        let ended = new_event().map_err(DeviceError::Descriptor)?;
        let at_end = ended.try_clone().map_err(DeviceError::Descriptor)?;
        let (block, worker) = Block::without_thread(file, config.size, &config.serial, config.read_only);
        let number = slot.0;
        let (transport, wires, line) = self.wire(number, Arc::new(Mutex::new(block)))?;
        let work = move || {
            worker.run();
            // Its counter is zero.
            let _ = at_end.write(1);
        };
        if let Err(source) = spawner.spawn(block::thread_name(&config.serial), work) {
            self.cut(number, &wires, &line);
            return Err(BlockError::Thread { serial: config.serial.clone(), source }.into());
        }
        self.free_for_disks.pop_front();
        lock(&slot.1).fill(transport);
        self.disks.push(PluggedDisk { slot, wires, line, ended });
        Ok(number)
    }

    /// Takes the disk in the slot with this number from the guest, whatever its driver does. The slot is not free before
    /// [`release`](Self::release).
    ///
    /// # Errors
    /// [`DeviceError`] if there is no such disk.
    pub fn unplug_disk(&mut self, number: u32) -> Result<Unplugging, DeviceError> {
        let index = self.disks.iter().position(|disk| disk.slot.0 as u64 == u64::from(number));
        let PluggedDisk { slot, wires, line, ended } =
            self.disks.swap_remove(index.ok_or(DeviceError::NoDisk(number))?);
        // With the registers goes the device, and so its thread leaves the queue and ends.
        drop(lock(&slot.1).empty());
        self.cut(slot.0, &wires, &line);
        Ok(Unplugging { slot, ended })
    }

    /// Makes the slot of a disk free whose thread has ended.
    pub fn release(&mut self, unplugged: Unplugging) {
        self.free_for_disks.push_back(unplugged.slot);
    }

    /// Has KVM forget the wires of a device.
    fn cut(&self, number: usize, wires: &Wires, line: &EventFd) {
        wires.disconnect(&self.fd, layout::virtio_base(number));
        if let Err(error) = self.fd.unregister_irqfd(line, layout::virtio_irq(number)) {
            crate::log_line!("KVM keeps the interrupt of a disk that was removed: {error}");
        }
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
