//! Starts a sandbox host process and waits for its report.

use std::io;
use std::os::fd::RawFd;
use std::process::Child;

use pouch_vmm_api::inherited::Inherited;

pub use super::child::ChildStreams;

use super::child as proxy;
use super::protocol::{Launch, Report};
use super::run::Host;
use crate::container::{ContainerDir, State, StateError, Status};
use crate::failure::Failure;
use pouch_errors::chain;

/// The internal command that starts a host process.
pub const HOST_COMMAND: &str = "sandbox-host";

/// Creates a container: on return its host process runs, and is a child of this process. The container's streams are
/// those of the child.
///
/// # Errors
/// [`Failure`] for the user; nothing is left behind then.
pub fn launch(launch: &Launch, streams: ChildStreams) -> Result<Child, Failure> {
    let id = launch.id.parse().map_err(|error| Failure::new(chain(&error)))?;
    let dir = ContainerDir::new(&launch.root, &id);
    claim(&dir).map_err(|error| Failure::new(chain(&error)))?;
    let result = start_host(launch, streams).map_err(|error| {
        Failure::new(format!("the host process of the container could not be started: {error}"))
    });
    let failure = match result {
        Ok((child, Report::Created)) => return Ok(child),
        Ok((mut child, Report::Failed(failure))) => {
            // It ends by itself.
            let _ = child.wait();
            failure
        }
        Err(failure) => failure,
    };
    clean_up(&dir);
    Err(failure)
}

/// Makes the container's directory; one that a killed `create` left behind is taken over.
fn claim(dir: &ContainerDir) -> Result<(), StateError> {
    match dir.create() {
        Err(StateError::Exists(id)) => {
            // Only one of two concurrent `create` may take over a directory.
            let opened = dir.open()?;
            if let Some(opened) = &opened {
                dir.lock(opened)?;
            }
            // A state of "creating" is shown as stopped once the host process is gone; a container
            // that had been created has an exit status or a VM.
            let abandoned = match dir.load() {
                Ok(State { status: Status::Stopped, vmm: None, exit_status: None, .. }) => true,
                Ok(_) => false,
                Err(_) => abandoned_for_long(dir),
            };
            if !abandoned {
                return Err(StateError::Exists(id));
            }
            clean_up(dir);
            dir.create()
        }
        other => other,
    }
}

/// A directory without a state, old enough that no process is about to write one.
fn abandoned_for_long(dir: &ContainerDir) -> bool {
    let age = std::fs::metadata(dir.path())
        .and_then(|metadata| metadata.modified())
        .ok()
        .map(|time| time.elapsed());
    age.is_some_and(|age| age.is_ok_and(|age| age.as_secs() > 10))
}

/// Removes what a container leaves on the host when its processes are gone.
pub fn clean_up(dir: &ContainerDir) {
    if let Ok(State { cgroup: Some(cgroup), .. }) = dir.load() {
        cgroup.remove();
    }
    // What is left is a directory that the next attempt takes over.
    let _ = dir.remove();
}

fn start_host(launch: &Launch, streams: ChildStreams) -> io::Result<(Child, Report)> {
    let (mut child, report) = proxy::start(HOST_COMMAND, Some(&launch.id), launch, streams)?;
    let report = match report {
        Some(report) => report,
        None => {
            let text = format!("the host process of the container ended early: {}", child.wait()?);
            Report::Failed(Failure::new(text))
        }
    };
    Ok((child, report))
}

/// The whole life of a host process; returns its exit status. `created` is called when it is confined and its container
/// can be started; a test attacks from there.
pub fn host_main(
    inherited: &mut Inherited,
    launch_fd: RawFd,
    report_fd: RawFd,
    created: impl FnOnce(),
) -> i32 {
    let (launch, mut ready_pipe) = match proxy::take(inherited, launch_fd, report_fd) {
        Ok(taken) => taken,
        Err(error) => {
            eprintln!("pouch-vm: error: {HOST_COMMAND}: {error}");
            return 1;
        }
    };
    let (host, word) = match Host::create(&launch) {
        Ok(host) => (Some(host), Report::Created),
        Err(failure) => (None, Report::Failed(failure)),
    };
    // If the parent has ended, the container still exists and can be deleted.
    let _ = ready_pipe.give(&word);
    host.map_or(1, |host| {
        created();
        host.run()
    })
}
