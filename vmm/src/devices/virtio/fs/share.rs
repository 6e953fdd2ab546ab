//! The shared files: what the guest asks of them, checked, counted and locked before the server does it.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, FOPEN_IN_KILL_SUIDGID, WRITE_KILL_PRIV, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileLock, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use fuse_backend_rs::passthrough::PassthroughFs;
use nix::fcntl::OFlag;

use super::descriptors::Descriptors;
use super::known::Known;
use super::locks::{Access, Locks, Owner};
use super::{VALIDITY, links, set_id};

/// A passthrough file system of which the guest keeps no more than a number of files.
pub struct Share {
    files: PassthroughFs,
    descriptors: Descriptors,
    known: Mutex<Known>,
    /// The files that the guest has open for writing, and as what: inode and handle.
    written: Mutex<BTreeSet<(u64, u64)>>,
    locks: Mutex<Locks>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Share {
    /// Shares `files`; beyond `bound` of them, the guest keeps only those that it uses. Must be called
    /// while `/proc` is there.
    ///
    /// # Errors
    /// What opening `/proc/self/fd` says.
    pub fn new(files: PassthroughFs, bound: usize) -> io::Result<Self> {
        let descriptors = Descriptors::new()?;
        let known = Mutex::new(Known::new(bound));
        let (written, locks) = Default::default();
        Ok(Share { files, descriptors, known, written, locks })
    }

    fn told(&self, entry: Entry) -> Entry {
        lock(&self.known).told(entry)
    }

    fn forgotten(&self, inode: u64, count: u64) {
        if lock(&self.known).forgotten(inode, count) {
            lock(&self.locks).forget(inode);
        }
    }

    /// Notes that the guest has a file open for writing, if these flags say so.
    fn opened(&self, inode: u64, handle: Option<u64>, flags: u32) {
        if let Some(handle) = handle
            && flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
        {
            lock(&self.written).insert((inode, handle));
        }
    }

    fn is_written(&self, inode: u64) -> bool {
        lock(&self.written).range((inode, 0)..=(inode, u64::MAX)).next().is_some()
    }

    /// Opens a file or directory anew, for locks.
    fn open_for_locks(&self, context: &Context, inode: u64, access: Access) -> io::Result<File> {
        let (attributes, _) = self.files.getattr(context, inode, None)?;
        // Opening anything else does something.
        if ![libc::S_IFREG, libc::S_IFDIR].contains(&(attributes.st_mode & libc::S_IFMT)) {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let flags = match access {
            Access::Read => OFlag::O_RDONLY,
            Access::Write => OFlag::O_RDWR,
        };
        self.descriptors.open(&self.files, context, inode, flags)
    }
}

/// What the guest's kernel may do beside what the file system asks for. Locks are the host's; requests are large, and several
/// reads on their way; a file that is opened anew and cut needs one request; and what others wrote to a file that is open is seen when
/// its time of change is another (see kernel-config/0016-fuse-own-writes.patch).
const OPTIONS: FsOptions = FsOptions::POSIX_LOCKS
    .union(FsOptions::FLOCK_LOCKS)
    .union(FsOptions::BIG_WRITES)
    .union(FsOptions::MAX_PAGES)
    .union(FsOptions::ASYNC_READ)
    .union(FsOptions::ATOMIC_O_TRUNC)
    .union(FsOptions::PARALLEL_DIROPS)
    .union(FsOptions::AUTO_INVAL_DATA);

/// The largest value, and the largest list, of extended attributes (include/uapi/linux/limits.h:
/// `XATTR_SIZE_MAX`, `XATTR_LIST_MAX`). The server makes room for what the guest asks for.
const XATTR_SIZE_MAX: u32 = 65_536;

/// Refuses to open a file in ways that mean something else on the host: a guest's kernel does neither. With
/// `O_PATH` symbolic links would be followed where a file is to be made.
fn check_flags(flags: u32) -> io::Result<()> {
    let flags = flags as i32;
    if flags & libc::O_PATH != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    Ok(())
}

/// Operations that tell the guest of no file: the file system's own.
macro_rules! pass_on {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) -> $result:ty;)*) => {
        $(fn $name(&self, $($argument: $kind),*) -> $result {
            self.files.$name($($argument),*)
        })*
    };
}

impl FileSystem for Share {
    type Inode = u64;
    type Handle = u64;

