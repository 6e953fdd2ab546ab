//! StartContainer, PauseContainer, ResumeContainer and UpdateContainer.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::LinuxResources;
use pouch_protocol::agent::command_error::Kind;
use ttrpc::proto::Code;

use super::cgroup::CgroupError;
use super::cgroup::change::{self, Size};
use super::devices_bpf::{self, DeviceRulesError};
use super::launch::LaunchError;
use super::refresh;
use super::{Container, LookupError, State, spec};
use crate::error::{Coded, RequestError};

/// How long the last steps before the program may take. A startContainer hook is the only
/// long one; the container counts as started when it takes longer.
const EXECUTE_TIME: Duration = Duration::from_secs(30);

/// Why a container's state could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// There is no such container, or its state is another.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The cgroup refused.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The device rules cannot be set.
    #[error(transparent)]
    Devices(#[from] DeviceRulesError),
    /// The program cannot be executed.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The first process cannot be told to start.
    #[error("the container's process could not be started")]
    Notify(#[source] io::Error),
    /// A setting is one of an interface that the container does not have.
    #[error("linux.sysctl[{key}]: the container has no network interface {interface}")]
    NoInterface {
        /// The setting.
        key: String,
        /// The interface's name.
        interface: String,
    },
    /// The agent's own task failed.
    #[error("the agent's task failed: {0}")]
    Task(String),
}

impl Coded for ChangeError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Lookup(error) => error.code(),
            Self::Cgroup(error) => error.code(),
            Self::Devices(error) => error.code(),
            Self::Launch(error) => error.code(),
            Self::NoInterface { .. } => Code::INVALID_ARGUMENT,
            Self::Notify(_) | Self::Task(_) => Code::INTERNAL,
        }
    }

    fn command_error(&self) -> Option<Kind> {
        match self {
            Self::Launch(error) => error.command_error(),
            _ => None,
        }
    }
}

/// Lets the first process execute its program, and waits until it has.
pub async fn start(container: &Arc<Container>) -> Result<(), ChangeError> {
    let _turn = container.turn.lock().await;
    container.require(&[State::Created], "created")?;
    let bound = container.bound.clone();
    blocking(move || refresh::refresh(&bound)).await?;
    notify(&container.paths.state()).map_err(ChangeError::Notify)?;
    container.mark_started();
    let Some(report) = container.take_report() else { return Ok(()) };
    match tokio::time::timeout(EXECUTE_TIME, report.executed()).await {
        Ok(result) => Ok(result?),
        Err(_) => {
            log::warn!("container {} is slow to start", container.id);
            Ok(())
        }
    }
}

/// Notifies the process that waits on libcontainer's socket, and updates libcontainer's state file. This is
/// `Container::start` without a change of the agent's working directory.
fn notify(state: &Path) -> io::Result<()> {
    let directory = File::open(state)?;
    let socket = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join("notify.sock");
    let mut stream = UnixStream::connect(socket)?;
    let mut container =
        libcontainer::container::Container::load(state.to_owned()).map_err(io::Error::other)?;
    container.set_status(libcontainer::container::ContainerStatus::Running);
    container.save().map_err(io::Error::other)?;
    stream.write_all(b"start container")
}

/// Freezes or thaws a container.
pub async fn set_paused(container: Arc<Container>, paused: bool) -> Result<(), ChangeError> {
    let _turn = container.turn.lock().await;
    if paused {
        container.require(&[State::Running], "running")?;
    } else {
        container.require(&[State::Paused], "paused")?;
    }
    let cgroup = container.cgroup.clone();
    blocking(move || cgroup.set_frozen(paused)).await??;
    container.set_paused(paused);
    Ok(())
}

/// Applies new limits.
pub async fn update(container: Arc<Container>, mut resources: LinuxResources) -> Result<(), ChangeError> {
    let _turn = container.turn.lock().await;
    container.require(&[State::Created, State::Running, State::Paused], "created, running or paused")?;
    let rules = resources.devices().as_deref().filter(|rules| !rules.is_empty());
    let rules = rules.map(|rules| spec::renumber_rules(rules, &container.disks));
    let rules = rules.as_deref().map(devices_bpf::rules).transpose()?;
    let cgroup = container.cgroup.clone();
    change::complete(&mut resources, |file| cgroup.read(file));
    change::check_size(&resources, Size::of_guest(), |file| cgroup.read(file))?;
    // Lowering memory.max makes the kernel reclaim, which takes its time.
    blocking(move || cgroup.apply(Some(&resources))).await??;
    if let Some(rules) = rules {
        container.set_devices(&rules)?;
    }
    Ok(())
}

/// Runs a slow operation in a separate thread.
pub async fn blocking<T: Send + 'static>(
    task: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ChangeError> {
    tokio::task::spawn_blocking(task).await.map_err(|error| ChangeError::Task(error.to_string()))
}
