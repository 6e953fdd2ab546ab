//! DeleteContainer, and undoing a CreateContainer that failed.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use ttrpc::proto::Code;

use super::cgroup::{Cgroup, CgroupError};
use super::start::blocking;
use super::{LookupError, Paths, Runtime, check_id};
use crate::disks::DiskError;
use crate::error::{Coded, RequestError};
use crate::network::namespace;
use crate::storage::{self, StorageError};

/// Why a container could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// The ID is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Its processes or its cgroup remain.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A storage remains.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A disk remains.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A directory remains.
    #[error("cannot remove {0}")]
    Directory(String, #[source] io::Error),
    /// The agent's own task failed.
    #[error("the agent's task failed: {0}")]
    Task(String),
}

impl Coded for DeleteError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Cgroup(error) => error.code(),
            Self::Storage(error) => error.code(),
            Self::Disk(error) => error.code(),
            _ => Code::INTERNAL,
        }
    }
}

/// Removes a container and everything of it. It is no error if there is none.
pub async fn delete(runtime: &Arc<Runtime>, id: &str) -> Result<(), DeleteError> {
    check_id("container_id", id)?;
    let container = match runtime.containers.get(id) {
        Ok(container) => container,
        Err(LookupError::NoContainer(_)) => return Ok(()),
        Err(error) => return Err(RequestError::new("container_id", error.to_string()).into()),
    };
    let _turn = container.turn.lock().await;
    let removed = remove(runtime, id, &container.paths).await;
    for process in container.processes() {
        process.stdio.stop();
    }
    removed?;
    runtime.containers.remove(id);
    Ok(())
}

/// Removes what a failed CreateContainer left.
pub(super) async fn clean(runtime: &Arc<Runtime>, id: &str, paths: &Paths) {
    if let Err(error) = remove(runtime, id, paths).await {
        log::error!("container {id} is not cleaned up: {}", pouch_errors::chain(&error));
    }
}

async fn remove(runtime: &Arc<Runtime>, id: &str, paths: &Paths) -> Result<(), DeleteError> {
    // Those of an interface that never came.
    let _ = runtime.interface_settings.forget(id);
    let (cgroup, paths) = (Cgroup::of(&paths.name), paths.clone());
    let task = move || {
        // A frozen process is killed all the same.
        cgroup.destroy()?;
        for directory in [paths.state(), paths.bundle()] {
            remove_directory(&directory)?;
        }
        Ok::<(), DeleteError>(())
    };
    if let Err(error) = namespace::leave(id) {
        log::warn!("cannot go back to the guest's network namespace: {error}");
    }
    blocking(task).await.map_err(|error| DeleteError::Task(error.to_string()))??;
    runtime.events.forget(id);
    storage::unmount_owned(&runtime.storages, id).await?;
    Ok(runtime.disks.release(id).await?)
}

fn remove_directory(directory: &Path) -> Result<(), DeleteError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DeleteError::Directory(directory.display().to_string(), error))
        }
        _ => Ok(()),
    }
}
