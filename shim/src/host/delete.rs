//! Removes a container and everything that it left on the host.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::HostClient;
use super::launch::clean_up;
use super::protocol::Request;
use crate::cgroup::LeftCgroup;
use crate::container::hooks::{self, Point};
use crate::container::state::HostProcess;
use crate::container::{ContainerDir, ContainerId, State, StateError, Status};
use crate::logging::Log;
use crate::sandbox::disk::{self, Patience, WriteCounters};
use pouch_errors::chain;

/// How long a process may take to end by itself before it is killed: longer than an agent may take to shut
/// the guest down, and a VMM to end.
const GRACE: Duration = Duration::from_secs(25);
/// How long a new host process may take until it writes a state.
const STATE_GRACE: Duration = Duration::from_millis(500);
/// How long a killed process may take to be gone.
const KILL_GRACE: Duration = Duration::from_secs(30);

/// A container could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// Its state cannot be used, or there is none.
    #[error(transparent)]
    State(#[from] StateError),
    /// It has not stopped.
    #[error("container {id} is {status}; stop it first, or use --force")]
    NotStopped {
        /// The container's ID.
        id: ContainerId,
        /// Its status.
        status: Status,
    },
    /// Its directory is still there.
    #[error("{0} could not be removed: is something still mounted there?")]
    Remains(PathBuf),
}

