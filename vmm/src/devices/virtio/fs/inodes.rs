//! The inode table: the files that the guest knows, by node ID.
//!
//! Each entry has an `O_PATH` descriptor. The descriptor keeps the inode alive, so that its number on the
//! host is not reused. A guest keeps its entries until it needs the memory, and its kernel has memory for
//! more names than the host has descriptors. So beyond a limit, entries are sent with a timeout of zero, and
//! Linux drops such an entry as soon as it is unused (`fuse_dentry_delete` in fs/fuse/dir.c).

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{FileType, StatVfsMountFlags, fstatvfs};

use super::ATTRIBUTE_TIMEOUT;
use super::abi::ROOT;
use super::attributes::Status;
use super::budget::{Budget, Permit};
use super::mounts::{self, Key, Origin};
use super::tree::Tree;
use crate::bus::lock;

/// The identity of a file on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The mount that it was found on: the same file may be read-only on one and not on the other.
    pub mount: u64,
    /// Major and minor number of its file system's device.
    pub device: (u32, u32),
    /// Its inode number.
    pub number: u64,
}

impl Identity {
    /// Which file it is, on whichever mount.
    pub fn file_id(&self) -> FileId {
        (self.device, self.number)
    }
}

/// A file on the host, on whichever mount it was found: the major and minor number of its device, and its inode number.
pub type FileId = ((u32, u32), u64);

/// A file that the guest knows.
pub struct Inode {
    /// The guest's number for it, never used again.
    pub node: u64,
    /// The file, opened with `O_PATH`.
    pub file: OwnedFd,
    /// What it is on the host.
    pub identity: Identity,
    /// Its type, which never changes.
    pub kind: FileType,
    /// The inode number that the guest shows.
    pub shown_number: u64,
    /// What it is to the share tree.
    pub tree: Tree,
    /// The mount that it was found on.
    pub origin: Origin,
    _permit: Permit,
}

impl Inode {
    /// Which file it is on the host.
    pub fn file_id(&self) -> FileId {
        self.identity.file_id()
    }

    fn key(&self) -> Key {
        Key::of(&self.identity, self.kind, &self.origin)
    }

