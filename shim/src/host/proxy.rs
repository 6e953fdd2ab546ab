//! The host proxy process of a pod's container: what has the container's PID on the host.
//!
//! It is in the cgroup and the network namespace of the pod, passes signals on to the container's process, and exits
//! with its status. If it is killed, so is the container. It has no files, and sees nothing of what the guest sends.

use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::unistd::{chdir, pivot_root};
use pouch_vmm_api::inherited::Inherited;
use serde::{Deserialize, Serialize};

use super::child::{self, ChildStreams};
use super::client::{HostAddress, HostClient};
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
    /// The PID of the sandbox host process, which is in the network namespace of the pod.
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

/// Joins the pod on the host, becomes the process that stands for the container, and gives up the host's files.
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
    // Later it cannot be reached. A thread that is started before keeps the root.
    let for_signals = task.address.connect().map_err(Failure::of)?;
    let empty = task.address.socket.parent().unwrap_or(Path::new("/"));
    empty_root(empty)
        .map_err(|error| Failure::new(format!("the host's files could not be given up: {error}")))?;
    forward_signals(for_signals).map_err(Failure::of)?;
    Ok(client)
}

/// Passes signals on to the container's process.
fn forward_signals(host: HostClient) -> io::Result<()> {
    thread::Builder::new().name("signals".to_owned()).stack_size(128 * 1024).spawn(move || {
        while let Some(signal) = signals::next() {
            // The process has no terminal on the host whose size could change. It may have ended.
            if signal != Signal::SIGWINCH {
                let _ = host.ask(&Request::Signal { exec_id: None, signal: signal as u32, all: false });
            }
        }
    })?;
    Ok(())
}

/// Replaces the root by an empty directory, which is mounted at `place` meanwhile. Who enters the mount namespace by
/// the PID of a container expects the container's files, and must not find the host's.
fn empty_root(place: &Path) -> nix::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), place, Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=0555"))?;
    chdir(place)?;
    // The old root is mounted over the new one, and goes with the second call (pivot_root(2), "NOTES").
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}