    pass_on! {
        fn getattr(ctx: &Context, inode: u64, handle: Option<u64>) -> io::Result<(stat64, Duration)>;
        fn readlink(ctx: &Context, inode: u64) -> io::Result<Vec<u8>>;
        fn unlink(ctx: &Context, parent: u64, name: &CStr) -> io::Result<()>;
        fn rmdir(ctx: &Context, parent: u64, name: &CStr) -> io::Result<()>;
        fn rename(ctx: &Context, from: u64, name: &CStr, to: u64, new_name: &CStr, flags: u32)
            -> io::Result<()>;
        fn read(ctx: &Context, inode: u64, handle: u64, to: &mut dyn ZeroCopyWriter, size: u32, offset: u64,
            owner: Option<u64>, flags: u32) -> io::Result<usize>;
        fn flush(ctx: &Context, inode: u64, handle: u64, owner: u64) -> io::Result<()>;
        fn fsync(ctx: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()>;
        fn fallocate(ctx: &Context, inode: u64, handle: u64, mode: u32, offset: u64, length: u64)
            -> io::Result<()>;
        fn statfs(ctx: &Context, inode: u64) -> io::Result<statvfs64>;
        fn setxattr(ctx: &Context, inode: u64, name: &CStr, value: &[u8], flags: u32) -> io::Result<()>;
        fn removexattr(ctx: &Context, inode: u64, name: &CStr) -> io::Result<()>;
        fn readdir(ctx: &Context, inode: u64, handle: u64, size: u32, offset: u64,
            add: &mut dyn FnMut(DirEntry) -> io::Result<usize>) -> io::Result<()>;
        fn fsyncdir(ctx: &Context, inode: u64, data_only: bool, handle: u64) -> io::Result<()>;
        fn releasedir(ctx: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()>;
        fn access(ctx: &Context, inode: u64, mask: u32) -> io::Result<()>;
        fn lseek(ctx: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64>;
    }

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        Ok(self.files.init(capable)? | OPTIONS)
    }

    fn release(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        unlock: bool,
        owner: Option<u64>,
    ) -> io::Result<()> {
        lock(&self.written).remove(&(inode, handle));
        self.files.release(ctx, inode, flags, handle, flush, unlock, owner)
    }

    fn getlk(
        &self,
        ctx: &Context,
        inode: u64,
        _handle: u64,
        owner: u64,
        wanted: FileLock,
        flags: u32,
    ) -> io::Result<FileLock> {
        let open = |access| self.open_for_locks(ctx, inode, access);
        lock(&self.locks).test(Owner::new(inode, owner, flags), &wanted, open)
    }

    fn setlk(
        &self,
        ctx: &Context,
        inode: u64,
        _handle: u64,
        owner: u64,
        wanted: FileLock,
        flags: u32,
    ) -> io::Result<()> {
        let open = |access| self.open_for_locks(ctx, inode, access);
        lock(&self.locks).set(Owner::new(inode, owner, flags), &wanted, self.is_written(inode), open)
    }

    fn getxattr(&self, ctx: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        self.files.getxattr(ctx, inode, name, size.min(XATTR_SIZE_MAX))
    }

    fn listxattr(&self, ctx: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        self.files.listxattr(ctx, inode, size.min(XATTR_SIZE_MAX))
    }

    fn opendir(&self, ctx: &Context, inode: u64, flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        check_flags(flags)?;
        self.files.opendir(ctx, inode, flags)
    }

    fn setattr(
        &self,
        ctx: &Context,
        inode: u64,
        attributes: stat64,
        handle: Option<u64>,
        valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        let set = || self.files.setattr(ctx, inode, attributes, handle, valid);
        if !valid.contains(SetattrValid::SIZE) {
            return set();
        }
        // With an owner or a mode, it says itself what becomes of the bits.
        let says = SetattrValid::MODE | SetattrValid::UID | SetattrValid::GID | SetattrValid::KILL_SUIDGID;
        set_id::keep(&self.files, ctx, inode, handle, valid.intersects(says), set)?;
        self.files.getattr(ctx, inode, handle)
    }

    fn open(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        check_flags(flags)?;
        let open = || self.files.open(ctx, inode, flags, fuse_flags);
        let opened = if flags & libc::O_TRUNC as u32 == 0 {
            open()?
        } else {
            set_id::keep(&self.files, ctx, inode, None, fuse_flags & FOPEN_IN_KILL_SUIDGID != 0, open)?
        };
        self.opened(inode, opened.0, flags);
        Ok(opened)
    }

    fn write(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        from: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        owner: Option<u64>,
        delayed: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        let write =
            || self.files.write(ctx, inode, handle, from, size, offset, owner, delayed, flags, fuse_flags);
        set_id::keep(&self.files, ctx, inode, Some(handle), fuse_flags & WRITE_KILL_PRIV != 0, write)
    }

    fn destroy(&self) {
        lock(&self.known).clear();
        lock(&self.written).clear();
        *lock(&self.locks) = Locks::default();
        self.files.destroy();
    }

    fn lookup(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        match self.files.lookup(ctx, parent, name) {
            // The guest need not ask again at once: compilers and shells look for a file in many places.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(Entry { inode: 0, entry_timeout: VALIDITY, ..Entry::default() })
            }
            result => result.map(|entry| self.told(entry)),
        }
    }

    fn symlink(&self, ctx: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.files.symlink(ctx, target, parent, name).map(|entry| self.told(entry))
    }

    fn mknod(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        device: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.files.mknod(ctx, parent, name, mode, device, umask).map(|entry| self.told(entry))
    }

    fn mkdir(&self, ctx: &Context, parent: u64, name: &CStr, mode: u32, umask: u32) -> io::Result<Entry> {
        self.files.mkdir(ctx, parent, name, mode, umask).map(|entry| self.told(entry))
    }

    fn link(&self, ctx: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        let entry = match self.files.link(ctx, inode, parent, name) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                links::link(&self.descriptors, &self.files, ctx, inode, parent, name)?;
                self.files.lookup(ctx, parent, name)?
            }
            result => result?,
        };
        Ok(self.told(entry))
    }

    fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &CStr,
        arguments: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        check_flags(arguments.flags)?;
        let (mut entry, handle, options, backing) = self.files.create(ctx, parent, name, arguments)?;
        // Of a file that was there already, the entry is what it was before it was cut.
        if arguments.flags & libc::O_TRUNC as u32 != 0 {
            entry.attr.st_size = 0;
        }
        self.opened(entry.inode, handle, arguments.flags);
        Ok((self.told(entry), handle, options, backing))
    }

    fn readdirplus(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.files.readdirplus(ctx, inode, handle, size, offset, &mut |name, entry| {
            let number = entry.inode;
            let added = add(name, self.told(entry));
            // There was no room for it: the file system takes it back itself.
            if matches!(added, Ok(0)) {
                self.forgotten(number, 1);
            }
            added
        })
    }

    fn forget(&self, ctx: &Context, inode: u64, count: u64) {
        self.forgotten(inode, count);
        self.files.forget(ctx, inode, count);
    }

    fn batch_forget(&self, ctx: &Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in &requests {
            self.forgotten(*inode, *count);
        }
        self.files.batch_forget(ctx, requests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fuse_backend_rs::passthrough::Config;
    use std::fs;

    fn share(folder: &std::path::Path, bound: usize) -> Share {
        let config = Config {
            root_dir: folder.to_str().unwrap().to_owned(),
            entry_timeout: VALIDITY,
            use_host_ino: true,
            ..Config::default()
        };
        let files = PassthroughFs::new(config).unwrap();
        files.import().unwrap();
        Share::new(files, bound).unwrap()
    }

    #[test]
    fn beyond_the_bound_the_guest_is_to_keep_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let names = [c"a", c"b", c"c"];
        for name in names {
            fs::write(folder.path().join(name.to_str().unwrap()), "").unwrap();
        }
        let (share, context) = (share(folder.path(), 2), Context::default());
        let look = |name| share.lookup(&context, 1, name).unwrap();
        let [first, second, third] = names.map(look);
        assert_eq!(
            [first, second, third].map(|entry| entry.entry_timeout),
            [VALIDITY, VALIDITY, Duration::ZERO]
        );
        // Told twice of one file, it knows one file.
        look(c"a");
        share.batch_forget(&context, vec![(third.inode, 1), (first.inode, 1)]);
        assert_eq!(lock(&share.known).len(), 2);
        assert_eq!(look(c"c").entry_timeout, Duration::ZERO);
        share.forget(&context, first.inode, 1);
        assert_eq!(look(c"b").entry_timeout, VALIDITY);
    }

    #[test]
    fn that_there_is_no_file_is_to_be_kept_in_mind() {
        let folder = tempfile::tempdir().unwrap();
        let (share, context) = (share(folder.path(), 100), Context::default());
        let missing = share.lookup(&context, 1, c"missing").unwrap();
        assert_eq!((missing.inode, missing.entry_timeout), (0, VALIDITY));
        assert_eq!(lock(&share.known).len(), 0);
        fs::write(folder.path().join("missing"), "").unwrap();
        assert_ne!(share.lookup(&context, 1, c"missing").unwrap().inode, 0);
    }

    #[test]
    fn a_file_that_was_there_after_all_is_empty_when_it_is_cut() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "text").unwrap();
        let (share, context) = (share(folder.path(), 100), Context::default());
        let flags = (libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC) as u32;
        let create = CreateIn { flags, mode: 0o644, umask: 0, fuse_flags: 0 };
        let (entry, ..) = share.create(&context, 1, c"file", create).unwrap();
        assert_eq!((entry.attr.st_size, fs::read(folder.path().join("file")).unwrap()), (0, vec![]));
    }

    #[test]
    fn a_file_is_not_opened_in_ways_that_mean_something_else_on_the_host() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/proc/self/status", folder.path().join("link")).unwrap();
        let (share, context) = (share(folder.path(), 100), Context::default());
        for flags in [libc::O_PATH, libc::O_TMPFILE | libc::O_RDWR] {
            let flags = flags as u32;
            let refused = |error: io::Error| error.raw_os_error() == Some(libc::EINVAL);
            assert!(share.open(&context, 1, flags, 0).is_err_and(refused));
            assert!(share.opendir(&context, 1, flags).is_err_and(refused));
            let create = CreateIn { flags, mode: 0o644, umask: 0, fuse_flags: 0 };
            assert!(share.create(&context, 1, c"link", create).is_err_and(refused));
        }
    }

    #[test]
    fn a_file_is_locked_as_the_guest_has_it_open() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let (one, other) = (share(folder.path(), 100), share(folder.path(), 100));
        let context = Context::default();
        let lock = |share: &Share, inode, kind: i32| {
            let wanted = FileLock { start: 0, end: 0, lock_type: kind as u32, pid: 1 };
            share.setlk(&context, inode, 0, 1, wanted, 0).map_err(|error| error.raw_os_error().unwrap())
        };
        let look = |share: &Share| share.lookup(&context, 1, c"file").unwrap().inode;
        let (first, second) = (look(&one), look(&other));
        let handle = one.open(&context, first, libc::O_RDWR as u32, 0).unwrap().0.unwrap();
        // For reading first, and then for writing, as databases do.
        assert_eq!(lock(&one, first, libc::F_RDLCK), Ok(()));
        assert_eq!(lock(&one, first, libc::F_WRLCK), Ok(()));
        assert_eq!(lock(&other, second, libc::F_RDLCK), Err(libc::EAGAIN));
        one.release(&context, first, 0, handle, false, false, None).unwrap();
        assert!(!one.is_written(first));
        // What is no file or directory is not opened.
        one.mknod(&context, 1, c"fifo", libc::S_IFIFO | 0o644, 0, 0).unwrap();
        let fifo = one.lookup(&context, 1, c"fifo").unwrap().inode;
        assert_eq!(lock(&one, fifo, libc::F_RDLCK), Err(libc::EBADF));
        one.forget(&context, first, 1);
        assert_eq!(lock(&other, second, libc::F_RDLCK), Ok(()));
    }

    #[test]
    fn no_more_room_is_made_than_a_value_can_take() {
        let folder = tempfile::tempdir().unwrap();
        let (share, context) = (share(folder.path(), 100), Context::default());
        // With room for 4 GiB, the process would end.
        let _ = share.getxattr(&context, 1, c"user.none", u32::MAX);
        let _ = share.listxattr(&context, 1, u32::MAX);
    }

    #[test]
    fn what_a_guest_forgets_without_having_been_told_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (share, context) = (share(folder.path(), 1), Context::default());
        share.forget(&context, 77, u64::MAX);
        let made = share.mkdir(&context, 1, c"d", 0o755, 0).unwrap();
        share.forget(&context, made.inode, u64::MAX);
        assert_eq!(lock(&share.known).len(), 0);
    }

    #[test]
    fn a_listing_counts_what_it_had_room_for() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let (share, context) = (share(folder.path(), 100), Context::default());
        let (handle, _) = share.opendir(&context, 1, 0).unwrap();
        let mut rooms = [1, 1, 0].into_iter();
        let mut add = |_: DirEntry, _: Entry| Ok(rooms.next().unwrap_or(0));
        share.readdirplus(&context, 1, handle.unwrap_or_default(), 4096, 0, &mut add).unwrap();
        assert_eq!(lock(&share.known).len(), 2);
    }
}
