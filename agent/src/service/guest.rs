//! Requests for the guest as a whole.

use std::fs;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use pouch_protocol::agent::*;
use ttrpc::proto::Code;

use super::Agent;
use crate::clock::{self, ClockError};
use crate::container::spec::check_sysctl;
use crate::cpus::{self, CpuError};
use crate::error::{Coded, RequestError};
use crate::identity::{self, IdentityError};
use crate::network::NetworkError;
use crate::procfs::{field, number};
use crate::settings;
use crate::storage::{self, StorageError};

/// Storages of no container.
const NOBODY: &str = "";

/// Why the sandbox could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Name or generator.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Clock.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// CPUs.
    #[error(transparent)]
    Cpus(#[from] CpuError),
    /// Storages.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A kernel setting of a pod cannot be made.
    #[error("sysctls[{0}]: the kernel refused it")]
    Sysctl(String, #[source] io::Error),
    /// What the kernel says of itself cannot be read.
    #[error("cannot read {0}")]
    Read(&'static str, #[source] io::Error),
}

impl Coded for SetupError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Identity(error) => error.code(),
            Self::Clock(error) => error.code(),
            Self::Cpus(error) => error.code(),
            Self::Storage(error) => error.code(),
            Self::Network(error) => error.code(),
            Self::Sysctl(..) => Code::INVALID_ARGUMENT,
            Self::Read(..) => Code::INTERNAL,
        }
    }
}

/// Nanoseconds since the guest's kernel started.
pub fn boot_nanoseconds() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub fn check(started_nanoseconds: u64, ready_nanoseconds: u64) -> CheckResponse {
    let kernel = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    CheckResponse {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: kernel.unwrap_or_default(),
        ready_nanoseconds,
        started_nanoseconds,
        ..Default::default()
    }
}

/// Entropy is added first, because the other steps may use it.
pub async fn setup(
    agent: Arc<Agent>,
    request: SetupSandboxRequest,
) -> Result<SetupSandboxResponse, SetupError> {
    if let Some(entropy) = request.entropy.as_ref() {
        identity::add_entropy(&entropy.data)?;
    }
    if let Some(time) = request.time.as_ref() {
        clock::set(time.nanoseconds)?;
    }
    if !request.hostname.is_empty() {
        identity::set_hostname(&request.hostname)?;
    }
    settings::inherit(&request.settings)?;
    for (key, value) in &request.sysctls {
        check_sysctl(&format!("sysctls[{key}]"), key)?;
        if !agent.runtime.interface_settings.keep(NOBODY, key, value) {
            std::fs::write(settings::path_of(key), value)
                .map_err(|error| SetupError::Sysctl(key.clone(), error))?;
        }
    }
    if let Some(cpus) = request.cpus.as_ref() {
        online_cpus(cpus.clone()).await?;
    }
    storage::mount_all(&agent.runtime.storages, NOBODY, request.storages).await?;
    if let Some(network) = request.network.into_option() {
        agent.network.set(network, &agent.runtime.interface_settings).await?;
    }
    let online_cpus = cpus::online()?.len() as u32;
    Ok(SetupSandboxResponse { online_cpus, ..Default::default() })
}

pub async fn mount(agent: Arc<Agent>, request: MountStorageRequest) -> Result<Empty, StorageError> {
    storage::mount_all(&agent.runtime.storages, NOBODY, vec![request.storage.unwrap_or_default()]).await?;
    Ok(Empty::new())
}

pub async fn unmount(agent: Arc<Agent>, request: UnmountStorageRequest) -> Result<Empty, StorageError> {
    storage::unmount(&agent.runtime.storages, &request.mount_point).await?;
    Ok(Empty::new())
}

pub async fn set_network(agent: Arc<Agent>, request: SetNetworkRequest) -> Result<Empty, NetworkError> {
    agent.network.set(request, &agent.runtime.interface_settings).await?;
    Ok(Empty::new())
}

/// Bringing a CPU online takes milliseconds, so it is done in a separate thread.
pub async fn online_cpus(request: OnlineCpusRequest) -> Result<OnlineCpusResponse, CpuError> {
    let task = tokio::task::spawn_blocking(move || cpus::set_online(request.count)).await;
    let online = task.map_err(|error| CpuError::System("online".to_owned(), io::Error::other(error)))??;
    Ok(OnlineCpusResponse { online, ..Default::default() })
}

pub fn stats() -> Result<GuestStatsResponse, SetupError> {
    let memory =
        fs::read_to_string("/proc/meminfo").map_err(|error| SetupError::Read("/proc/meminfo", error))?;
    let kilobytes = |name: &str| field(&memory, name).and_then(number).unwrap_or(0).saturating_mul(1024);
    Ok(GuestStatsResponse {
        memory_total: kilobytes("MemTotal"),
        memory_free: kilobytes("MemFree"),
        memory_available: kilobytes("MemAvailable"),
        online_cpus: cpus::online()?.len() as u32,
        uptime_milliseconds: boot_nanoseconds() / 1_000_000,
        ..Default::default()
    })
}

/// Ends all processes and writes data to disks, so that the host can end the VM. If the host does not, the guest powers
/// itself off.
pub async fn shutdown(agent: &Arc<Agent>) -> ttrpc::Result<Empty> {
    const TIME_MAX: Duration = Duration::from_secs(12);
    const HOST_TIME: Duration = Duration::from_secs(5);
    let end = async {
        for container in agent.runtime.containers.all() {
            if let Err(error) = crate::container::delete::delete(&agent.runtime, &container.id).await {
                log::warn!("shutdown: {}", pouch_errors::chain(&error));
            }
        }
        storage::unmount_every(&agent.runtime.storages).await;
        // Waits for the disks.
        let _ = tokio::task::spawn_blocking(nix::unistd::sync).await;
    };
    // Unwritten data is lost with the VM. The host watches whether anything is written.
    if agent.runtime.storages.have_writable_disk() || agent.runtime.disks.any_writable().await {
        end.await;
    } else if tokio::time::timeout(TIME_MAX, end).await.is_err() {
        log::error!("shutdown: not all processes ended within {TIME_MAX:?}");
    }
    tokio::spawn(async {
        tokio::time::sleep(HOST_TIME).await;
        super::power_off();
    });
    Ok(Empty::new())
}
