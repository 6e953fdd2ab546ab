//! What a process sees that enters the mount namespace of a sandbox host process.
//!
//! Podman copies files of a running container from within the mount namespace of the container's process, and
//! takes its root for the container's root. So the container's files, as far as the host can see them, are
//! mounted over the root of the namespace. The sandbox host process has another root directory; only setns(2)
//! leads to these mounts.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use pathrs::Root;
use pouch_protocol::SHARE_MOUNT_POINT;

use super::guest_spec::GuestSpec;

/// The view could not be created.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// Its directory could not be created or opened.
    #[error("{path}, for the container's files, could not be created")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A mount was refused.
    #[error("{path} of the container could not be mounted in the sandbox's namespace")]
    Mount {
        /// The path in the container.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

/// Covers the root of this process's mount namespace, which must be its own, with the container's files.
/// `tree` is the share tree; `place` a directory to create, in which the view is assembled; `pids` are the
/// container's processes on the host. The guest must have created its mount points.
///
/// # Errors
/// [`ViewError`] names the path.
pub fn cover(tree: &Path, place: &Path, guest: &GuestSpec, pids: &[i32]) -> Result<(), ViewError> {
    let directory = |source| ViewError::Directory { path: place.to_owned(), source };
    fs::create_dir(place).map_err(directory)?;
    let proc = processes(&place.with_extension("proc"), pids)?;
    let guest_root = guest.spec.root().as_ref();
    let shared_root = guest_root.and_then(|root| root.path().strip_prefix(SHARE_MOUNT_POINT).ok());
    if let Some(root) = shared_root {
        bind(&tree.join(root), place).map_err(mount_error("/"))?;
    } else {
        // Its files are on a disk that only the guest reads.
        nothing(place).map_err(mount_error("/"))?;
    }
    let root = Root::open(place).map_err(|error| directory(io::Error::other(error)))?;
    for entry in guest.spec.mounts().iter().flatten() {
        let destination = entry.destination();
        // If it does not exist, it is below a mount of the guest.
        let Ok(found) = root.resolve(destination) else { continue };
        // By its descriptor, so that no link of the container can redirect it.
        let target = PathBuf::from(format!("/proc/self/fd/{}", found.as_fd().as_raw_fd()));
        let shared = entry.source().as_ref().and_then(|source| source.strip_prefix(SHARE_MOUNT_POINT).ok());
        let mounted = match shared {
            Some(source) => bind(&tree.join(source), &target),
            None if entry.typ().as_deref() == Some("proc") => bind(&proc, &target),
            None if target.is_dir() => nothing(&target),
            None => Ok(()),
        };
        mounted.map_err(mount_error(destination))?;
    }
    mount(Some(place), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(mount_error("/"))
}

/// Covers the root of this process's mount namespace with an empty directory: the sandbox of a pod has no files.
/// `place` is a directory to create.
///
/// # Errors
/// [`ViewError`] names the path.
pub fn cover_with_nothing(place: &Path) -> Result<(), ViewError> {
    fs::create_dir(place).map_err(|source| ViewError::Directory { path: place.to_owned(), source })?;
    nothing(place)
        .and_then(|()| mount(Some(place), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>))
        .map_err(mount_error("/"))
}

/// The files that ps reads. `root`, `cwd`, `exe` and `fd` are excluded: they lead to the host's files, and a link of
/// the container could refer to them.
const OF_A_PROCESS: [&str; 8] = ["stat", "status", "cmdline", "comm", "uid_map", "gid_map", "attr", "ns"];

/// A /proc for `podman top`, which lists the processes in the container's /proc: it has those of the VM, as
/// `docker top` shows them. Returns its path.
fn processes(place: &Path, pids: &[i32]) -> Result<PathBuf, ViewError> {
    let refused = mount_error("/proc");
    let made = |source| ViewError::Directory { path: place.to_owned(), source };
    fs::create_dir(place).map_err(made)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let part = |name: &str| {
        let (source, target) = (Path::new("/proc").join(name), place.join(name));
        let empty = if source.is_dir() { fs::create_dir(&target) } else { File::create(&target).map(drop) };
        empty.map_err(made)?;
        bind(&source, &target).map_err(mount_error("/proc"))
    };
    mount(Some("pouch-guest"), place, Some("tmpfs"), flags, Some("mode=755,size=64k")).map_err(refused)?;
    for pid in pids {
        fs::create_dir(place.join(pid.to_string())).map_err(made)?;
        OF_A_PROCESS.iter().try_for_each(|file| part(&format!("{pid}/{file}")))?;
    }
    // ps needs these to convert times since boot.
    ["stat", "uptime"].into_iter().try_for_each(part)?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags;
    mount(None::<&str>, place, None::<&str>, read_only, None::<&str>).map_err(mount_error("/proc"))?;
    Ok(place.to_owned())
}

fn mount_error(path: impl AsRef<Path>) -> impl FnOnce(nix::Error) -> ViewError {
    let path = path.as_ref().to_owned();
    move |errno| ViewError::Mount { path, source: errno.into() }
}

fn bind(source: &Path, target: &Path) -> nix::Result<()> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
}

/// An empty read-only directory in place of a mount of the guest, such as a tmpfs, so that no file is lost in it.
fn nothing(target: &Path) -> nix::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("pouch-guest"), target, Some("tmpfs"), flags, Some("mode=755,size=4k"))
}
