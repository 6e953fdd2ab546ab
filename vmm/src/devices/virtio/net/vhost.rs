//! A network interface with vhost-net: the host kernel moves frames between the queues and a tap device.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vhost::net::VhostNet as NetBackend;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::vhost_binding::{
    VHOST_F_LOG_ALL, VHOST_NET_F_VIRTIO_NET_HDR, VHOST_NET_SET_BACKEND, vhost_vring_file,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::QueueT;
use vm_memory::GuestMemory;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::{FEATURES, QUEUE_SIZES, Tap};
use crate::devices::virtio::mmio::TRANSPORT_FEATURES;
use crate::devices::virtio::{VirtQueue, VirtioDevice, id, read_config_bytes};
use crate::memory::Memory;

/// Features that the host kernel must support, because they are offered to the driver.
const NEEDED: u64 = TRANSPORT_FEATURES | 1 << VIRTIO_NET_F_MRG_RXBUF;
/// Features that are not used: headers of its own (the tap device has them) and a log of writes.
const UNWANTED: u64 = 1 << VHOST_NET_F_VIRTIO_NET_HDR | 1 << VHOST_F_LOG_ALL;

/// The descriptor cannot serve an interface.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// The kernel refuses.
    #[error("vhost-net could not {what}")]
    Refused {
        /// The request.
        what: &'static str,
        /// Its error.
        source: vhost::Error,
    },
    /// It lacks features that are offered to the driver.
    #[error("vhost-net has the features {found:#x}, but {NEEDED:#x} are needed")]
    Features {
        /// Its features.
        found: u64,
    },
}

/// An open `/dev/vhost-net`.
struct Kernel {
    file: File,
    memory: Arc<Memory>,
}

impl AsRawFd for Kernel {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl VhostKernBackend for Kernel {
    type AS = Arc<Memory>;

    fn mem(&self) -> &Self::AS {
        &self.memory
    }
}

impl NetBackend for Kernel {
    fn set_backend(&self, queue_index: usize, backend: Option<&File>) -> vhost::Result<()> {
        let vring = vhost_vring_file {
            // There are two queues.
            index: queue_index as u32,
            fd: backend.map_or(-1, AsRawFd::as_raw_fd),
        };
        // SAFETY: the request reads one such structure through the reference, which is to a live one.
        if unsafe { ioctl_with_ref(self, VHOST_NET_SET_BACKEND(), &vring) } < 0 {
            return Err(vhost::Error::IoctlError(io::Error::last_os_error()));
        }
        Ok(())
    }
}

/// An interface that this process only sets up.
pub struct VhostNet {
    kernel: Kernel,
    tap: Tap,
    config: [u8; 12],
    /// The kernel's features.
    offered: u64,
}

impl VhostNet {
    /// An interface with this configuration space over `tap`, served by an open `/dev/vhost-net`.
    ///
    /// # Errors
    /// [`VhostError`] if the kernel refuses.
    pub fn new(file: File, tap: Tap, config: [u8; 12], memory: Arc<Memory>) -> Result<Self, VhostError> {
        let refused = |what| move |source| VhostError::Refused { what, source };
        let kernel = Kernel { file, memory };
        // The owner must be set first. It also decides that the kernel uses this process's memory.
        kernel.set_owner().map_err(refused("set its owner"))?;
        let found = kernel.get_features().map_err(refused("return its features"))?;
        if found & NEEDED != NEEDED {
            return Err(VhostError::Features { found });
        }
        let regions: Result<Vec<_>, _> =
            kernel.memory.iter().map(VhostUserMemoryRegionInfo::from_guest_region).collect();
        regions
            .and_then(|regions| kernel.set_mem_table(&regions))
            .map_err(refused("set the memory table"))?;
        Ok(VhostNet { kernel, tap, config, offered: found & !UNWANTED })
    }

    /// Gives the kernel a queue.
    fn set_up(&self, index: usize, queue: &VirtQueue) -> vhost::Result<()> {
        let ring = queue.ring();
        let config = VringConfigData {
            queue_max_size: ring.max_size(),
            queue_size: ring.size(),
            flags: 0,
            desc_table_addr: ring.desc_table(),
            used_ring_addr: ring.used_ring(),
            avail_ring_addr: ring.avail_ring(),
            log_addr: None,
        };
        // The size before the addresses: the kernel checks as many bytes as the ring has entries.
        self.kernel.set_vring_num(index, config.queue_size)?;
        self.kernel.set_vring_addr(index, &config)?;
        self.kernel.set_vring_base(index, 0)?;
        let line = queue.interrupt().raised_elsewhere().map_err(vhost::Error::IOError)?;
        self.kernel.set_vring_call(index, &line)?;
        self.kernel.set_vring_kick(index, queue.kick())
    }

    fn start(&self, queues: &[VirtQueue], features: u64) -> vhost::Result<()> {
        self.kernel.set_features(features & self.offered)?;
        for (index, queue) in queues.iter().enumerate() {
            self.set_up(index, queue)?;
        }
        // Setting the backend starts the kernel's work, so it comes last.
        (0..queues.len()).try_for_each(|index| self.kernel.set_backend(index, Some(self.tap.file())))
    }
}

impl VirtioDevice for VhostNet {
    fn id(&self) -> u32 {
        id::NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, queues: Vec<VirtQueue>, features: u64) -> io::Result<()> {
        self.tap.set_offloads(features)?;
        self.start(&queues, features).map_err(io::Error::other)
    }

    fn reset(&mut self) -> bool {
        // Both are tried. If one fails, the driver keeps its queues and gives the device up.
        let stopped = (0..QUEUE_SIZES.len()).map(|index| self.kernel.set_backend(index, None));
        stopped.fold(true, |all, result| all & result.is_ok())
    }
}
