//! The mounts in a directory of the share tree, which are of one file system of the host (`pouch_vmm_api::share`).
//!
//! A file that is found on two of them is one file to the guest. So the guest has it in its cache once, and a socket has
//! the same listener on both mounts. A directory is not: it may have other mounts below it on each of them. Also, Linux
//! wants a directory of a file system at one place only.

use std::ffi::{CStr, CString};
use std::sync::{Arc, Mutex, Weak};

use rustix::fs::FileType;

use super::attributes::mount_at;
use super::inodes::{FileId, Identity, Inode};
use crate::bus::lock;

/// The mounts of one file system of the host.
pub struct Mounts {
    /// The directory of the tree that they are in.
    id: FileId,
    /// Those that the guest knows.
    known: Mutex<Vec<Mount>>,
}

/// A mount that the guest knows.
struct Mount {
    id: u64,
    /// Where it is: a directory of the tree, and a name.
    place: (Weak<Inode>, CString),
    root: Weak<Inode>,
}

impl Mounts {
    /// The mounts in this directory; none is known yet.
    pub fn of(id: FileId) -> Self {
        Mounts { id, known: Mutex::default() }
    }

    /// Notes the mount whose root is `root`, at `name` of a directory of the tree.
    pub fn add(&self, directory: &Arc<Inode>, name: &CStr, root: &Arc<Inode>) {
        let place = (Arc::downgrade(directory), name.to_owned());
        let mount = Mount { id: root.identity.mount, place, root: Arc::downgrade(root) };
        let mut known = lock(&self.known);
        known.retain(|other| other.id != mount.id && other.place.0.strong_count() > 0);
        known.push(mount);
    }

    /// A file of the file system, if the guest knows any.
    pub fn file(&self) -> Option<Arc<Inode>> {
        lock(&self.known).iter().find_map(|mount| mount.root.upgrade())
    }

    /// Whether a mount is still where the guest found it. The files of one that the host has unmounted cannot be opened:
    /// Landlock takes them for files outside the share tree.
    fn has(&self, mount: u64) -> bool {
        let place = lock(&self.known).iter().find(|known| known.id == mount).map(|known| known.place.clone());
        let Some((directory, name)) = place else { return false };
        let Some(directory) = directory.upgrade() else { return false };
        mount_at(&directory.file, &name).is_ok_and(|found| found == mount)
    }
}

/// The mount that a file was found on.
#[derive(Clone, Default)]
pub struct Origin {
    /// The mounts that it is one of; none if the host has mounted it below another mount.
    pub group: Option<Arc<Mounts>>,
    /// Whether nothing can be written on it.
    pub read_only: bool,
}

/// What two files have in common that are one to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// They are the same file on the same mount.
    OnMount(Identity),
    /// They are the same file on one of the mounts of a directory.
    InGroup(FileId, FileId),
}

impl Key {
    /// That of a file of this identity, type and origin.
    pub fn of(identity: &Identity, kind: FileType, origin: &Origin) -> Self {
        match &origin.group {
            Some(group) if kind != FileType::Directory => Key::InGroup(group.id, identity.file_id()),
            _ => Key::OnMount(*identity),
        }
    }
}

/// Which of these, one file on several mounts, serves requests: if possible, on one that is still mounted and can be
/// written to.
pub fn best(places: &[Arc<Inode>]) -> Option<&Arc<Inode>> {
    let mut best = places.first();
    for place in places.iter().filter(|place| is_mounted(place)) {
        if !place.origin.read_only {
            return Some(place);
        }
        best = Some(place);
    }
    best
}

/// Whether the mount on which a file was found is still mounted, as far as is known.
pub fn is_mounted(place: &Inode) -> bool {
    place.origin.group.as_ref().is_none_or(|mounts| mounts.has(place.identity.mount))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::fs::abi::ROOT;
    use crate::devices::virtio::fs::attributes::status;
    use crate::devices::virtio::fs::budget::Budget;
    use crate::devices::virtio::fs::inodes::Inodes;
    use rustix::fs::{Mode, OFlags, openat};
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    use std::fs;
    use std::path::Path;

    /// The file at a path of the tree, looked up part by part.
    fn look_up(inodes: &Inodes, path: &str) -> Arc<Inode> {
        path.split('/').fold(inodes.get(ROOT).unwrap(), |parent, name| {
            let name = CString::new(name).unwrap();
            let file = openat(&parent.file, &name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
            let status = status(&file).unwrap();
            inodes.tell(&parent, &name, file, &status).unwrap().0
        })
    }

    /// Runs a test in a mount namespace, if there may be one.
    fn in_namespace(test: impl FnOnce(&Path) + Send) {
        let folder = tempfile::tempdir().unwrap();
        let work = || {
            // SAFETY: the thread has no descriptors of its own, and shares none of what is unshared with others.
            if unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.is_err() {
                eprintln!("a mount namespace is not permitted");
                return;
            }
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            test(folder.path());
        };
        std::thread::scope(|scope| scope.spawn(work).join().unwrap());
    }

    #[test]
    fn a_file_is_served_where_it_can_be() {
        in_namespace(|folder| {
            let path = |name: &str| folder.join(name);
            for directory in ["source/sub", "tree/0/1", "tree/0/2", "tree/0/3", "tree/1/1", "tree/0/mapped/1"]
            {
                fs::create_dir_all(path(directory)).unwrap();
            }
            fs::write(path("source/file"), "").unwrap();
            for target in ["0/1", "0/2", "1/1", "0/mapped/1"] {
                mount_bind(path("source"), path("tree").join(target)).unwrap();
            }
            let fixed = MountFlags::BIND | MountFlags::RDONLY;
            rustix::mount::mount_remount(path("tree/0/1"), fixed, c"").unwrap();
            let inodes = Inodes::new(Arc::new(Budget::new(100)), 100);
            let root = openat(rustix::fs::CWD, path("tree"), OFlags::PATH, Mode::empty()).unwrap();
            let about = status(&root).unwrap();
            inodes.set_root(root, &about).unwrap();

            let [first, second] = ["0/1/file", "0/2/file"].map(|path| look_up(&inodes, path));
            assert_eq!(first.node, second.node);
            let mount = || inodes.get(first.node).unwrap().identity.mount;
            assert_eq!(mount(), second.identity.mount, "it can be written there");
            let [one, other] = ["0/1/sub", "0/2/sub"].map(|path| look_up(&inodes, path));
            assert_ne!(one.node, other.node, "a directory is at one place");
            let beside = |directory: &Inode| inodes.get_beside(first.node, directory).unwrap().identity.mount;
            assert_eq!((beside(&one), beside(&other)), (first.identity.mount, second.identity.mount));
            for elsewhere in ["1/1/file", "0/mapped/1/file"] {
                assert_ne!(look_up(&inodes, elsewhere).node, first.node, "{elsewhere}");
            }

            unmount(path("tree/0/2"), UnmountFlags::DETACH).unwrap();
            assert_eq!(mount(), first.identity.mount);
            mount_bind(path("source"), path("tree/0/3")).unwrap();
            let third = look_up(&inodes, "0/3/file");
            assert_eq!((third.node, mount()), (first.node, third.identity.mount));
            fs::remove_dir(path("tree/0/2")).unwrap();
            assert_eq!(inodes.forget(first.node, 2), None);
            assert_eq!(inodes.forget(first.node, 1), Some(first.identity.file_id()));
            assert!(inodes.get(first.node).is_err());
        });
    }
}
