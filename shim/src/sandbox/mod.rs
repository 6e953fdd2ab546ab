//! A sandbox: one VM, the agent in it, and what the host provides for it.
//!
//! A sandbox exists before its containers and apart from them. This layer knows the VMM and the agent's protocol. It
//! does not know OCI specifications, states of containers, or who asks.

pub mod agent;
pub mod clock;
pub mod disk;
pub mod disks;
mod exec_queue;
mod guest_network;
pub mod idmap;
pub mod later;
pub mod settings;
pub mod share;
pub mod streams;
pub mod vm;
pub mod vm_files;
pub mod vmm_log;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pouch_protocol::agent::{BlockDevice, Setting, Stdio, Storage};
use pouch_protocol::{GUEST_RUN_DIR, SHARE_MOUNT_POINT, SHARE_TAG};
use serde::{Deserialize, Serialize};

use crate::network::WireError;
use crate::network::devices::NetworkDevices;
use crate::network::wiring::Wiring;
use agent::{Agent, AgentError};
use disk::WriteCounters;
use disks::{DiskError, Disks, HostDisk};
use exec_queue::ExecQueue;
use vm::{Vm, VmError};

/// The size of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSize {
    /// vCPUs.
    pub vcpus: u8,
    /// Guest memory in MiB.
    pub memory_mib: u32,
}

/// The guest of a VM could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The agent did not come up.
    #[error("the guest did not start: {0}")]
    Boot(String),
    /// The VM ended, or its VMM cannot be asked.
    #[error(transparent)]
    Vm(VmError),
    /// The agent refuses.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// How a guest is set up before its first container.
#[derive(Clone, Debug, Default)]
pub struct GuestSetup {
    /// Its host name; the guest's own if empty.
    pub hostname: String,
    /// The host's kernel settings that it inherits.
    pub settings: Vec<Setting>,
    /// How long it may take to boot.
    pub boot_timeout: Duration,
    /// What the containers of a pod share.
    pub pod: Option<PodSetup>,
}

/// What the containers of a pod share, besides the guest's namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSetup {
    /// Bytes of shared memory.
    pub shm_size: u64,
    /// Kernel settings of the pod, as (name, value).
    pub sysctls: Vec<(String, String)>,
}

/// The PID namespace of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PidNamespace {
    /// One of its own.
    #[default]
    Own,
    /// The one that containers of the pod share.
    Pod,
    /// That of the container with this ID.
    Of(String),
}

/// What a container gets in the guest besides its specification.
#[derive(Debug, Default)]
pub struct GuestParts {
    /// What is mounted for it.
    pub storages: Vec<Storage>,
    /// Its PID namespace.
    pub pids: PidNamespace,
    /// The block devices of the host that it uses.
    pub devices: Vec<BlockDevice>,
}

/// The directory of a pod's shared memory in the guest.
pub fn pod_shm() -> PathBuf {
    Path::new(GUEST_RUN_DIR).join("shm")
}

/// A VM whose agent answers.
pub struct Sandbox {
    /// The VM.
    pub vm: Vm,
    /// The agent in it.
    pub agent: Agent,
    /// What the VM writes to disks.
    pub written: WriteCounters,
    /// The network of the guest, for a retried start.
    wiring: Mutex<Wiring>,
    /// Block devices of the host that containers use.
    disks: Disks,
    exec_queue: ExecQueue,
}

impl Sandbox {
    /// Waits for the agent of a VM that boots, and sets the guest up. The VM continues to run if that fails.
    ///
    /// # Errors
    /// [`SetupError`] if the guest does not start, or refuses.
    pub fn set_up(vm: &Vm, size: VmSize, setup: GuestSetup) -> Result<Agent, SetupError> {
        let stream = vm.connect_to_agent(setup.boot_timeout).map_err(|error| match error {
            VmError::Refused(text) => SetupError::Boot(text),
            other => SetupError::Vm(other),
        })?;
        let agent = Agent::new(stream)?;
        let mut shared = Storage::new();
        shared.driver = "virtiofs".to_owned();
        shared.source = SHARE_TAG.to_owned();
        shared.mount_point = SHARE_MOUNT_POINT.to_owned();
        let mut storages = vec![shared];
        let mut sysctls = Vec::new();
        if let Some(pod) = setup.pod {
            let mut shm = Storage::new();
            shm.driver = "tmpfs".to_owned();
            shm.source = "shm".to_owned();
            shm.mount_point = pod_shm().display().to_string();
            shm.options = ["nosuid", "noexec", "nodev", "mode=1777"].map(str::to_owned).to_vec();
            shm.options.push(format!("size={}", pod.shm_size));
            storages.push(shm);
            sysctls = pod.sysctls;
        }
        agent.setup(&setup.hostname, size.vcpus, storages, setup.settings, sysctls)?;
        Ok(agent)
    }

    /// A sandbox whose guest is set up, and whose VM has got `disks` already.
    pub fn new(vm: Vm, agent: Agent, written: WriteCounters, devices: NetworkDevices, disks: Disks) -> Self {
        let wiring = Mutex::new(Wiring::new(devices));
        Sandbox { vm, agent, written, wiring, disks, exec_queue: ExecQueue::default() }
    }

    /// Gives the VM block devices of the host, for the container `owner`; see [`Disks::add`].
    ///
    /// # Errors
    /// [`DiskError`] names the device; the container has none of them then.
    pub fn add_disks(
        &self,
        owner: &str,
        wanted: &[HostDisk],
        files: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<Vec<BlockDevice>, DiskError> {
        self.disks.add(&self.vm, owner, wanted, files)
    }

    /// Takes block devices away that only the container `owner` used, and that the guest has given up. Errors are written
    /// to the log: the container has gone.
    pub fn remove_disks(&self, owner: &str) {
        self.disks.remove(&self.vm, owner).iter().for_each(disks::report);
    }

    /// Whether the guest can write to a disk.
    pub fn has_writable_disk(&self) -> bool {
        self.vm.has_writable_disk() || self.disks.any_writable()
    }

    /// Takes descriptors of `/dev/vhost-net` for the interfaces that the guest gets next.
    pub fn set_vhosts(&self, vhosts: Vec<OwnedFd>) {
        self.lock_wiring().set_vhosts(vhosts);
    }

    /// Gives the guest the current network of the calling thread's namespace. Unsupported parts are skipped; returns
    /// the reasons.
    pub fn update_network(&self) -> Vec<WireError> {
        self.lock_wiring().update(self)
    }

    /// Gives the interfaces back to the namespace that the calling thread is in.
    pub fn give_network_back(&self) {
        self.lock_wiring().undo();
    }

    fn lock_wiring(&self) -> MutexGuard<'_, Wiring> {
        self.wiring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a further process in a container, when earlier requests have been answered.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn exec(
        &self,
        container_id: &str,
        exec_id: &str,
        process: Vec<u8>,
        stdio: Stdio,
        cgroup: &str,
    ) -> Result<(), AgentError> {
        self.exec_queue.take(|| self.agent.exec(container_id, exec_id, process, stdio, cgroup))
    }
}
