//! The container's network namespace on the host.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};

use super::occupants::{self, Occupant};

/// The namespace could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The engine's namespace cannot be joined.
    #[error("linux.namespaces network path {path} cannot be joined")]
    Join {
        /// The namespace's file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// It is the host's, or that of this process, and would lose its interfaces.
    #[error(
        "linux.namespaces network path {0} is the network of the host, which a container in a VM cannot \
         share; publish ports instead"
    )]
    Hosts(PathBuf),
    /// Other processes are in it, and would lose its interfaces.
    #[error(
        "linux.namespaces network path {path} is the network of process {} ({}), which a container in a VM cannot \
         share; connect both containers to one user-defined network, or give this container its own network",
        occupant.pid, occupant.name
    )]
    Inhabited {
        /// The namespace's file.
        path: PathBuf,
        /// One of these processes.
        occupant: Occupant,
    },
    /// A new one could not be created.
    #[error("a network namespace could not be created")]
    Create(#[source] nix::Error),
}

/// Moves this process into the namespace that the engine created, or into a new one, because the engine takes this
/// process for the container's.
///
/// # Errors
/// [`NamespaceError`] names the namespace.
pub fn enter(namespace: Option<&Path>) -> Result<(), NamespaceError> {
    match namespace {
        None => unshare(CloneFlags::CLONE_NEWNET).map_err(NamespaceError::Create),
        Some(path) => {
            let error = |source| NamespaceError::Join { path: path.to_owned(), source };
            let file = File::open(path).map_err(error)?;
            let metadata = file.metadata().map_err(error)?;
            if is_hosts(&metadata) {
                return Err(NamespaceError::Hosts(path.to_owned()));
            }
            if let Some(occupant) = occupants::find(&metadata).map_err(error)? {
                return Err(NamespaceError::Inhabited { path: path.to_owned(), occupant });
            }
            setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| error(errno.into()))
        }
    }
}

/// Whether the namespace is that of the first process or of this one. Docker before 25 names it so for
/// `--network host`, where others name none.
fn is_hosts(namespace: &Metadata) -> bool {
    ["/proc/1/ns/net", "/proc/self/ns/net"]
        .into_iter()
        .any(|other| fs::metadata(other).is_ok_and(|other| identity(&other) == identity(namespace)))
}

/// The identity of a namespace, independent of its path.
pub(super) fn identity(namespace: &Metadata) -> (u64, u64) {
    (namespace.dev(), namespace.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_namespace_is_refused_as_such_though_processes_live_there() {
        let error = enter(Some(Path::new("/proc/self/ns/net"))).unwrap_err();
        assert!(matches!(error, NamespaceError::Hosts(_)), "{error}");
    }

    #[test]
    fn who_would_lose_the_network_is_named() {
        let occupant = Occupant { pid: 77, name: "nginx".to_owned() };
        let error = NamespaceError::Inhabited { path: "/proc/77/ns/net".into(), occupant }.to_string();
        assert!(error.starts_with("linux.namespaces network path /proc/77/ns/net"), "{error}");
        assert!(error.contains("process 77 (nginx)") && error.contains("user-defined network"), "{error}");
    }
}
