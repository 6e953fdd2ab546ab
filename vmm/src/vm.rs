//! A running VM.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::builder::{DeviceError, Plugged, Slots};
use crate::bus::lock;
use crate::config::NetworkConfig;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::net::Net;
use crate::devices::virtio::vsock::{ConnectError, Vsock};
use crate::exit::ExitReason;
use crate::memory::{self, Memory};
use crate::vcpu::Vcpus;

/// The end of a VM, told once by whoever sees it first.
pub struct ExitSignal {
    reason: OnceLock<ExitReason>,
    event: EventFd,
}

impl ExitSignal {
    /// A VM that has not ended.
    ///
    /// # Errors
    /// What making a descriptor says.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?;
        Ok(ExitSignal { reason: OnceLock::new(), event })
    }

    /// Ends the VM; a reason that was given before stays.
    pub fn end(&self, reason: ExitReason) {
        if self.reason.set(reason).is_ok() {
            // The counter is at 0, so there is room.
            let _ = self.event.write(1);
        }
    }

    /// Why the VM ended, if it has.
    pub fn reason(&self) -> Option<ExitReason> {
        self.reason.get().cloned()
    }
}

impl AsRawFd for ExitSignal {
    /// Readable when the VM has ended.
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

/// What a VM has done so far, for monitoring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// Bytes of guest memory that the host has pages for.
    pub memory_resident_bytes: u64,
    /// Bytes of guest memory given back to the host since the start.
    pub memory_returned_bytes: u64,
    /// MiB that the balloon holds.
    pub balloon_mib: u32,
    /// Open vsock connections.
    pub vsock_connections: u64,
    /// Bytes to the guest on vsock.
    pub vsock_to_guest_bytes: u64,
    /// Bytes from the guest on vsock.
    pub vsock_from_guest_bytes: u64,
    /// Frames to the guest on all interfaces, but for those that the host's kernel moves.
    pub net_received_frames: u64,
    /// Frames to the guest that were lost.
    pub net_receive_dropped_frames: u64,
    /// Frames from the guest on all interfaces, but for those that the host's kernel moves.
    pub net_transmitted_frames: u64,
    /// Frames from the guest that were lost.
    pub net_transmit_dropped_frames: u64,
}

/// A running VM.
pub struct Vm {
    pub(crate) memory: Arc<Memory>,
    pub(crate) vcpus: Vcpus,
    pub(crate) exit: Arc<ExitSignal>,
    pub(crate) vsock: Arc<Mutex<Vsock>>,
    pub(crate) balloon: Arc<Mutex<Balloon>>,
    pub(crate) nets: Mutex<Vec<Arc<Mutex<Net>>>>,
    // Dropped last: it holds the VM's descriptor, in which the interrupt controller and the
    // guest's mappings live.
    pub(crate) slots: Mutex<Slots>,
}

impl Vm {
    /// Lets the guest run.
    pub fn resume(&self) {
        self.vcpus.resume();
    }

    /// Stops the guest; when this returns, none of its code runs.
    pub fn pause(&self) {
        self.vcpus.pause();
    }

    /// Whether the guest is to run.
    pub fn running(&self) -> bool {
        self.vcpus.running()
    }

    /// The end of the VM.
    pub fn exit(&self) -> &Arc<ExitSignal> {
        &self.exit
    }

    /// Connects to a vsock port of the guest; see [`Vsock::connect`].
    pub fn connect(
        &self,
        port: u32,
        timeout_ms: u32,
        done: impl FnOnce(Result<UnixStream, ConnectError>) + Send + 'static,
    ) {
        lock(&self.vsock).connect(port, timeout_ms, Box::new(done));
    }

    /// Adds a network interface over `tap`, whose frames an open `/dev/vhost-net` moves if there is one; returns
    /// the number of its virtio device.
    ///
    /// # Errors
    /// [`DeviceError`] if there is no place left, or the tap device is not usable.
    pub fn plug_network(
        &self,
        tap: OwnedFd,
        vhost: Option<OwnedFd>,
        config: &NetworkConfig,
    ) -> Result<u32, DeviceError> {
        let (plugged, number) = lock(&self.slots).plug_net(tap, vhost, config)?;
        if let Plugged::EventLoop(net) = plugged {
            lock(&self.nets).push(net);
        }
        // At most MAX_VIRTIO_DEVICES.
        Ok(number as u32)
    }

    /// Asks the guest to give up `mib` MiB of its memory.
    pub fn set_balloon(&self, mib: u32) {
        lock(&self.balloon).set_target(mib);
    }

    /// What the VM has done so far.
    pub fn metrics(&self) -> Metrics {
        let vsock = lock(&self.vsock).counters();
        let (returned, balloon_mib) = {
            let balloon = lock(&self.balloon);
            (balloon.discarded(), balloon.actual_mib())
        };
        let mut metrics = Metrics {
            memory_resident_bytes: memory::resident_bytes(&self.memory).unwrap_or(0),
            memory_returned_bytes: returned,
            balloon_mib,
            vsock_connections: vsock.connections as u64,
            vsock_to_guest_bytes: vsock.to_guest,
            vsock_from_guest_bytes: vsock.from_guest,
            ..Metrics::default()
        };
        for net in lock(&self.nets).iter() {
            let counters = lock(net).counters();
            metrics.net_received_frames += counters.received;
            metrics.net_receive_dropped_frames += counters.receive_dropped;
            metrics.net_transmitted_frames += counters.transmitted;
            metrics.net_transmit_dropped_frames += counters.transmit_dropped;
        }
        metrics
    }
}
