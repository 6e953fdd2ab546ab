//! File locks (flock(2), fcntl(2)), taken on the host for processes in the guest, so that they hold against
//! the host and other guests.
//!
//! Each lock owner in the guest, a process or an open file, has its own open file on the host as long as it
//! has a lock. For the host kernel, open files are the owners of both kinds of locks ("Open file description
//! locks" in fcntl_locking(2)). A lock is granted immediately or not at all; the guest retries
//! (kernel-config/0006-fuse-lock-retry.patch).

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rangemap::RangeInclusiveMap;

use super::abi::{FileLock, LOCK_FLOCK};
use super::inodes::FileId;
use crate::bus::lock;

/// Owners of locks in one guest. Each costs a descriptor.
const MAX_OWNERS: usize = 4096;
/// Locks of one guest. Each costs memory of the host's kernel.
const MAX_LOCKS: usize = 65_536;
/// The last byte that a lock can have: all the rest of the file.
const LAST: u64 = i64::MAX as u64;

/// A lock owner, ordered by file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The file, on whichever mount the guest sees it.
    file: FileId,
    /// Whether it is a flock(2) lock.
    flock: bool,
    /// The owner's number in the guest kernel.
    number: u64,
}

impl Owner {
    /// The owner that a request with these flags names.
    pub fn new(file: FileId, number: u64, flags: u32) -> Self {
        Owner { file, flock: flags & LOCK_FLOCK != 0, number }
    }
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading.
    Read,
    /// For reading and writing.
    Write,
}

/// The locks of one owner on one file.
struct Held {
    file: OwnedFd,
    access: Access,
    /// The types of its locks, by the first and last bytes.
    locks: RangeInclusiveMap<u64, i32>,
    /// The locks of all owners.
    count: Arc<AtomicUsize>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.count.fetch_sub(self.locks.len(), Ordering::Relaxed);
    }
}

/// The locks of the guest.
///
/// Opening and locking a file can wait for a server of the host, so both are done without holding the table's lock:
/// requests for other files and owners continue.
#[derive(Default)]
pub struct Locks {
    held: Mutex<BTreeMap<Owner, Arc<Mutex<Held>>>>,
    count: Arc<AtomicUsize>,
}

impl Locks {
    /// Takes, changes or releases a lock. `open` opens the file; with `written` the guest has it open for writing.
    ///
    /// # Errors
    /// `EAGAIN` if another has it; `ENOLCK` if there are too many, or a file was locked for reading before it was opened for writing;
    /// else what the kernel says.
    pub fn set(
        &self,
        owner: Owner,
        wanted: &FileLock,
        written: bool,
        open: impl FnOnce(Access) -> io::Result<OwnedFd>,
    ) -> io::Result<()> {
        let (kind, bytes) = (kind(wanted)?, range(wanted)?);
        if kind != libc::F_UNLCK && self.count.load(Ordering::Relaxed) >= MAX_LOCKS {
            return Err(no_lock());
        }
        let held = match self.get(&owner) {
            Some(held) => held,
            None if kind == libc::F_UNLCK => return Ok(()),
            None => {
                // Opening a file of an image's lower layer for writing copies it up, so this is done only if needed.
                let write = !owner.flock && (written || kind == libc::F_WRLCK);
                self.add(owner, if write { Access::Write } else { Access::Read }, open)?
            }
        };
        let result = lock(&held).set(owner.flock, wanted, kind, bytes);
        self.remove_if_empty(&owner, held);
        result
    }

    /// A lock that conflicts with `wanted`, or `wanted` with the type `F_UNLCK`. The PID of its process is not returned,
    /// because it is on another machine.
    ///
    /// # Errors
    /// The error of opening the file, or the kernel's error.
    pub fn test(
        &self,
        owner: Owner,
        wanted: &FileLock,
        open: impl FnOnce(Access) -> io::Result<OwnedFd>,
    ) -> io::Result<FileLock> {
        let mut record = record(kind(wanted)?, range(wanted)?);
        match self.get(&owner) {
            Some(held) => fcntl(&lock(&held).file, libc::F_OFD_GETLK, &mut record)?,
            None => fcntl(&open(Access::Read)?, libc::F_OFD_GETLK, &mut record)?,
        }
        let start = u64::try_from(record.l_start).unwrap_or(0);
        // A length of 0 is the rest of the file.
        let end = match u64::try_from(record.l_len) {
            Ok(length) if length > 0 => start.saturating_add(length - 1),
            _ => LAST,
        };
        // One of three small numbers.
        Ok(FileLock { start, end, lock_type: record.l_type as u32, pid: 0 })
    }

