//! The network namespace of a container with a user namespace.
//!
//! Root in such a container can configure a network namespace only if the container's user namespace owns it.
//! It does not own the guest's initial network namespace. So the container gets a new one, and the agent's
//! event loop, which does all of the agent's network operations, moves into it. New interfaces appear in the
//! initial namespace and are moved.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sched::{CloneFlags, setns};
use pouch_protocol::settings;
use rtnetlink::LinkUnspec;

const OWN: &str = "/proc/thread-self/ns/net";

/// Settings that a new namespace does not copy from the initial one, in addition to those that a container inherits.
const CARRIED: &[&str] = &[
    "ipv6/conf/all/accept_dad",
    "ipv6/conf/all/accept_ra",
    "ipv6/conf/default/accept_dad",
    "ipv6/conf/default/accept_ra",
];

/// The agent's previous namespace.
struct Away {
    /// The container that it followed.
    container: String,
    first: File,
}

static AWAY: Mutex<Option<Away>> = Mutex::new(None);

fn away() -> MutexGuard<'static, Option<Away>> {
    AWAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the agent is in a container's network namespace.
pub fn entered() -> bool {
    away().is_some()
}

/// Moves the calling thread, which must be that of the event loop, to the network namespace of a process. The files of
/// settings in `made` stay as they are there.
pub fn enter(container: &str, pid: i32, made: &HashSet<PathBuf>) -> io::Result<()> {
    let first = File::open(OWN)?;
    let inherited = settings::network().map(|name| format!("/proc/sys/{name}"));
    let paths = inherited.chain(CARRIED.iter().map(|name| format!("/proc/sys/net/{name}")));
    // What the kernel does not have is in neither namespace.
    let carried = paths
        .filter(|path| !made.contains(Path::new(path)))
        .filter_map(|path| fs::read(&path).ok().map(|value| (path, value)));
    let carried: Vec<_> = carried.collect();
    setns(File::open(format!("/proc/{pid}/ns/net"))?, CloneFlags::CLONE_NEWNET)?;
    *away() = Some(Away { container: container.to_owned(), first });
    for (path, value) in carried {
        if let Err(error) = fs::write(&path, value) {
            log::warn!("cannot set {path} for the container: {error}");
        }
    }
    Ok(())
}

/// Returns to the initial namespace, if the agent is in that of this container.
pub fn leave(container: &str) -> io::Result<()> {
    let mut away = away();
    match &*away {
        Some(there) if there.container == container => setns(&there.first, CloneFlags::CLONE_NEWNET)?,
        _ => return Ok(()),
    }
    *away = None;
    Ok(())
}

/// Brings an interface here from the first namespace, where its number is `index`; it is called `name` from then on.
pub async fn fetch(index: u32, name: &str) -> Result<(), rtnetlink::Error> {
    let failed = |error: io::Error| rtnetlink::Error::NamespaceError(error.to_string());
    let here = File::open(OWN).map_err(failed)?;
    let opened = {
        let away = away();
        let Some(there) = &*away else { return Ok(()) };
        // A socket belongs to the namespace in which it was made. Nothing else runs on this thread meanwhile.
        setns(&there.first, CloneFlags::CLONE_NEWNET).map_err(|error| failed(error.into()))?;
        let opened = rtnetlink::new_connection();
        setns(&here, CloneFlags::CLONE_NEWNET).map_err(|error| failed(error.into()))?;
        opened
    };
    let (connection, handle, _) = opened.map_err(failed)?;
    let task = tokio::spawn(connection);
    let set = async {
        let renamed = LinkUnspec::new_with_index(index).name(name.to_owned()).build();
        handle.link().set(renamed).execute().await?;
        let moved = LinkUnspec::new_with_index(index).setns_by_fd(here.as_raw_fd()).build();
        handle.link().set(moved).execute().await
    };
    let result = set.await;
    task.abort();
    result
}
