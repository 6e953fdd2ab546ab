//! New limits for a container that runs: those of the VM's cgroup on the host, and those in the guest.
//!
//! The sandbox host process has no access to the cgroup. So a front end changes the limits there.

use oci_spec::runtime::LinuxResources;
use serde_json::Value;

use super::client::{ClientError, HostAddress};
use super::protocol::Request;
use crate::cgroup::{Cgroup, CgroupError};
use crate::container::size::{self, SizeError};
use crate::container::{ContainerDir, ContainerId, State, StateError, Status, resources};
use crate::sandbox::VmSize;

/// The limits could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    /// They are malformed.
    #[error("linux.resources cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// The host does not have these CPUs.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// The container has ended.
    #[error("container {0} is stopped")]
    Stopped(ContainerId),
    /// The container's state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The host's cgroup refuses one.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The guest refuses one, or its host process cannot be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Sets limits, an OCI `linux.resources` object. Limits that are not given are kept. If the host or the guest refuses,
/// nothing changes in the other.
///
/// # Errors
/// [`LimitsError`] names a limit that a running VM cannot have, or that is refused.
pub fn update(dir: &ContainerDir, limits: Value) -> Result<(), LimitsError> {
    let wanted: LinuxResources = serde_json::from_value(limits.clone()).map_err(LimitsError::Malformed)?;
    let cpus = wanted.cpu().as_ref().and_then(|cpu| cpu.cpus().as_deref());
    if let Some(list) = cpus.filter(|list| !list.is_empty()) {
        size::check_host_cpus(list)?;
    }
    let opened = dir.open()?;
    // One update at a time. The lock is dropped with the file.
    if let Some(opened) = &opened {
        dir.lock(opened)?;
    }
    let ask = || -> Result<(), ClientError> {
        HostAddress::of(dir).connect()?.ask(&Request::Update { resources: limits })?;
        Ok(())
    };
    let state = dir.load()?;
    // Its host process may still accept requests, or be gone.
    if state.status == Status::Stopped {
        return Err(LimitsError::Stopped(dir.id().clone()));
    }
    let Some((cgroup, size)) = of_host(&state) else { return Ok(ask()?) };
    let host = resources::split(&wanted, size).host;
    let before = cgroup.settings(&host);
    // The guest comes second, because the host's cgroup can be restored and the guest's cannot.
    let limited = cgroup.limit(&host).map_err(LimitsError::from);
    limited.and_then(|()| Ok(ask()?)).inspect_err(|_| before.restore())
}

/// The cgroup that is limited here, and the size of the VM in it. None for a pod, whose cgroup its engine limits, and
/// for a container of an earlier build, whose host process limits the cgroup.
fn of_host(state: &State) -> Option<(Cgroup, VmSize)> {
    state.cgroup.clone().zip(state.size)
}
