//! A running VM.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use pouch_vmm_api::config::{DiskConfig, NetworkConfig};
use pouch_vmm_api::control::Metrics;

use crate::attach::{DeviceError, Plugged, Slots, Unplugging};
use crate::bus::lock;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::net::Net;
use crate::devices::virtio::vsock::{ConnectError, Vsock};
use crate::exit_signal::ExitSignal;
use crate::memory::{self, Memory};
use crate::vcpu::Vcpus;

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
    /// [`DeviceError`] if no slot is left, or the tap device is not usable.
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

    /// Adds a disk with the content of `file`; returns the number of its virtio device.
    ///
    /// # Errors
    /// [`DeviceError`] if no slot is left, or a thread or a descriptor cannot be made.
    pub fn plug_disk(&self, file: OwnedFd, config: &DiskConfig) -> Result<u32, DeviceError> {
        // At most MAX_VIRTIO_DEVICES.
        lock(&self.slots).plug_disk(File::from(file), config).map(|number| number as u32)
    }

    /// Takes a disk away that was added; the disk's thread may still work on a request.
    ///
    /// # Errors
    /// [`DeviceError`] if there is no such disk.
    pub fn unplug_disk(&self, device: u32) -> Result<Unplugging, DeviceError> {
        lock(&self.slots).unplug_disk(device)
    }

    /// Makes the place of a disk free whose thread has ended.
    pub fn release_disk(&self, unplugged: Unplugging) {
        lock(&self.slots).release(unplugged);
    }

    /// What the VM has done so far.
    pub fn metrics(&self) -> Metrics {
        let vsock = lock(&self.vsock).counters();
        let mut metrics = Metrics {
            memory_resident_bytes: memory::resident_bytes(&self.memory).unwrap_or(0),
            memory_returned_bytes: lock(&self.balloon).discarded(),
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
