//! Attaches devices to a VM, when it is built and while it runs.

mod slots;

use std::io;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::layout;
use crate::bus::OverlapError;
use crate::devices::virtio::block::BlockError;
use crate::devices::virtio::mmio::{ACK_OFFSET, MmioTransport, NOTIFY_OFFSET, TransportError};
use crate::devices::virtio::net::TapError;
pub use slots::{FreeSlot, Plugged, Slots};

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

/// Has KVM handle the driver's notifications and acknowledgements without an exit to this process;
/// returns the descriptors of the notifications.
pub fn wire(fd: &VmFd, base: u64, transport: &MmioTransport) -> Result<Vec<EventFd>, DeviceError> {
    let mut kicks = Vec::with_capacity(transport.kicks().len());
    for (index, kick) in (0u32..).zip(transport.kicks()) {
        let address = IoEventAddress::Mmio(base + NOTIFY_OFFSET);
        fd.register_ioevent(kick, &address, index)
            .map_err(|source| DeviceError::Wire { kind: "notifications", source })?;
        kicks.push(kick.try_clone().map_err(DeviceError::Descriptor)?);
    }
    // KVM keeps a reference to the eventfd; nothing reads it.
    let ignored = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(DeviceError::Descriptor)?;
    fd.register_ioevent(&ignored, &IoEventAddress::Mmio(base + ACK_OFFSET), NoDatamatch)
        .map_err(|source| DeviceError::Wire { kind: "acknowledgement", source })?;
    Ok(kicks)
}
