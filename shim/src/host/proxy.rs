//! The host proxy process of a pod's container: what has the container's PID on the host.
//!
//! It is in the cgroup and the network namespace of the pod, passes signals on to the container's process, and exits with
//! its status. If it is killed, so is the container. It sees nothing of what the guest sends.

use std::io;
use std::os::fd::RawFd;
use std::process::{Child, Stdio};

use nix::sched::CloneFlags;
use pouch_vmm_api::inherited::Inherited;
use serde::{Deserialize, Serialize};

use super::child::{self, ChildStreams};
use super::client::{HostAddress, HostClient};
use super::forward;
use super::protocol::{Answer, Report, Request};
use crate::cgroup::Cgroup;
use crate::failure::Failure;
use crate::streams::signals;

/// The internal command that starts one.
pub const COMMAND: &str = "container-host";
/// The status of a container whose pod ended under it: as if it had been killed.
const KILLED: i32 = 137;

/// What it is started with.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyTask {
    /// The container.
    pub address: HostAddress,
    /// The cgroup of the pod.
    pub cgroup: Option<Cgroup>,
    /// Where the namespaces of the pod are: the PID of its host process.
    pub host: i32,
}

/// Starts the proxy process of a container that is created. It is a child of this process.
///
/// # Errors
/// [`Failure`] for the user. The process has ended then.
pub fn start(task: &ProxyTask) -> Result<Child, Failure> {
    let streams = ChildStreams { stdin: Stdio::null(), stdout: Stdio::null(), stderr: Stdio::null() };
    let failed = |error: io::Error| {
        Failure::new(format!("the host proxy process of the container could not be started: {error}"))
    };
    let (mut child, report) =
        child::start(COMMAND, task.address.member.as_deref(), task, streams).map_err(failed)?;
    let failure = match report {
        Some(Report::Created) => return Ok(child),
        Some(Report::Failed(failure)) => failure,
        None => Failure::new("the host proxy process of the container ended early"),
    };
    // It ends by itself.
    let _ = child.wait();
    Err(failure)
}

/// The whole life of a proxy process; returns its exit status.
pub fn main(inherited: &mut Inherited, task_fd: RawFd, report_fd: RawFd) -> i32 {
    let Ok((task, mut ready_pipe)) = child::take::<ProxyTask>(inherited, task_fd, report_fd) else {
        // Only pouch-vm uses this command.
        return 1;
    };
    let (client, report) = match attach(&task) {
        Ok(client) => (Some(client), Report::Created),
        Err(failure) => (None, Report::Failed(failure)),
    };
    // If the parent has ended, the container is removed by others.
    let _ = ready_pipe.give(&report);
    let Some(client) = client else { return 1 };
    match client.ask(&Request::AwaitExit) {
        Ok((Answer::Exit { status, .. }, _)) => i32::try_from(status).unwrap_or(KILLED),
        _ => KILLED,
    }
}

/// Joins the pod on the host, and becomes the process that stands for the container.
fn attach(task: &ProxyTask) -> Result<HostClient, Failure> {
    signals::block();
    if let Some(cgroup) = &task.cgroup {
        cgroup.join().map_err(Failure::of)?;
    }
    let namespace = format!("/proc/{}/ns/net", task.host);
    let joined = std::fs::File::open(&namespace)
        .and_then(|file| Ok(nix::sched::setns(file, CloneFlags::CLONE_NEWNET)?));
    joined.map_err(|error| Failure::new(format!("{namespace} could not be joined: {error}")))?;
    let client = task.address.connect().map_err(Failure::of)?;
    client.ask(&Request::Attend).map_err(Failure::of)?;
    forward::signals(task.address.clone(), None, None).map_err(Failure::of)?;
    Ok(client)
}