/// Removes the container; with `force` whatever its state, and without an error if it does not exist. Hooks that fail
/// are logged.
///
/// # Errors
/// [`DeleteError`] if it is not stopped, or something of it remains.
pub fn delete(dir: &ContainerDir, log: &Log, force: bool) -> Result<(), DeleteError> {
    // Only this container is affected, and not one with the same ID that is created concurrently.
    let Some(opened) = dir.open()? else { return gone(dir, force) };
    let loaded = dir.load();
    if !dir.is(&opened)? {
        return gone(dir, force);
    }
    let state = match loaded {
        Ok(state) => state,
        // A directory that a killed `create` left; its host process may be about to write a state.
        Err(StateError::NotFound(_)) if force => match wait_for_state(dir, STATE_GRACE) {
            Some(state) => state,
            None => return clean_up_opened(dir, &opened),
        },
        Err(StateError::Damaged { .. }) if force => {
            let cgroup = end_without_state(dir);
            clean_up_opened(dir, &opened)?;
            if let Some(cgroup) = cgroup {
                cgroup.remove();
            }
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    if state.status != Status::Stopped && !force {
        return Err(DeleteError::NotStopped { id: dir.id().clone(), status: state.status });
    }
    if let Some(host) = state.host {
        // A host process that does not accept requests is still creating the container and can be killed.
        if state.status != Status::Stopped && !ask_to_end(dir, host) {
            kill_process(host);
        }
        end(host, &counters(&state));
    }
    // The VMM dies with its host process, but not before it was scheduled once more.
    if let Some(vmm) = state.vmm {
        end(vmm, &counters(&state));
    }
    // Of several that delete it, one runs its hooks.
    if !dir.lock(&opened)? {
        return gone(dir, force);
    }
    clean_up(dir);
    hooks::run_all(Point::Poststop, &state, |error| log.warning(&chain(&error)));
    if dir.exists() { Err(DeleteError::Remains(dir.path().to_owned())) } else { Ok(()) }
}

/// The result for a container that does not exist, or no longer.
fn gone(dir: &ContainerDir, force: bool) -> Result<(), DeleteError> {
    if force { Ok(()) } else { Err(StateError::NotFound(dir.id().clone()).into()) }
}

/// Removes what is left of a container without a state.
fn clean_up_opened(dir: &ContainerDir, opened: &File) -> Result<(), DeleteError> {
    if dir.lock(opened)? {
        clean_up(dir);
    }
    Ok(())
}

/// The state that a host process writes within `grace`, if there is such a process.
fn wait_for_state(dir: &ContainerDir, grace: Duration) -> Option<State> {
    let deadline = Instant::now() + grace;
    while dir.exists() && Instant::now() < deadline {
        if let Ok(state) = dir.load() {
            return Some(state);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Whether the host process accepted the request. One that does not end is killed later. If a process other than
/// `wanted` listens, it belongs to a new container and gets no request.
fn ask_to_end(dir: &ContainerDir, wanted: HostProcess) -> bool {
    let Ok(host) = HostClient::connect(&dir.socket()) else { return false };
    host.peer() == Some(wanted.pid) && wanted.alive() && host.ask(&Request::Destroy).is_ok()
}

/// Ends the host process that listens in the directory, whose state cannot be read. Returns the cgroup that is left
/// when the process is gone.
fn end_without_state(dir: &ContainerDir) -> Option<LeftCgroup> {
    // The process that listens for a container of a pod is that of the whole pod.
    if dir.pod().is_some() {
        return None;
    }
    let client = HostClient::connect(&dir.socket()).ok()?;
    let host = HostProcess::find(client.peer()?)?;
    let cgroup = LeftCgroup::of(host.pid);
    // One that refuses is killed.
    let _ = client.ask(&Request::Destroy);
    let statistics = cgroup.as_ref().and_then(LeftCgroup::open_disk_statistics);
    end(host, &WriteCounters::of_cgroup(statistics));
    cgroup
}

/// What tells whether the VM writes to its disks.
fn counters(state: &State) -> WriteCounters {
    WriteCounters::open(state.vmm.map_or(0, |vmm| vmm.pid), state.cgroup.as_ref())
}

fn kill_process(process: HostProcess) {
    // Its number is its own: the start time is compared.
    if process.alive() {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}

/// Waits for a process to end, as long as the VM writes to its disk, and kills it if it does not.
fn end(process: HostProcess, counters: &WriteCounters) {
    let mut patience = Patience::new(counters);
    while !wait(process, disk::LOOK) {
        if !patience.lasts(GRACE, true) {
            kill_process(process);
            wait(process, KILL_GRACE);
            return;
        }
    }
}

fn wait(process: HostProcess, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    while process.alive() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::client::HostListener;
    use crate::host::protocol::Answer;
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A host process that accepts all requests, in this process; counts them.
    fn host(dir: &ContainerDir) -> Arc<AtomicU32> {
        let listener = HostListener::bind(&dir.socket()).unwrap();
        let asked = Arc::new(AtomicU32::new(0));
        let counter = asked.clone();
        std::thread::spawn(move || {
            while let Ok(connection) = listener.accept() {
                while let Ok(Some((Request::Destroy, _))) = connection.receive() {
                    counter.fetch_add(1, Ordering::SeqCst);
                    connection.send(&Answer::Done, &[]).unwrap();
                }
            }
        });
        asked
    }

    #[test]
    fn a_successor_of_the_same_name_is_not_asked_to_end() {
        let root = tempfile::tempdir().unwrap();
        let dir = ContainerDir::new(root.path(), &"a".parse().unwrap());
        dir.create().unwrap();
        let listens = HostProcess::find(std::process::id() as i32).unwrap();
        assert!(!ask_to_end(&dir, listens), "nobody listens");
        let asked = host(&dir);
        assert!(ask_to_end(&dir, listens));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        // The container that was to be deleted had another process, or an earlier one of the same number.
        let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let predecessor = HostProcess::find(other.id() as i32).unwrap();
        assert!(!ask_to_end(&dir, predecessor));
        assert!(!ask_to_end(&dir, HostProcess { start_time: listens.start_time - 1, ..listens }));
        drop(other.stdin.take());
        other.wait().unwrap();
        assert!(!ask_to_end(&dir, predecessor));
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_pod_outlives_a_container_whose_state_is_damaged() {
        let root = tempfile::tempdir().unwrap();
        let pod = ContainerDir::new(root.path(), &"pod".parse().unwrap());
        let member = pod.of_member(&"a".parse().unwrap());
        pod.create().unwrap();
        member.create().unwrap();
        let asked = host(&pod);
        assert!(end_without_state(&member).is_none());
        assert_eq!(asked.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_process_that_took_the_number_is_not_killed() {
        let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = HostProcess::find(other.id() as i32).unwrap();
        kill_process(HostProcess { start_time: process.start_time - 1, ..process });
        assert!(process.alive());
        kill_process(process);
        assert!(wait(process, KILL_GRACE));
        other.wait().unwrap();
    }
}