    /// Whether anybody has a lock of the file.
    pub fn have(&self, file: FileId) -> bool {
        lock(&self.held).range(owners(file)).next().is_some()
    }

    /// Releases all locks of a file that the guest has forgotten.
    pub fn forget(&self, file: FileId) {
        let mut held = lock(&self.held);
        let owners: Vec<Owner> = held.range(owners(file)).map(|(owner, _)| *owner).collect();
        let forgotten: Vec<_> = owners.iter().filter_map(|owner| held.remove(owner)).collect();
        // Closing a file can wait, too.
        drop(held);
        drop(forgotten);
    }

    /// Releases all locks.
    pub fn clear(&self) {
        let held = std::mem::take(&mut *lock(&self.held));
        drop(held);
    }

    fn get(&self, owner: &Owner) -> Option<Arc<Mutex<Held>>> {
        lock(&self.held).get(owner).cloned()
    }

    /// Opens the file for an owner who has no lock in it.
    fn add(
        &self,
        owner: Owner,
        access: Access,
        open: impl FnOnce(Access) -> io::Result<OwnedFd>,
    ) -> io::Result<Arc<Mutex<Held>>> {
        if lock(&self.held).len() >= MAX_OWNERS {
            return Err(no_lock());
        }
        let file = open(access)?;
        let count = self.count.clone();
        let new = Arc::new(Mutex::new(Held { file, access, locks: RangeInclusiveMap::new(), count }));
        let mut held = lock(&self.held);
        if held.len() >= MAX_OWNERS {
            return Err(no_lock());
        }
        // A concurrent request of the owner may have opened it already.
        Ok(held.entry(owner).or_insert(new).clone())
    }

    /// Removes an owner without locks, unless another request is about to take one for it.
    fn remove_if_empty(&self, owner: &Owner, held: Arc<Mutex<Held>>) {
        let mut all = lock(&self.held);
        // The table has one reference, the caller another. The table's lock keeps others from taking one.
        if Arc::strong_count(&held) == 2
            && lock(&held).locks.is_empty()
            && all.get(owner).is_some_and(|known| Arc::ptr_eq(known, &held))
        {
            all.remove(owner);
        }
        drop(all);
        drop(held);
    }
}

impl Held {
    fn set(&mut self, by_flock: bool, wanted: &FileLock, kind: i32, bytes: (i64, i64)) -> io::Result<()> {
        let result = match (by_flock, kind, self.access) {
            (true, ..) => flock(&self.file, kind),
            // Locks of the open file would conflict with those of another.
            (false, libc::F_WRLCK, Access::Read) => Err(no_lock()),
            (false, ..) => fcntl(&self.file, libc::F_OFD_SETLK, &mut record(kind, bytes)),
        };
        let before = self.locks.len();
        match &result {
            Ok(()) if kind == libc::F_UNLCK => self.locks.remove(wanted.start..=wanted.end),
            Ok(()) => self.locks.insert(wanted.start..=wanted.end, kind),
            // A failed conversion of a flock lock releases the old one.
            Err(_) if by_flock => self.locks.clear(),
            Err(_) => {}
        }
        let after = self.locks.len();
        self.count.fetch_add(after, Ordering::Relaxed);
        self.count.fetch_sub(before, Ordering::Relaxed);
        result
    }
}

/// All owners of locks of a file.
fn owners(file: FileId) -> RangeInclusive<Owner> {
    let owner = |flock, number| Owner { file, flock, number };
    owner(false, 0)..=owner(true, u64::MAX)
}

fn no_lock() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOLCK)
}

