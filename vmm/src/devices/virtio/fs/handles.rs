//! The files and directories that the guest has open.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use super::budget::{Budget, Permit};
use super::inodes::Inode;
use crate::bus::lock;

/// An open file or directory.
pub struct Handle {
    /// What is open.
    pub inode: Arc<Inode>,
    /// Whether its file system is local to the host, so that no server can block a request.
    pub is_local: bool,
    /// A directory's position is used by one request at a time.
    pub position: Mutex<()>,
    file: OwnedFd,
    writable: bool,
    _permit: Permit,
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[derive(Default)]
struct Table {
    /// By inode and handle.
    open: BTreeMap<(u64, u64), Arc<Handle>>,
    last: u64,
}

/// All open files of the guest.
pub struct Handles {
    table: Mutex<Table>,
    budget: Arc<Budget>,
}

impl Handles {
    /// Nothing is open.
    pub fn new(budget: Arc<Budget>) -> Self {
        Handles { table: Mutex::default(), budget }
    }

    /// Opens a file by `open`, which is called if a descriptor is left; returns the handle's number.
    ///
    /// # Errors
    /// `ENFILE` if no descriptor is left; those of `open`.
    pub fn add(
        &self,
        inode: Arc<Inode>,
        writable: bool,
        open: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<u64> {
        let permit = self.budget.take()?;
        let file = open()?;
        let is_local = is_local(&file);
        let mut table = lock(&self.table);
        table.last += 1;
        let number = table.last;
        let node = inode.node;
        let handle = Handle { inode, is_local, position: Mutex::default(), file, writable, _permit: permit };
        table.open.insert((node, number), Arc::new(handle));
        Ok(number)
    }

    /// The open file of this inode and handle.
    ///
    /// # Errors
    /// `EBADF` if it is not open.
    pub fn get(&self, node: u64, number: u64) -> io::Result<Arc<Handle>> {
        let found = lock(&self.table).open.get(&(node, number)).cloned();
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// Closes it, when nothing uses it any more.
    pub fn remove(&self, node: u64, number: u64) {
        let gone = lock(&self.table).open.remove(&(node, number));
        drop(gone);
    }

    /// Whether the guest has the file open for writing.
    pub fn is_written(&self, node: u64) -> bool {
        lock(&self.table).open.range((node, 0)..=(node, u64::MAX)).any(|(_, handle)| handle.writable)
    }

    /// Closes all.
    pub fn clear(&self) {
        let all = std::mem::take(&mut lock(&self.table).open);
        drop(all);
    }
}

/// File systems without a server (statfs(2)), by their numbers in linux/magic.h.
const LOCAL: [i64; 13] = [
    libc::EXT4_SUPER_MAGIC,
    libc::XFS_SUPER_MAGIC,
    libc::BTRFS_SUPER_MAGIC,
    libc::TMPFS_MAGIC,
    libc::OVERLAYFS_SUPER_MAGIC,
    libc::F2FS_SUPER_MAGIC,
    libc::PROC_SUPER_MAGIC,
    libc::SYSFS_MAGIC,
    libc::CGROUP2_SUPER_MAGIC,
    // ramfs, squashfs, EROFS and ZFS.
    0x8584_58f6,
    0x7371_7368,
    0xe0f5_e1e2,
    0x2fc1_2fc1,
];

/// Whether a file can be read and written without a server.
pub fn is_local(file: impl AsFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|fs| LOCAL.contains(&fs.f_type))
}
