//! The directories of the share tree itself, which lead to the mounts in it (`pouch_vmm_api::share`).

use std::sync::{Arc, OnceLock};

use pouch_vmm_api::share::CONTAINERS;

use super::inodes::{Identity, Inode};

/// What a directory is to the share tree.
#[derive(Clone)]
pub enum Tree {
    /// The tree's root, or that of a container in it.
    Root,
    /// The directory of containers.
    Containers,
    /// A directory of mounts of one file system of the host. It holds one file of that file system, for syncfs(2).
    FileSystem(Arc<OnceLock<Arc<Inode>>>),
    /// Not a directory of the tree.
    None,
}

impl Tree {
    /// What the directory `name` in `parent` is.
    pub fn of(parent: &Inode, name: &[u8], identity: &Identity) -> Tree {
        let is_mount = parent.identity.mount != identity.mount;
        match &parent.tree {
            Tree::Containers => Tree::Root,
            _ if is_mount => Tree::None,
            Tree::Root if name == CONTAINERS.as_bytes() => Tree::Containers,
            Tree::Root => Tree::FileSystem(Arc::default()),
            Tree::FileSystem(file) => Tree::FileSystem(file.clone()),
            Tree::None => Tree::None,
        }
    }

    /// The file system of the host whose mounts are in this directory.
    pub fn file_system(&self) -> Option<&OnceLock<Arc<Inode>>> {
        match self {
            Tree::FileSystem(file) => Some(file),
            _ => None,
        }
    }
}
