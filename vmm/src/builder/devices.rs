//! Attaches devices to a VM that is being built.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::command_line::CommandLine;
use crate::arch::layout;
use crate::bus::{Bus, OverlapError};
use crate::config::{BlockConfig, NetworkConfig};
use crate::devices::serial::SerialPort;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::block::{Block, BlockError};
use crate::devices::virtio::fs::{Fs, ShareRoot};
use crate::devices::virtio::mmio::{ACK_OFFSET, MmioTransport, NOTIFY_OFFSET, TransportError};
use crate::devices::virtio::net::{Net, TapError, TapEvents};
use crate::devices::virtio::queue_events::{LoopDevice, QueueEvents};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::{StreamEvents, Vsock};
use crate::devices::virtio::{Interrupt, VirtioDevice};
use crate::event_loop::EventLoop;
use crate::jail::seccomp::ThreadKind;
use crate::memory::Memory;

/// A device could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There are too many.
    #[error(
        "the VM would have more than {} virtio devices, and there is no interrupt line left",
        layout::MAX_VIRTIO_DEVICES
    )]
    TooMany,
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
        let line = self.interrupt_line(layout::SERIAL_IRQ)?;
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

    /// A network interface.
    pub fn net(&mut self, tap: File, config: &NetworkConfig) -> Result<Arc<Mutex<Net>>, DeviceError> {
        let net = Net::new(tap, config.mac, config.mtu)
            .map_err(|source| DeviceError::Net { mac: config.mac.into(), source })?;
        let net = Arc::new(Mutex::new(net));
        let interrupt = self.next_interrupt()?;
        self.on_event_loop(net.clone(), interrupt)?;
        self.event_loop.add(Arc::new(Mutex::new(TapEvents(net.clone()))));
        Ok(net)
    }

    /// The balloon.
    pub fn balloon(&mut self) -> Result<Arc<Mutex<Balloon>>, DeviceError> {
        let interrupt = self.next_interrupt()?;
        let balloon = Arc::new(Mutex::new(Balloon::new(interrupt.clone())));
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

    fn interrupt_line(&self, irq: u32) -> Result<EventFd, DeviceError> {
        let line = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(DeviceError::Descriptor)?;
        self.fd
            .register_irqfd(&line, irq)
            .map_err(|source| DeviceError::Wire { kind: "interrupt", source })?;
        Ok(line)
    }

    fn next_irq(&self) -> u32 {
        // At most MAX_VIRTIO_DEVICES, which next_interrupt checks.
        layout::VIRTIO_IRQ_BASE + self.count as u32
    }

    fn next_interrupt(&self) -> Result<Arc<Interrupt>, DeviceError> {
        if self.count >= layout::MAX_VIRTIO_DEVICES {
            return Err(DeviceError::TooMany);
        }
        Ok(Arc::new(Interrupt::new(self.interrupt_line(self.next_irq())?)))
    }

    /// Gives a device its registers, its notifications and its place on the command line; returns
    /// the descriptors of the notifications.
    fn virtio(
        &mut self,
        device: Arc<Mutex<dyn VirtioDevice>>,
        interrupt: Arc<Interrupt>,
    ) -> Result<Vec<EventFd>, DeviceError> {
        let base = layout::VIRTIO_MMIO_BASE + self.count as u64 * layout::VIRTIO_MMIO_SIZE;
        let transport = MmioTransport::new(device, self.memory.clone(), interrupt)?;
        let mut kicks = Vec::with_capacity(transport.kicks().len());
        for (index, kick) in (0u32..).zip(transport.kicks()) {
            // KVM takes the driver's notification without leaving to this process.
            let address = IoEventAddress::Mmio(base + NOTIFY_OFFSET);
            self.fd
                .register_ioevent(kick, &address, index)
                .map_err(|source| DeviceError::Wire { kind: "notifications", source })?;
            kicks.push(kick.try_clone().map_err(DeviceError::Descriptor)?);
        }
        // KVM keeps what it needs of this descriptor; nobody reads it.
        let ignored =
            EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(DeviceError::Descriptor)?;
        self.fd
            .register_ioevent(&ignored, &IoEventAddress::Mmio(base + ACK_OFFSET), NoDatamatch)
            .map_err(|source| DeviceError::Wire { kind: "acknowledgement", source })?;
        self.mmio.insert(base, layout::VIRTIO_MMIO_SIZE, Arc::new(Mutex::new(transport)))?;
        self.command_line.add_virtio(base, self.next_irq());
        self.count += 1;
        Ok(kicks)
    }
}
