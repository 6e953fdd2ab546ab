//! The virtio-mmio transport: a page of registers for each device (section 4.2).

use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::{Interrupt, VirtQueue, VirtioDevice};
use crate::bus::{BusDevice, lock};
use crate::memory::Memory;

/// Register offsets (table 4.1).
mod register {
    pub const MAGIC: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE_ID: u64 = 0x08;
    pub const VENDOR_ID: u64 = 0x0c;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x24;
    pub const QUEUE_SELECT: u64 = 0x30;
    pub const QUEUE_SIZE_MAX: u64 = 0x34;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESC_LOW: u64 = 0x80;
    pub const QUEUE_DESC_HIGH: u64 = 0x84;
    pub const QUEUE_DRIVER_LOW: u64 = 0x90;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x94;
    pub const QUEUE_DEVICE_LOW: u64 = 0xa0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0xa4;
    pub const SHM_LENGTH_LOW: u64 = 0xb0;
    pub const SHM_BASE_HIGH: u64 = 0xbc;
    pub const CONFIG_GENERATION: u64 = 0xfc;
    pub const CONFIG: u64 = 0x100;
}

/// Where a driver writes the number of the queue that it notifies, for the ioeventfd.
pub const NOTIFY_OFFSET: u64 = register::QUEUE_NOTIFY;
/// Where a driver acknowledges an interrupt. This has no effect, so KVM can handle the write without an exit to
/// this process: an interrupt causes one exit instead of two.
pub const ACK_OFFSET: u64 = register::INTERRUPT_ACK;

/// "virt"
const MAGIC: u32 = 0x7472_6976;
/// Not a legacy device.
const VERSION: u32 = 2;
/// "POUC"
const VENDOR: u32 = 0x434f_5550;

/// What the queues and this transport can do.
pub const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Status before the driver may choose features.
const STATUS_DRIVER: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
/// Status before the driver may set up queues.
const STATUS_FEATURES: u32 = STATUS_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
/// Status of a running device.
const STATUS_RUNNING: u32 = STATUS_FEATURES | VIRTIO_CONFIG_S_DRIVER_OK;

/// The device ID of an empty slot: a placeholder with the ID 0 and no function.
pub fn placeholder_register(offset: u64) -> u32 {
    match offset {
        register::MAGIC => MAGIC,
        register::VERSION => VERSION,
        _ => 0,
    }
}

/// The registers of one device.
pub struct MmioTransport {
    device: Arc<Mutex<dyn VirtioDevice>>,
    memory: Arc<Memory>,
    interrupt: Arc<Interrupt>,
    queues: Vec<Queue>,
    kicks: Vec<EventFd>,
    status: u32,
    queue_select: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    activated: bool,
}

/// A transport could not be created.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The device's queue size is invalid.
    #[error("a device has a queue of {0} entries, which is not valid")]
    QueueSize(u16),
    /// No descriptor for notifications.
    #[error("a descriptor for a queue's notifications could not be created")]
    Kick(#[source] std::io::Error),
}

impl MmioTransport {
    /// The registers for `device`.
    ///
    /// # Errors
    /// [`TransportError`] if the device's queues cannot be made.
    pub fn new(
        device: Arc<Mutex<dyn VirtioDevice>>,
        memory: Arc<Memory>,
        interrupt: Arc<Interrupt>,
    ) -> Result<Self, TransportError> {
        let sizes = lock(&device).queue_sizes().to_vec();
        let mut queues = Vec::with_capacity(sizes.len());
        let mut kicks = Vec::with_capacity(sizes.len());
        for size in sizes {
            queues.push(Queue::new(size).map_err(|_| TransportError::QueueSize(size))?);
            kicks.push(EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(TransportError::Kick)?);
        }
        Ok(MmioTransport {
            device,
            memory,
            interrupt,
            queues,
            kicks,
            status: 0,
            queue_select: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            activated: false,
        })
    }

    /// The descriptors through which the driver notifies the queues, to register with KVM.
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    fn offered_features(&self) -> u64 {
        lock(&self.device).features() | TRANSPORT_FEATURES
    }