    /// A path that leads to the file itself, a symbolic link too (proc_pid_fd(5)).
    pub fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }

    /// Opens the file again with these flags.
    ///
    /// # Errors
    /// `ENXIO` for files that are neither regular files nor directories, because opening these can have side effects on
    /// the host; or the kernel's error.
    pub fn open(&self, flags: rustix::fs::OFlags) -> io::Result<OwnedFd> {
        use rustix::fs::{CWD, Mode, OFlags, openat};
        if !matches!(self.kind, FileType::RegularFile | FileType::Directory) {
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        }
        Ok(openat(CWD, self.path(), flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Whether the guest shows this directory of `parent` as a separate file system. A subvolume of btrfs has a device
    /// number of its own, so it is one.
    pub fn is_submount_of(&self, parent: &Inode) -> bool {
        let is_other = match (&parent.tree, &self.tree) {
            (Tree::FileSystem(_) | Tree::Mapped(_), _) | (_, Tree::Containers | Tree::Systems) => false,
            (Tree::Root | Tree::Systems, Tree::FileSystem(_)) => true,
            _ => parent.identity.device != self.identity.device,
        };
        self.kind == FileType::Directory && is_other
    }
}

struct Known {
    inode: Arc<Inode>,
    /// The same file on other mounts.
    others: Vec<Arc<Inode>>,
    /// The lookup count.
    lookups: u64,
}

impl Known {
    fn new(inode: Arc<Inode>, lookups: u64) -> Self {
        Known { inode, others: Vec::new(), lookups }
    }

    /// The file on each mount.
    fn places(&self) -> impl Iterator<Item = &Arc<Inode>> {
        [&self.inode].into_iter().chain(&self.others)
    }

    /// The file on this mount.
    fn on(&self, mount: u64) -> Option<&Arc<Inode>> {
        self.places().find(|place| place.identity.mount == mount)
    }
}

#[derive(Default)]
struct Table {
    by_node: HashMap<u64, Known>,
    by_key: HashMap<Key, u64>,
    last_node: u64,
}

/// The inode table.
pub struct Inodes {
    table: Mutex<Table>,
    budget: Arc<Budget>,
    /// How many files the guest is to keep.
    bound: usize,
}

impl Inodes {
    /// An empty table. Beyond `bound` files, the guest keeps only files in use.
    pub fn new(budget: Arc<Budget>, bound: usize) -> Self {
        Inodes { table: Mutex::default(), budget, bound }
    }

    /// Makes `file` the root and drops all other entries.
    ///
    /// # Errors
    /// `ENFILE` if no descriptor is left.
    pub fn set_root(&self, file: OwnedFd, status: &Status) -> io::Result<()> {
        let permit = self.budget.take()?;
        let mut table = lock(&self.table);
        *table = Table { last_node: ROOT, ..Table::default() };
        let inode = Inode {
            node: ROOT,
            file,
            identity: status.identity(),
            kind: status.kind(),
            shown_number: status.identity().number,
            tree: Tree::Root,
            origin: Origin::default(),
            _permit: permit,
        };
        table.by_key.insert(inode.key(), ROOT);
        // The guest never forgets the root.
        table.by_node.insert(ROOT, Known::new(Arc::new(inode), u64::MAX));
        Ok(())
    }

    /// The file of this number.
    ///
    /// # Errors
    /// `ESTALE` if there is none.
    pub fn get(&self, node: u64) -> io::Result<Arc<Inode>> {
        let stale = || io::Error::from_raw_os_error(libc::ESTALE);
        let places: Vec<_> = match lock(&self.table).by_node.get(&node).ok_or_else(stale)? {
            Known { inode, others, .. } if others.is_empty() => return Ok(inode.clone()),
            known => known.places().cloned().collect(),
        };
        mounts::best(&places).cloned().ok_or_else(stale)
    }

    /// As [`Self::get`], on the mount of `other` if it was found there.
    ///
    /// # Errors
    /// `ESTALE` if there is none.
    pub fn get_beside(&self, node: u64, other: &Inode) -> io::Result<Arc<Inode>> {
        let known = |known: &Known| known.on(other.identity.mount).cloned();
        let found = lock(&self.table).by_node.get(&node).and_then(known);
        found.map_or_else(|| self.get(node), Ok)
    }

    /// Adds the file `name` of the directory `parent`, or increments its lookup count; returns it and the timeout of its
    /// name.
    ///
    /// # Errors
    /// `ENFILE` if no descriptor is left.
    pub fn tell(
        &self,
        parent: &Inode,
        name: &CStr,
        file: OwnedFd,
        status: &Status,
    ) -> io::Result<(Arc<Inode>, Duration)> {
        let (identity, kind) = (status.identity(), status.kind());
        let is_directory = kind == FileType::Directory;
        let tree = if is_directory { Tree::of(parent, name.to_bytes(), &identity) } else { Tree::None };
        let origin = match &parent.tree {
            Tree::FileSystem(mounts) => {
                Origin { group: Some(mounts.clone()), read_only: is_read_only(&file) }
            }
            _ if parent.identity.mount == identity.mount => parent.origin.clone(),
            _ => Origin::default(),
        };
        let mounts = parent.tree.file_system().filter(|_| matches!(tree, Tree::None));
        let place = mounts.map(|mounts| Ok::<_, io::Error>((mounts, self.get(parent.node)?))).transpose()?;
        let told = self.add(parent, file, identity, kind, tree, origin)?;
        if let Some((mounts, directory)) = place {
            mounts.add(&directory, name, &told.0);
        }
        self.drop_unmounted(&told.0);
        Ok(told)
    }

    /// Drops a file on other mounts than this one that are not mounted any more.
    fn drop_unmounted(&self, inode: &Arc<Inode>) {
        if inode.origin.group.is_none() {
            return;
        }
        let others: Vec<Arc<Inode>> = match lock(&self.table).by_node.get(&inode.node) {
            Some(known) => known.places().filter(|place| !Arc::ptr_eq(place, inode)).cloned().collect(),
            None => return,
        };
        let gone: Vec<_> = others.into_iter().filter(|place| !mounts::is_mounted(place)).collect();
        let is_gone = |place: &Arc<Inode>| gone.iter().any(|other| Arc::ptr_eq(other, place));
        if let Some(known) = lock(&self.table).by_node.get_mut(&inode.node) {
            known.others.retain(|place| !is_gone(place));
            if is_gone(&known.inode)
                && let Some(other) = known.others.pop()
            {
                known.inode = other;
            }
        }
        // Their descriptors are closed with the table unlocked.
        drop(gone);
    }

    /// As [`Self::tell`], for a file that is this one on the host.
    fn add(
        &self,
        parent: &Inode,
        file: OwnedFd,
        identity: Identity,
        kind: FileType,
        tree: Tree,
        origin: Origin,
    ) -> io::Result<(Arc<Inode>, Duration)> {
        let mut table = lock(&self.table);
        let timeout = if table.by_node.len() >= self.bound { Duration::ZERO } else { ATTRIBUTE_TIMEOUT };
        let key = Key::of(&identity, kind, &origin);
        if let Some(node) = table.by_key.get(&key).copied()
            && let Some(known) = table.by_node.get_mut(&node)
        {
            let inode = match known.on(identity.mount) {
                Some(place) => place.clone(),
                None => {
                    let permit = self.budget.take()?;
                    let shown_number = known.inode.shown_number;
                    let place = Arc::new(Inode {
                        node,
                        file,
                        identity,
                        kind,
                        shown_number,
                        tree,
                        origin,
                        _permit: permit,
                    });
                    known.others.push(place.clone());
                    place
                }
            };
            known.lookups = known.lookups.saturating_add(1);
            return Ok((inode, timeout));
        }
        let permit = self.budget.take()?;
        table.last_node += 1;
        let node = table.last_node;
        // A directory on another device gets a device number of its own in the guest. A file cannot, and must not
        // look like one of its neighbours. What is mounted in a directory of the share tree is of the file system that
        // this directory is in the guest.
        let foreign = kind != FileType::Directory
            && parent.identity.device != identity.device
            && parent.tree.file_system().is_none();
        let shown_number = if foreign { foreign_number(&identity) } else { identity.number };
        let inode =
            Arc::new(Inode { node, file, identity, kind, shown_number, tree, origin, _permit: permit });
        table.by_key.insert(key, node);
        table.by_node.insert(node, Known::new(inode.clone(), 1));
        Ok((inode, timeout))
    }

    /// Reduces the lookup count of a file by `count`; returns the file if it was removed from the table.
    pub fn forget(&self, node: u64, count: u64) -> Option<FileId> {
        let mut table = lock(&self.table);
        let known = table.by_node.get_mut(&node).filter(|_| node != ROOT)?;
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups > 0 {
            return None;
        }
        let key = known.inode.key();
        let gone = table.by_node.remove(&node);
        table.by_key.remove(&key);
        drop(table);
        // Its descriptor is closed with the table unlocked, because closing may wait for a server of the host.
        gone.map(|known| known.inode.file_id())
    }

    /// Whether the guest knows the file by any number.
    pub fn know(&self, file: FileId) -> bool {
        lock(&self.table).by_node.values().any(|known| known.inode.file_id() == file)
    }

    /// Whether the table has no room for files that are not looked up one by one.
    pub fn is_full(&self) -> bool {
        lock(&self.table).by_node.len() >= self.bound
    }

    /// Removes all entries.
    pub fn clear(&self) {
        let all = std::mem::take(&mut *lock(&self.table));
        drop(all);
    }
}

/// Whether the mount that a file was found on is read-only.
fn is_read_only(file: &OwnedFd) -> bool {
    fstatvfs(file).is_ok_and(|status| status.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// The first inode number for single bind-mounted files.
const FOREIGN: u64 = 1 << 62;

/// An inode number for a file on another mount than its directory, for the file system of that directory.
fn foreign_number(identity: &Identity) -> u64 {
    let device = (u64::from(identity.device.0) << 20) ^ u64::from(identity.device.1);
    // Inode numbers seldom have more than 40 bits; what is beyond them is mixed in.
    let place = identity.mount ^ device.rotate_left(7);
    FOREIGN | ((place << 40 ^ identity.number) & (FOREIGN - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::fs::attributes::status;
    use std::fs::{self, File};
    use std::path::Path;

    fn file(path: &Path) -> (OwnedFd, Status) {
        let file = OwnedFd::from(File::open(path).unwrap());
        let status = status(&file).unwrap();
        (file, status)
    }

    fn table(folder: &Path, bound: usize, descriptors: u64) -> Inodes {
        let inodes = Inodes::new(Arc::new(Budget::new(descriptors)), bound);
        let (root, status) = file(folder);
        inodes.set_root(root, &status).unwrap();
        inodes
    }

    #[test]
    fn a_file_has_one_number_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "").unwrap();
        let inodes = table(folder.path(), 10, 10);
        let root = inodes.get(ROOT).unwrap();
        let tell = || {
            let (file, status) = file(&path);
            inodes.tell(&root, c"file", file, &status).unwrap().0.node
        };
        let first = tell();
        assert_eq!(tell(), first);
        let id = inodes.get(first).unwrap().file_id();
        assert_eq!((inodes.forget(first, 1), inodes.know(id)), (None, true));
        assert_eq!((inodes.forget(first, u64::MAX), inodes.know(id)), (Some(id), false));
        assert_eq!(
            [(first, 1), (77, 1), (ROOT, u64::MAX)].map(|(node, count)| inodes.forget(node, count)),
            [None; 3]
        );
        assert!(inodes.get(first).is_err());
        assert_ne!(tell(), first);
    }

    #[test]
    fn nothing_stays_of_files_that_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let inodes = table(folder.path(), 10, 10);
        let root = inodes.get(ROOT).unwrap();
        for number in 0..1000 {
            let (file, status) = file(folder.path());
            // Numbers of some file systems have all 64 bits.
            let identity = Identity { number: u64::MAX - number * 3, ..status.identity() };
            let (kind, origin) = (FileType::RegularFile, Origin::default());
            let (inode, _) = inodes.add(&root, file, identity, kind, Tree::None, origin).unwrap();
            assert_eq!(inode.shown_number, identity.number);
            assert_eq!(inodes.forget(inode.node, 1), Some(inode.file_id()));
        }
        let table = lock(&inodes.table);
        assert_eq!((table.by_node.len(), table.by_key.len()), (1, 1), "the root is left");
    }

    #[test]
    fn beyond_the_bound_the_guest_is_to_keep_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let inodes = table(folder.path(), 2, 3);
        let root = inodes.get(ROOT).unwrap();
        let tell = |name: &str| {
            let path = folder.path().join(name);
            fs::write(&path, "").unwrap();
            let (file, status) = file(&path);
            inodes.tell(&root, c"file", file, &status).map(|(_, timeout)| timeout)
        };
        assert_eq!(tell("a").unwrap(), ATTRIBUTE_TIMEOUT);
        assert_eq!(tell("b").unwrap(), Duration::ZERO);
        // No descriptor is left.
        assert_eq!(tell("c").unwrap_err().raw_os_error(), Some(libc::ENFILE));
        assert!(inodes.is_full());
    }

    #[test]
    fn files_of_other_mounts_have_numbers_of_their_own() {
        let identity = |mount, number| Identity { mount, device: (8, 1), number };
        let number = |mount, number| foreign_number(&identity(mount, number));
        assert_ne!(number(20, 5), number(21, 5));
        assert_ne!(number(20, 5), number(20, 6));
        assert!(number(20, 5) >= FOREIGN);
    }
}
