//! `delete`: removes a container and everything that it left on the host.

use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{CliError, Global, Outcome, other};
use crate::container::hooks::{self, Point};
use crate::container::state::HostProcess;
use crate::container::{ContainerDir, State, StateError, Status};
use crate::errors::chain;
use crate::sandbox::client::HostClient;
use crate::sandbox::launch::clean_up;
use crate::sandbox::protocol::Request;

/// How long a process may take to end by itself before it is killed: longer than an agent may take to shut
/// the guest down, and a VMM to end.
const GRACE: Duration = Duration::from_secs(25);
/// How long a new host process may take until it writes a state.
const STATE_GRACE: Duration = Duration::from_millis(500);
/// How long a killed process may take to be gone.
const KILL_GRACE: Duration = Duration::from_secs(30);

#[derive(Args)]
pub struct Delete {
    /// Remove it whatever its state, and do not mind if there is none.
    #[arg(short, long)]
    force: bool,
    /// The container's name.
    id: String,
}

impl Delete {
    pub fn run(&self, global: &Global) -> Outcome {
        delete(global, &self.id, self.force)?;
        Ok(0)
    }
}

/// Removes the container; with `force` whatever its state.
pub fn delete(global: &Global, id: &str, force: bool) -> Result<(), CliError> {
    let dir = global.dir(id)?;
    let state = match dir.load() {
        Ok(state) => state,
        // A directory that a killed `create` left; its host process may be about to write a state.
        Err(StateError::NotFound(_)) if force => match wait_for_state(&dir, STATE_GRACE) {
            Some(state) => state,
            None => {
                clean_up(&dir);
                return Ok(());
            }
        },
        // A host process that lives writes it anew when it ends.
        Err(StateError::Damaged { .. }) if force => {
            match ask_to_end(&dir).then(|| wait_for_state(&dir, GRACE)).flatten() {
                Some(state) => state,
                None => {
                    clean_up(&dir);
                    return Ok(());
                }
            }
        }
        Err(error) => return Err(other(error)),
    };
    if state.status != Status::Stopped && !force {
        let text = format!("container {id} is {}; stop it first, or use --force", state.status);
        return Err(CliError::Other(text));
    }
    if let Some(host) = state.host {
        // One that cannot be asked, as it is still creating, has nothing to end in good order.
        if state.status != Status::Stopped && !ask_to_end(&dir) {
            kill_process(host);
        }
        end(host);
    }
    // The VMM dies with its host process, but not before it was scheduled once more.
    if let Some(vmm) = state.vmm {
        end(vmm);
    }
    // Of several that delete it, one runs its hooks.
    let Some(_lock) = dir.lock().map_err(other)? else {
        return if force { Ok(()) } else { Err(other(StateError::NotFound(dir.id().clone()))) };
    };
    clean_up(&dir);
    hooks::run_all(Point::Poststop, &state, |error| global.log().warning(&chain(&error)));
    if dir.exists() {
        let path = dir.path().display();
        return Err(CliError::Other(format!(
            "{path} could not be removed: is something still mounted there?"
        )));
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

/// Whether the host process took the request. One that does not end is killed later.
fn ask_to_end(dir: &ContainerDir) -> bool {
    HostClient::connect(&dir.socket()).is_ok_and(|host| host.ask(&Request::Destroy).is_ok())
}

fn kill_process(process: HostProcess) {
    // Its number is its own: the start time is compared.
    if process.alive() {
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
}

/// Waits for a process to end, and kills it if it does not.
fn end(process: HostProcess) {
    if wait(process, GRACE) {
        return;
    }
    kill_process(process);
    wait(process, KILL_GRACE);
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
