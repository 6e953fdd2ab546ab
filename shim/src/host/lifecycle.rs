//! Creates and starts a container as its engine sees it: with its hooks.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Child;

use super::client::{ClientError, HostClient};
use super::delete::{self, DeleteError};
use super::launch::{self, ChildStreams};
use super::protocol::{Launch, Request};
use crate::container::hooks::{self, HookError, Point};
use crate::container::{ContainerDir, IdError, State, StateError};
use crate::failure::Failure;
use crate::logging::Log;
use crate::network::devices::open_vhosts;

/// A container could not be created or started.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// Its ID is invalid.
    #[error(transparent)]
    Id(#[from] IdError),
    /// It could not be created.
    #[error("{}", .0.message)]
    Create(Failure),
    /// Its host process refuses, or cannot be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its state cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// Something failed, and the container could not be removed afterwards.
    #[error("{cause}; {source}")]
    Remains {
        /// What failed.
        cause: String,
        /// Why it could not be removed.
        source: DeleteError,
    },
}

impl LifecycleError {
    /// The exit status that tells this error.
    pub fn status(&self) -> u8 {
        match self {
            LifecycleError::Create(failure) => failure.status,
            LifecycleError::Client(error) => error.status(),
            _ => 1,
        }
    }
}

/// Creates a container and runs the hooks for that. Returns its host process, a child of this process, whose standard
/// streams are `streams`.
///
/// # Errors
/// [`LifecycleError`]; nothing is left behind then.
pub fn create(launch: &Launch, streams: ChildStreams) -> Result<Child, LifecycleError> {
    let dir = ContainerDir::new(&launch.root, &launch.id.parse()?);
    let child = launch::launch(launch, streams).map_err(LifecycleError::Create)?;
    let log = Log::new(launch.log.clone(), launch.log_format());
    run_create_hooks(&dir).map_err(|error| undone(&dir, &log, error))?;
    Ok(child)
}

/// Runs the hooks of `create`. This is not done in the host process, because that is in other namespaces.
fn run_create_hooks(dir: &ContainerDir) -> Result<(), LifecycleError> {
    let state = dir.load()?;
    if hooks::awaited(state.hooks.as_ref()) {
        for point in hooks::OF_CREATE {
            hooks::run(point, &state)?;
        }
        // Until now it could not be started, even if this process ends.
        HostClient::connect(&dir.socket())?.ask(&Request::HooksDone)?;
    }
    Ok(())
}

/// Starts the container's process, then runs the hooks for that. If one fails, the container is
/// stopped and removed (runtime.md, "Lifecycle", since version 1.3).
///
/// # Errors
/// [`LifecycleError`] names the hook, or what refused.
pub fn start(dir: &ContainerDir, log: &Log) -> Result<(), LifecycleError> {
    let host = HostClient::connect(&dir.socket())?;
    let vhosts = vhosts_for(&dir.load()?);
    let fds: Vec<BorrowedFd<'_>> = vhosts.iter().map(AsFd::as_fd).collect();
    host.ask_with(&Request::Start, &fds)?;
    drop(vhosts);
    // A container that has ended and been deleted already has none.
    let Ok(state) = dir.load() else { return Ok(()) };
    hooks::run(Point::Poststart, &state).map_err(|error| undone(dir, log, error.into()))
}

/// Descriptors with which the host's kernel moves the frames of the container's interfaces. The host process cannot open
/// them. One of an earlier build opens its own.
fn vhosts_for(state: &State) -> Vec<File> {
    match state.host {
        Some(host) if state.vhost_net => open_vhosts(host.pid),
        _ => Vec::new(),
    }
}

/// Removes a container after `error`; returns what to report.
fn undone(dir: &ContainerDir, log: &Log, error: LifecycleError) -> LifecycleError {
    match delete::delete(dir, log, true) {
        Ok(()) => error,
        Err(source) => LifecycleError::Remains { cause: pouch_errors::chain(&error), source },
    }
}