/// The type of a lock.
fn kind(lock: &FileLock) -> io::Result<i32> {
    [libc::F_RDLCK, libc::F_WRLCK, libc::F_UNLCK]
        .into_iter()
        .find(|kind| i64::from(*kind) == i64::from(lock.lock_type))
        .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Where a lock begins, and how many bytes it has: 0 is the rest of the file.
fn range(lock: &FileLock) -> io::Result<(i64, i64)> {
    if lock.start > lock.end || lock.end > LAST {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // Both fit: they are no more than the last.
    let (start, end) = (lock.start as i64, lock.end as i64);
    Ok((start, if lock.end == LAST { 0 } else { end - start + 1 }))
}

fn record(kind: i32, (start, length): (i64, i64)) -> libc::flock {
    // F_RDLCK and its like are small; the process must be 0 for locks of open files.
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}

fn fcntl(file: &OwnedFd, command: i32, record: &mut libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the kernel reads and writes one record, which is live.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(record)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn flock(file: &OwnedFd, kind: i32) -> io::Result<()> {
    let operation = match kind {
        libc::F_RDLCK => libc::LOCK_SH,
        libc::F_WRLCK => libc::LOCK_EX,
        _ => libc::LOCK_UN,
    };
    // SAFETY: the call takes numbers only.
    let result = unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::path::{Path, PathBuf};

    const FILE: FileId = ((8, 1), 7);

    /// Requests of one guest for a file.
    struct Guest {
        locks: Locks,
        path: PathBuf,
        written: bool,
    }

    fn wanted(kind: i32, start: u64, end: u64) -> FileLock {
        FileLock { start, end, lock_type: kind as u32, pid: 1 }
    }

    impl Guest {
        fn new(path: &Path, written: bool) -> Self {
            Guest { locks: Locks::default(), path: path.to_owned(), written }
        }

        fn owner(number: u64, flags: u32) -> Owner {
            Owner::new(FILE, number, flags)
        }

        fn open(path: &Path) -> impl FnOnce(Access) -> io::Result<OwnedFd> {
            move |access| {
                OpenOptions::new().read(true).write(access == Access::Write).open(path).map(OwnedFd::from)
            }
        }

        /// Whether the lock was granted.
        fn set(&self, number: u64, flags: u32, kind: i32, start: u64, end: u64) -> Result<(), i32> {
            let open = Self::open(&self.path);
            let result =
                self.locks.set(Self::owner(number, flags), &wanted(kind, start, end), self.written, open);
            result.map_err(|error| error.raw_os_error().unwrap())
        }

        fn test(&self, number: u64, kind: i32, start: u64, end: u64) -> (u32, u64, u64) {
            let open = Self::open(&self.path);
            let found = self.locks.test(Self::owner(number, 0), &wanted(kind, start, end), open).unwrap();
            (found.lock_type, found.start, found.end)
        }
    }

    fn file() -> tempfile::NamedTempFile {
        tempfile::NamedTempFile::new().unwrap()
    }

    const READ: i32 = libc::F_RDLCK;
    const WRITE: i32 = libc::F_WRLCK;
    const NONE: i32 = libc::F_UNLCK;

    #[test]
    fn ranges_hold_against_other_guests_and_processes() {
        let file = file();
        let (one, other) = (Guest::new(file.path(), true), Guest::new(file.path(), true));
        assert_eq!(one.set(1, 0, WRITE, 10, 19), Ok(()));
        assert_eq!(other.set(1, 0, READ, 19, LAST), Err(libc::EAGAIN));
        assert_eq!(one.set(2, 0, READ, 0, 10), Err(libc::EAGAIN));
        assert_eq!(other.set(1, 0, WRITE, 20, LAST), Ok(()));
        assert_eq!(one.test(1, READ, 0, LAST), (WRITE as u32, 20, LAST));
        assert_eq!(other.test(3, READ, 0, 15), (WRITE as u32, 10, 19));
        assert_eq!(other.test(3, READ, 0, 9).0, NONE as u32);
        // A part of it is free again, then all.
        assert_eq!(one.set(1, 0, NONE, 15, 19), Ok(()));
        assert_eq!(other.set(4, 0, READ, 15, 19), Ok(()));
        assert_eq!(one.set(1, 0, NONE, 0, LAST), Ok(()));
        assert!(lock(&one.locks.held).is_empty() && one.locks.count.load(Ordering::Relaxed) == 0);
    }

    #[test]
    fn a_lock_for_reading_becomes_one_for_writing() {
        let file = file();
        let guest = Guest::new(file.path(), true);
        assert_eq!(guest.set(1, 0, READ, 0, 99), Ok(()));
        assert_eq!(guest.set(2, 0, READ, 0, 99), Ok(()));
        assert_eq!(guest.set(1, 0, WRITE, 0, 9), Err(libc::EAGAIN));
        // What it had it has still.
        assert_eq!(guest.set(2, 0, WRITE, 50, 59), Err(libc::EAGAIN));
        assert_eq!(guest.set(2, 0, NONE, 0, LAST), Ok(()));
        assert_eq!(guest.set(1, 0, WRITE, 0, 9), Ok(()));
        assert_eq!(guest.set(2, 0, READ, 50, 59), Ok(()));
        // A file that only was read is not opened for writing after all.
        let reader = Guest::new(file.path(), false);
        assert_eq!(reader.set(1, 0, READ, 90, 90), Ok(()));
        assert_eq!(reader.set(1, 0, WRITE, 91, 91), Err(libc::ENOLCK));
    }

    #[test]
    fn whole_files_hold_against_other_guests() {
        let file = file();
        let (one, other) = (Guest::new(file.path(), false), Guest::new(file.path(), false));
        let all = |guest: &Guest, kind| guest.set(1, LOCK_FLOCK, kind, 0, LAST);
        assert_eq!((all(&one, READ), all(&other, READ)), (Ok(()), Ok(())));
        assert_eq!(all(&one, WRITE), Err(libc::EAGAIN));
        // By flock(2) that took the other one away.
        assert!(lock(&one.locks.held).is_empty());
        assert_eq!(all(&other, WRITE), Ok(()));
        assert_eq!(all(&one, READ), Err(libc::EAGAIN));
        assert!(other.locks.have(FILE) && !other.locks.have(((8, 1), 8)));
        other.locks.forget(FILE);
        assert_eq!(all(&one, WRITE), Ok(()));
    }

    #[test]
    fn what_was_not_given_leaves_nothing() {
        let file = file();
        let (one, other) = (Guest::new(file.path(), true), Guest::new(file.path(), true));
        assert_eq!(one.set(1, 0, WRITE, 0, 0), Ok(()));
        assert_eq!(other.set(1, 0, WRITE, 0, 0), Err(libc::EAGAIN));
        assert!(lock(&other.locks.held).is_empty());
        for (kind, start, end) in [(3, 0, 0), (-1, 0, 0), (WRITE, 1, 0), (READ, 0, LAST + 1)] {
            assert_eq!(other.set(1, 0, kind, start, end), Err(libc::EINVAL));
        }
        assert_eq!(other.set(1, 0, NONE, 0, LAST), Ok(()));
    }

    #[test]
    fn a_guest_has_so_many_and_no_more() {
        let file = file();
        let guest = Guest::new(file.path(), true);
        for number in 0..MAX_OWNERS as u64 {
            // Where a process may open fewer files, the test ends there.
            match guest.set(number, 0, READ, 0, 0) {
                Err(libc::EMFILE) => return,
                given => assert_eq!(given, Ok(())),
            }
        }
        assert_eq!(guest.set(u64::MAX, 0, READ, 0, 0), Err(libc::ENOLCK));
        guest.locks.count.store(MAX_LOCKS, Ordering::Relaxed);
        assert_eq!(guest.set(0, 0, READ, 9, 9), Err(libc::ENOLCK));
        assert_eq!(guest.set(0, 0, NONE, 0, LAST), Ok(()));
    }

    #[test]
    fn a_file_that_does_not_open_holds_up_no_other() {
        let file = file();
        let guest = Guest::new(file.path(), true);
        let (opened, goes_on) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let locks = &guest.locks;
            let hung = scope.spawn(move || {
                let open = |_| goes_on.recv().map_err(io::Error::other).and(Err(no_lock()));
                locks.set(Owner::new(((8, 1), 8), 1, 0), &wanted(WRITE, 0, 0), true, open)
            });
            assert_eq!(guest.set(1, 0, WRITE, 0, 9), Ok(()));
            assert_eq!(guest.test(2, READ, 0, 0).0, WRITE as u32);
            assert_eq!(guest.set(1, 0, NONE, 0, LAST), Ok(()));
            opened.send(()).unwrap();
            hung.join().unwrap().unwrap_err();
        });
        assert!(lock(&guest.locks.held).is_empty());
    }
}
