//! Attaches devices to a VM that is being built.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::command_line::CommandLine;
use super::slots::FreeSlot;
use crate::arch::layout;
use crate::bus::{Bus, BusDevice, OverlapError};
use crate::devices::serial::SerialPort;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::block::{Block, BlockError};
use crate::devices::virtio::fs::{Fs, ShareRoot};
use crate::devices::virtio::mmio::{ACK_OFFSET, MmioTransport, NOTIFY_OFFSET, TransportError};
use crate::devices::virtio::net::TapError;
use crate::devices::virtio::queue_events::{LoopDevice, QueueEvents};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::slot::Slot;
use crate::devices::virtio::vsock::{StreamEvents, Vsock};
use crate::devices::virtio::{Interrupt, VirtioDevice};
use crate::event_loop::EventLoop;
use crate::jail::seccomp::ThreadKind;
use crate::memory::Memory;
use pouch_vmm_api::config::BlockConfig;

/// A device could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There are too many.
    #[error(
        "the VM would have more than {} virtio devices, and there is no interrupt line left",
        layout::MAX_VIRTIO_DEVICES
    )]
    TooMany,
    /// No place for one that comes later.
    #[error("the VM has no place left for a device that comes while it runs")]
    NoSlot,
    /// KVM refused its interrupt or its notifications.
    #[error("KVM refused the {kind} of a device")]
    Wire {
        /// What was refused.
        kind: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// No descriptor.
    #[error("a descriptor of a device could not be made")]
    Descriptor(#[source] io::Error),
    /// Registers overlap.
    #[error(transparent)]
    Overlap(#[from] OverlapError),
    /// The registers could not be made.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// A disk is not usable.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A tap device is not usable.
    #[error("the network interface {mac} is not usable")]
    Net {
        /// Its address.
        mac: String,
        /// Why.
        source: TapError,
    },
    /// The share's thread could not be started.
    #[error("the thread of the shared file system could not be started")]
    ShareThread(#[source] io::Error),
}

/// Where devices go.
pub struct Attach<'a> {
    pub fd: &'a VmFd,
    pub memory: &'a Arc<Memory>,
    pub ports: &'a mut Bus,
    pub mmio: &'a mut Bus,
    pub event_loop: &'a mut EventLoop,
    pub command_line: &'a mut CommandLine,
    /// virtio devices so far.
    pub count: usize,
}

impl Attach<'_> {
    /// The serial port, writing to `output`.
    pub fn serial(&mut self, output: File) -> Result<(), DeviceError> {
        let line = interrupt_line(self.fd, layout::SERIAL_IRQ)?;
        let serial = Arc::new(Mutex::new(SerialPort::new(line, output)));
        Ok(self.ports.insert(layout::SERIAL_PORT, layout::SERIAL_PORT_SIZE, serial)?)
    }

    /// The socket device.
    pub fn vsock(&mut self, cid: u32) -> Result<Arc<Mutex<Vsock>>, DeviceError> {
        let vsock = Arc::new(Mutex::new(Vsock::new(cid).map_err(DeviceError::Descriptor)?));
        let interrupt = self.next_interrupt()?;
        self.on_event_loop(vsock.clone(), interrupt)?;
        self.event_loop.add(Arc::new(Mutex::new(StreamEvents::new(vsock.clone()))));
        Ok(vsock)
    }

    /// The shared file system.
    pub fn share(&mut self, root: ShareRoot, tag: &str) -> Result<(), DeviceError> {
        let fs = Fs::new(root, tag, || ThreadKind::Fs.enter()).map_err(DeviceError::ShareThread)?;
        let interrupt = self.next_interrupt()?;
        self.virtio(Arc::new(Mutex::new(fs)), interrupt).map(drop)
    }

    /// A disk.
    pub fn block(&mut self, file: File, config: &BlockConfig) -> Result<(), DeviceError> {
        let block = Block::new(file, &config.serial, config.read_only, || ThreadKind::Block.enter())?;
        let interrupt = self.next_interrupt()?;
        self.virtio(Arc::new(Mutex::new(block)), interrupt).map(drop)
    }

    /// A place for a device that comes later.
    pub fn slot(&mut self) -> Result<FreeSlot, DeviceError> {
        self.check_room()?;
        let slot = Arc::new(Mutex::new(Slot::default()));
        self.registers(slot.clone())?;
        Ok((self.count - 1, slot))
    }

    /// The balloon.
    pub fn balloon(&mut self) -> Result<Arc<Mutex<Balloon>>, DeviceError> {
        let interrupt = self.next_interrupt()?;
        let balloon = Arc::new(Mutex::new(Balloon::default()));
        self.on_event_loop(balloon.clone(), interrupt)?;
        Ok(balloon)
    }

    /// The entropy device.
    pub fn rng(&mut self) -> Result<(), DeviceError> {
        let interrupt = self.next_interrupt()?;
        self.on_event_loop(Arc::new(Mutex::new(Rng::default())), interrupt)
    }

    fn on_event_loop<D>(
        &mut self,
        device: Arc<Mutex<D>>,
        interrupt: Arc<Interrupt>,
    ) -> Result<(), DeviceError>
    where
        D: VirtioDevice + LoopDevice + 'static,
    {
        let kicks = self.virtio(device.clone(), interrupt)?;
        self.event_loop.add(Arc::new(Mutex::new(QueueEvents::new(device, kicks))));
        Ok(())
    }

    fn check_room(&self) -> Result<(), DeviceError> {
        if self.count < layout::MAX_VIRTIO_DEVICES { Ok(()) } else { Err(DeviceError::TooMany) }
    }

    fn next_interrupt(&self) -> Result<Arc<Interrupt>, DeviceError> {
        self.check_room()?;
        Ok(Arc::new(Interrupt::new(interrupt_line(self.fd, layout::virtio_irq(self.count))?)))
    }

    /// Gives a device its registers, its notifications and its place on the command line; returns
    /// the descriptors of the notifications.
    fn virtio(
        &mut self,
        device: Arc<Mutex<dyn VirtioDevice>>,
        interrupt: Arc<Interrupt>,
    ) -> Result<Vec<EventFd>, DeviceError> {
        let transport = MmioTransport::new(device, self.memory.clone(), interrupt)?;
        let kicks = wire(self.fd, layout::virtio_base(self.count), &transport)?;
        self.registers(Arc::new(Mutex::new(transport)))?;
        Ok(kicks)
    }

    /// Places the next virtio device's registers, and tells the guest where they are.
    fn registers(&mut self, registers: Arc<Mutex<dyn BusDevice>>) -> Result<(), DeviceError> {
        let base = layout::virtio_base(self.count);
        self.mmio.insert(base, layout::VIRTIO_MMIO_SIZE, registers)?;
        self.command_line.add_virtio(base, layout::virtio_irq(self.count));
        self.count += 1;
        Ok(())
    }
}

/// A descriptor that raises an interrupt line when it is written to.
pub fn interrupt_line(fd: &VmFd, irq: u32) -> Result<EventFd, DeviceError> {
    let line = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(DeviceError::Descriptor)?;
    fd.register_irqfd(&line, irq).map_err(|source| DeviceError::Wire { kind: "interrupt", source })?;
    Ok(line)
}

/// Has KVM take the driver's notifications and acknowledgements without leaving to this process;
/// returns the descriptors of the notifications.
pub fn wire(fd: &VmFd, base: u64, transport: &MmioTransport) -> Result<Vec<EventFd>, DeviceError> {
    let mut kicks = Vec::with_capacity(transport.kicks().len());
    for (index, kick) in (0u32..).zip(transport.kicks()) {
        let address = IoEventAddress::Mmio(base + NOTIFY_OFFSET);
        fd.register_ioevent(kick, &address, index)
            .map_err(|source| DeviceError::Wire { kind: "notifications", source })?;
        kicks.push(kick.try_clone().map_err(DeviceError::Descriptor)?);
    }
    // KVM keeps what it needs of this descriptor; nobody reads it.
    let ignored = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(DeviceError::Descriptor)?;
    fd.register_ioevent(&ignored, &IoEventAddress::Mmio(base + ACK_OFFSET), NoDatamatch)
        .map_err(|source| DeviceError::Wire { kind: "acknowledgement", source })?;
    Ok(kicks)
}
