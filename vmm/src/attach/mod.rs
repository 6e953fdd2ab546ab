//! Attaches devices to a VM, when it is built and while it runs.

mod slots;
mod spawner;

use std::io;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout;
use crate::bus::OverlapError;
use crate::devices::virtio::block::BlockError;
use crate::devices::virtio::mmio::{ACK_OFFSET, MmioTransport, NOTIFY_OFFSET, TransportError};
use crate::devices::virtio::net::TapError;
pub use slots::{FreeSlot, Plugged, Slots, Unplugging};
pub use spawner::Spawner;

/// A device could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There are too many.
    #[error(
        "the VM cannot have more than {} virtio devices, because no interrupt line is left",
        layout::MAX_VIRTIO_DEVICES
    )]
    TooMany,
    /// No slot is left.
    #[error("the VM has no slot left for another network interface")]
    NoSlot,
    /// No slot for a disk is left.
    #[error("the VM has no slot left for another disk")]
    NoDiskSlot,
    /// There is no such disk.
    #[error("virtio device {0} is not a disk that was added while the VM runs")]
    NoDisk(u32),
    /// The thread that starts the threads of disks could not be started.
    #[error("a thread for disks that are added later could not be started")]
    Spawner(#[source] io::Error),
    /// KVM refused its interrupt or its notifications.
    #[error("KVM refused the {kind} of a device")]
    Wire {
        /// What was refused.
        kind: &'static str,
        /// KVM's error.
        source: kvm_ioctls::Error,
    },
    /// No descriptor.
    #[error("a descriptor of a device could not be created")]
    Descriptor(#[source] io::Error),
    /// Registers overlap.
    #[error(transparent)]
    Overlap(#[from] OverlapError),
    /// The registers could not be created.
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

/// A descriptor that raises an interrupt line when it is written to.
pub fn interrupt_line(fd: &VmFd, irq: u32) -> Result<EventFd, DeviceError> {
    let line = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(DeviceError::Descriptor)?;
    fd.register_irqfd(&line, irq).map_err(|source| DeviceError::Wire { kind: "interrupt", source })?;
    Ok(line)
}

/// What KVM raises and writes for a device without an exit to this process.
pub struct Wires {
    /// The driver's notifications, one a queue.
    pub kicks: Vec<EventFd>,
    /// Its acknowledgements, which nothing reads.
    acknowledgement: EventFd,
}

impl Wires {
    /// Has KVM handle the driver's notifications and acknowledgements of the device at `base`.
    ///
    /// # Errors
    /// [`DeviceError`] if KVM refuses; then it handles none of them.
    pub fn connect(fd: &VmFd, base: u64, transport: &MmioTransport) -> Result<Self, DeviceError> {
        let kicks = transport.kicks().iter().map(EventFd::try_clone);
        let kicks = kicks.collect::<io::Result<Vec<_>>>().map_err(DeviceError::Descriptor)?;
        let acknowledgement =
            EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(DeviceError::Descriptor)?;
        let wires = Wires { kicks, acknowledgement };
        let connected = wires.register(fd, base);
        if connected.is_err() {
            wires.disconnect(fd, base);
        }
        connected.map(|()| wires)
    }

    fn register(&self, fd: &VmFd, base: u64) -> Result<(), DeviceError> {
        for (index, kick) in (0u32..).zip(&self.kicks) {
            let address = IoEventAddress::Mmio(base + NOTIFY_OFFSET);
            fd.register_ioevent(kick, &address, index)
                .map_err(|source| DeviceError::Wire { kind: "notifications", source })?;
        }
        fd.register_ioevent(&self.acknowledgement, &IoEventAddress::Mmio(base + ACK_OFFSET), NoDatamatch)
            .map_err(|source| DeviceError::Wire { kind: "acknowledgement", source })
    }

    /// Undoes [`connect`](Self::connect).
    pub fn disconnect(&self, fd: &VmFd, base: u64) {
        // KVM refuses what it does not handle.
        for (index, kick) in (0u32..).zip(&self.kicks) {
            let _ = fd.unregister_ioevent(kick, &IoEventAddress::Mmio(base + NOTIFY_OFFSET), index);
        }
        let address = IoEventAddress::Mmio(base + ACK_OFFSET);
        let _ = fd.unregister_ioevent(&self.acknowledgement, &address, NoDatamatch);
    }
}
