//! The container's network namespace on the host.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};

/// The namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The engine's namespace cannot be joined.
    #[error("linux.namespaces network path {path} cannot be joined")]
    Join {
        /// The namespace's file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A new one could not be made.
    #[error("a network namespace could not be made")]
    Create(#[source] nix::Error),
}

/// Moves this process into the namespace that the engine made, or into a new one: so the process
/// whose number the engine knows as the container's is in the container's network.
///
/// # Errors
/// [`NamespaceError`] names the namespace.
pub fn enter(namespace: Option<&Path>) -> Result<(), NamespaceError> {
    match namespace {
        None => unshare(CloneFlags::CLONE_NEWNET).map_err(NamespaceError::Create),
        Some(path) => {
            let error = |source| NamespaceError::Join { path: path.to_owned(), source };
            let file = File::open(path).map_err(error)?;
            setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| error(errno.into()))
        }
    }
}
