//! Removes a container and everything that it left on the host.

use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::HostClient;
use super::launch::clean_up;
use super::protocol::Request;
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
        // A live host process writes it again when it ends.
        Err(StateError::Damaged { .. }) if force => {
            match ask_to_end(dir, None).then(|| wait_for_state(dir, GRACE)).flatten() {
                Some(state) => state,
                None => return clean_up_opened(dir, &opened),
            }
        }
        Err(error) => return Err(error.into()),
    };
    if state.status != Status::Stopped && !force {
        return Err(DeleteError::NotStopped { id: dir.id().clone(), status: state.status });
    }
    if let Some(host) = state.host {
        // A host process that does not accept requests is still creating the container and can be killed.
        if state.status != Status::Stopped && !ask_to_end(dir, Some(host)) {
            kill_process(host);
        }
        end(host, &state);
    }
    // The VMM dies with its host process, but not before it was scheduled once more.
    if let Some(vmm) = state.vmm {
        end(vmm, &state);
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
fn ask_to_end(dir: &ContainerDir, wanted: Option<HostProcess>) -> bool {
    let Ok(host) = HostClient::connect(&dir.socket()) else { return false };
    let right = wanted.is_none_or(|wanted| host.peer() == Some(wanted.pid) && wanted.alive());
    right && host.ask(&Request::Destroy).is_ok()
}

fn kill_process(process: HostProcess) {
    // Its number is its own: the start time is compared.
    if process.alive() {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}

/// Waits for a process to end, as long as the VM writes to its disk, and kills it if it does not.
fn end(process: HostProcess, state: &State) {
    let vmm = state.vmm.map_or(0, |vmm| vmm.pid);
    let counters = WriteCounters::open(vmm, state.cgroup.as_ref());
    let mut patience = Patience::new(&counters);
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
        assert!(!ask_to_end(&dir, Some(listens)), "nobody listens");
        let asked = host(&dir);
        assert!(ask_to_end(&dir, Some(listens)));
        assert!(ask_to_end(&dir, None));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        // The container that was to be deleted had another process, or an earlier one of the same number.
        let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let predecessor = HostProcess::find(other.id() as i32).unwrap();
        assert!(!ask_to_end(&dir, Some(predecessor)));
        assert!(!ask_to_end(&dir, Some(HostProcess { start_time: listens.start_time - 1, ..listens })));
        drop(other.stdin.take());
        other.wait().unwrap();
        assert!(!ask_to_end(&dir, Some(predecessor)));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
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