    fn selected_queue(&mut self) -> Option<&mut Queue> {
        // Queues are set up between FEATURES_OK and DRIVER_OK (section 3.1.1). Later changes would affect
        // memory that the device uses.
        let settable = self.status == STATUS_FEATURES;
        self.queues.get_mut(self.queue_select as usize).filter(|_| settable)
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::DEVICE_ID => lock(&self.device).id(),
            register::VENDOR_ID => VENDOR,
            register::DEVICE_FEATURES => match self.device_features_select {
                0 => self.offered_features() as u32,
                1 => (self.offered_features() >> 32) as u32,
                _ => 0,
            },
            register::QUEUE_SIZE_MAX => {
                self.queues.get(self.queue_select as usize).map_or(0, |queue| queue.max_size().into())
            }
            register::QUEUE_READY => {
                self.queues.get(self.queue_select as usize).map_or(0, |queue| queue.ready().into())
            }
            register::INTERRUPT_STATUS => self.interrupt.take_status(),
            register::STATUS => self.status,
            // No shared memory regions: a length of all ones (section 4.2.2).
            register::SHM_LENGTH_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            // Configurations change in single fields only, so reads are consistent.
            register::CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SELECT => self.device_features_select = value,
            register::DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            register::DRIVER_FEATURES if self.status == STATUS_DRIVER => {
                let mask = u64::from(u32::MAX);
                match self.driver_features_select {
                    0 => self.driver_features = self.driver_features & !mask | u64::from(value),
                    1 => self.driver_features = self.driver_features & mask | u64::from(value) << 32,
                    _ => {}
                }
            }
            register::QUEUE_SELECT => self.queue_select = value,
            // Reached only when no ioeventfd is registered.
            register::QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    let _ = kick.write(1);
                }
            }
            // The driver acknowledges what it has read, and reading has taken that away already.
            register::INTERRUPT_ACK => {}
            register::STATUS => self.write_status(value),
            _ => self.write_queue_register(offset, value),
        }
    }

    fn write_queue_register(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.selected_queue() else { return };
        match offset {
            // An invalid size makes the queue invalid, which activation checks.
            register::QUEUE_SIZE => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::QUEUE_READY => queue.set_ready(value == 1),
            register::QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER_LOW => queue.set_avail_ring_address(Some(value), None),
            register::QUEUE_DRIVER_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE_LOW => queue.set_used_ring_address(Some(value), None),
            register::QUEUE_DEVICE_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// The driver's steps through the initialisation (section 3.1.1): each adds one bit.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let added = value & !self.status;
        if value & self.status != self.status || value & VIRTIO_CONFIG_S_FAILED != 0 {
            self.status |= VIRTIO_CONFIG_S_FAILED;
            return;
        }
        match (self.status, added) {
            (0, VIRTIO_CONFIG_S_ACKNOWLEDGE) | (VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER) => {
                self.status = value;
            }
            (0, STATUS_DRIVER) => self.status = value,
            (STATUS_DRIVER, VIRTIO_CONFIG_S_FEATURES_OK) => {
                // The bit stays clear if the driver took features that were not offered.
                let known = self.driver_features & !self.offered_features() == 0;
                if known && self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0 {
                    self.status = value;
                }
            }
            (STATUS_FEATURES, VIRTIO_CONFIG_S_DRIVER_OK) => self.activate(),
            (_, 0) => {}
            _ => self.status |= VIRTIO_CONFIG_S_FAILED,
        }
    }

    fn activate(&mut self) {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut ready = Vec::with_capacity(self.queues.len());
        for (index, (queue, kick)) in self.queues.iter_mut().zip(&self.kicks).enumerate() {
            queue.set_event_idx(event_idx);
            let copy = Queue::try_from(queue.state()).ok().filter(|_| queue.is_valid(self.memory.as_ref()));
            let (Some(copy), Ok(kick)) = (copy, kick.try_clone()) else {
                crate::log_line!("queue {index} of device type {} is not valid", lock(&self.device).id());
                self.status |= VIRTIO_CONFIG_S_FAILED;
                return;
            };
            ready.push(VirtQueue::new(copy, self.memory.clone(), kick, self.interrupt.clone()));
        }
        // Not in the `match`, which would hold the lock over its arms.
        let activated = lock(&self.device).activate(ready, self.driver_features);
        match activated {
            Ok(()) => {
                self.status = STATUS_RUNNING;
                self.activated = true;
            }
            Err(error) => {
                crate::log_line!("device type {} does not start: {error}", lock(&self.device).id());
                self.status |= VIRTIO_CONFIG_S_FAILED;
            }
        }
    }

    /// Resets the device. A running device that cannot be reset sets FAILED, and the driver gives it
    /// up. Supported guests reset such devices only at shutdown.
    fn reset(&mut self) {
        if self.activated && !lock(&self.device).reset() {
            self.status |= VIRTIO_CONFIG_S_FAILED;
            return;
        }
        self.activated = false;
        self.status = 0;
        self.driver_features = 0;
        self.interrupt.take_status();
        for queue in &mut self.queues {
            queue.reset();
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= register::CONFIG {
            lock(&self.device).read_config(offset - register::CONFIG, data);
        } else if let Ok(word) = <&mut [u8; 4]>::try_from(data) {
            *word = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // No device has a configuration that a driver may write.
        if offset < register::CONFIG
            && let Ok(word) = <[u8; 4]>::try_from(data)
        {
            self.write_register(offset, u32::from_le_bytes(word));
        }
    }
}
