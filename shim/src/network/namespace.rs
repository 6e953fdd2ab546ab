//! The container's network namespace on the host.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
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
    /// It is the one of the host itself, or of this runtime: its interfaces would be taken from it.
    #[error(
        "linux.namespaces network path {0} is the network of the host itself, which a container in a VM cannot \
         share; publish ports instead"
    )]
    Hosts(PathBuf),
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
            if is_hosts(&file) {
                return Err(NamespaceError::Hosts(path.to_owned()));
            }
            setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| error(errno.into()))
        }
    }
}

/// Whether the namespace is that of the first process or of this one. Docker before 25 names it so for
/// `--network host`, where others name none.
fn is_hosts(namespace: &File) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let Ok(asked) = namespace.metadata().map(identity) else { return false };
    ["/proc/1/ns/net", "/proc/self/ns/net"]
        .into_iter()
        .any(|other| fs::metadata(other).is_ok_and(|metadata| identity(metadata) == asked))
}
