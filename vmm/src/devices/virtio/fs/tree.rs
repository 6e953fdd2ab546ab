//! The directories of the share tree itself, which lead to the mounts in it (`pouch_vmm_api::share`).

use std::sync::Arc;

use pouch_vmm_api::share::{CONTAINERS, MAPPED, SYSTEMS};

use super::inodes::{Identity, Inode};
use super::mounts::Mounts;

/// What a directory is to the share tree.
#[derive(Clone)]
pub enum Tree {
    /// The tree's root, or that of a container in it.
    Root,
    /// The directory of containers.
    Containers,
    /// The directory of file systems that containers have in common.
    Systems,
    /// A directory of mounts of one file system of the host.
    FileSystem(Arc<Mounts>),
    /// A directory of those mounts that show files with other owners than on the host.
    Mapped(Arc<Mounts>),
    /// Not a directory of the tree.
    None,
}

impl Tree {
    /// What the directory `name` in `parent` is.
    pub fn of(parent: &Inode, name: &[u8], identity: &Identity) -> Tree {
        let is_mount = parent.identity.mount != identity.mount;
        match &parent.tree {
            Tree::Root if name == CONTAINERS.as_bytes() => Tree::Containers,
            Tree::Containers if name == SYSTEMS.as_bytes() => Tree::Systems,
            Tree::Containers => Tree::Root,
            _ if is_mount => Tree::None,
            Tree::Root | Tree::Systems => Tree::FileSystem(Arc::new(Mounts::of(identity.file_id()))),
            Tree::FileSystem(mounts) if name == MAPPED.as_bytes() => Tree::Mapped(mounts.clone()),
            Tree::FileSystem(mounts) => Tree::FileSystem(mounts.clone()),
            Tree::Mapped(mounts) => Tree::Mapped(mounts.clone()),
            Tree::None => Tree::None,
        }
    }

    /// The file system of the host whose mounts are in this directory.
    pub fn file_system(&self) -> Option<&Arc<Mounts>> {
        match self {
            Tree::FileSystem(mounts) | Tree::Mapped(mounts) => Some(mounts),
            _ => None,
        }
    }
}
