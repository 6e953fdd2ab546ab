//! Attaches devices to a VM that is being built.

use std::fs::File;
use std::sync::{Arc, Mutex};

use kvm_ioctls::VmFd;
use pouch_vmm_api::config::BlockConfig;
use vmm_sys_util::eventfd::EventFd;

use super::command_line::CommandLine;
use crate::arch::layout;
use crate::attach::{DeviceError, FreeSlot, Wires, interrupt_line};
use crate::bus::{Bus, BusDevice};
use crate::devices::serial::SerialPort;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::fs::{Fs, ShareRoot};
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::queue_events::{LoopDevice, QueueEvents};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::slot::Slot;
use crate::devices::virtio::vsock::{StreamEvents, Vsock};
use crate::devices::virtio::{Interrupt, VirtioDevice};
use crate::event_loop::EventLoop;
use crate::jail::seccomp::ThreadKind;
use crate::memory::Memory;

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

    /// A slot for a device that is attached later.
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
        let wires = Wires::connect(self.fd, layout::virtio_base(self.count), &transport)?;
        self.registers(Arc::new(Mutex::new(transport)))?;
        Ok(wires.kicks)
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
