//! The share tree: everything of the host that a VM can see. It is also the VMM's root directory.
//!
//! It is mounted in a mount namespace of the sandbox host process, so the mounts are removed with the last
//! process of the sandbox, however it ends.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pouch_vmm_api::mount_attributes::{self, Depth};
use pouch_vmm_api::share::CONTAINERS;
use rustix::fs::CWD;

use super::idmap::{self, IdMap};

/// The name of a container's root file system in the share tree, and the serial of a disk that holds it.
pub const ROOTFS: &str = "rootfs";

/// Something of the host that must appear in the share tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedPath {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Where it goes, relative to the share tree.
    pub target: PathBuf,
    /// Without writing.
    pub read_only: bool,
    /// A directory, rather than a file.
    pub directory: bool,
    /// Including the mounts below it.
    pub recursive: bool,
    /// Including later mounts of the host below it.
    pub follows: bool,
    /// With an ID mapping.
    pub idmap: Option<IdMap>,
    /// Instead of the source, which names its layers, an overlay with these options (overlayfs).
    pub overlay: Option<String>,
}

impl SharedPath {
    /// A file that the guest may write.
    pub fn new(source: PathBuf, target: PathBuf) -> Self {
        SharedPath {
            source,
            target,
            read_only: false,
            directory: false,
            recursive: false,
            follows: false,
            idmap: None,
            overlay: None,
        }
    }
}

/// The tree could not be assembled.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// No mount namespace.
    #[error("a mount namespace for the sandbox could not be created")]
    Namespace(#[source] nix::Error),
    /// A directory or file for a mount could not be created.
    #[error("{path} could not be created in the share tree")]
    Create {
        /// The path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A mount was refused.
    #[error("{path} could not be {action}")]
    Mount {
        /// The path.
        path: PathBuf,
        /// The operation.
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

fn mount_error(path: &Path, action: &'static str) -> impl FnOnce(nix::Error) -> ShareError {
    let path = path.to_owned();
    move |errno| ShareError::Mount { path, action, source: errno.into() }
}

/// Moves this process into a mount namespace of its own. Mounts of the host still appear in it;
/// mounts made in it do not appear on the host.
///
/// # Errors
/// [`ShareError::Namespace`] if the kernel refuses.
pub fn enter_namespace() -> Result<(), ShareError> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(ShareError::Namespace)?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).map_err(ShareError::Namespace)
}

/// Assembles the tree at `path`, which must not exist; for a pod, with a directory for containers that come later.
///
/// # Errors
/// [`ShareError`] names the path.
pub fn build(path: &Path, shared: &[SharedPath], pod: bool) -> Result<(), ShareError> {
    create_directory(path)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("pouch-share"), path, Some("tmpfs"), flags, Some("mode=755,size=1m"))
        .map_err(mount_error(path, "mounted"))?;
    for entry in shared {
        bind(path, entry)?;
    }
    if pod {
        create_directory(&path.join(CONTAINERS))?;
    }
    // The tree itself has only mount points, and the guest must not write to it.
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags;
    mount(None::<&str>, path, None::<&str>, read_only, None::<&str>)
        .map_err(mount_error(path, "made read-only"))
}

fn bind(tree: &Path, entry: &SharedPath) -> Result<(), ShareError> {
    let target = create_mount_point(tree, &entry.target, entry.directory)?;
    if let Some(map) = &entry.idmap {
        let action = "mounted with ID mappings: its file system, or the host's kernel, may not support them";
        idmap::mount(&entry.source, &target, entry.recursive, map).map_err(|source| ShareError::Mount {
            path: entry.source.clone(),
            action,
            source,
        })?;
    } else if let Some(options) = &entry.overlay {
        mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .map_err(mount_error(&entry.source, "mounted as the layers of an overlay"))?;
    } else {
        let recursive = if entry.recursive { MsFlags::MS_REC } else { MsFlags::empty() };
        let flags = MsFlags::MS_BIND | recursive;
        mount(Some(&entry.source), &target, None::<&str>, flags, None::<&str>)
            .map_err(mount_error(&entry.source, "bound into the share tree"))?;
    }
    if !entry.follows {
        // A later mount of the host below it would not be read-only, and was not requested.
        let flags = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, &target, None::<&str>, flags, None::<&str>)
            .map_err(mount_error(&entry.source, "made private or slave"))?;
    }
    // The VMM needs no device nodes. A VMM that its guest has taken over could use them to escape.
    let read_only = if entry.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
    let attributes = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | read_only;
    mount_attributes::set(CWD, &target, Depth::All, attributes, None::<File>).map_err(|source| {
        let action = "restricted in the share tree";
        ShareError::Mount { path: entry.source.clone(), action, source }
    })
}

/// Creates a directory or file of the tree to mount something on; returns its path.
///
/// # Errors
/// [`ShareError::Create`] names the path.
pub(super) fn create_mount_point(tree: &Path, target: &Path, directory: bool) -> Result<PathBuf, ShareError> {
    let target = tree.join(target);
    if directory {
        create_directory(&target)?;
    } else {
        create_directory(target.parent().unwrap_or(tree))?;
        File::create(&target).map_err(|source| ShareError::Create { path: target.clone(), source })?;
    }
    Ok(target)
}

fn create_directory(path: &Path) -> Result<(), ShareError> {
    fs::create_dir_all(path).map_err(|source| ShareError::Create { path: path.to_owned(), source })
}
