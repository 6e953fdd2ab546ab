//! The shared files, with a bound on how many of them the guest keeps in mind.
//!
//! The server holds a descriptor for each file that the guest knows, and with it some 3 KiB of the
//! host kernel's memory. By itself a guest forgets files only when its own memory is short, so it
//! would hold a multiple of that memory on the host. Beyond the bound it is told of files for no
//! time at all, and Linux forgets such a file as soon as nothing uses it (`fuse_dentry_delete` in
//! fs/fuse/dir.c). A guest that does not is stopped by the VMM's limit of open files.

use std::collections::HashMap;
use std::ffi::CStr;
use std::io;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, FOPEN_IN_KILL_SUIDGID, WRITE_KILL_PRIV, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};
use fuse_backend_rs::passthrough::PassthroughFs;

use super::links::Links;
use super::set_id;

/// A passthrough file system of which the guest keeps no more than a number of files.
pub struct Share {
    files: PassthroughFs,
    links: Links,
    bound: usize,
    /// The files that the guest knows by their numbers, with how often it was told of each: what FUSE
    /// calls the lookup count.
    known: Mutex<HashMap<u64, u64>>,
}

impl Share {
    /// Shares `files`; beyond `bound` of them, the guest keeps only those that it uses. Must be called
    /// while `/proc` is there.
    ///
    /// # Errors
    /// What opening `/proc/self/fd` says.
    pub fn new(files: PassthroughFs, bound: usize) -> io::Result<Self> {
        Ok(Share { files, links: Links::new()?, bound, known: Mutex::default() })
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Counts an entry that the guest is told of.
    fn told(&self, mut entry: Entry) -> Entry {
        let mut known = self.known();
        let count = known.entry(entry.inode).or_default();
        *count = count.saturating_add(1);
        if known.len() > self.bound {
            entry.entry_timeout = Duration::ZERO;
        }
        entry
    }

    fn forgotten(&self, inode: u64, count: u64) {
        let mut known = self.known();
        if let Some(told) = known.get_mut(&inode) {
            *told = told.saturating_sub(count);
            if *told == 0 {
                known.remove(&inode);
            }
        }
    }
}

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
        fn init(capable: FsOptions) -> io::Result<FsOptions>;
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
        fn release(ctx: &Context, inode: u64, flags: u32, handle: u64, flush: bool, unlock: bool,
            owner: Option<u64>) -> io::Result<()>;
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
        if flags & libc::O_TRUNC as u32 == 0 {
            return open();
        }
        set_id::keep(&self.files, ctx, inode, None, fuse_flags & FOPEN_IN_KILL_SUIDGID != 0, open)
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
        self.known().clear();
        self.files.destroy();
    }

    fn lookup(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.files.lookup(ctx, parent, name).map(|entry| self.told(entry))
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
                self.links.link(&self.files, ctx, inode, parent, name)?;
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
        let (entry, handle, options, backing) = self.files.create(ctx, parent, name, arguments)?;
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

    const VALID: Duration = Duration::from_secs(1);

    fn share(folder: &std::path::Path, bound: usize) -> Share {
        let config = Config {
            root_dir: folder.to_str().unwrap().to_owned(),
            entry_timeout: VALID,
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
        assert_eq!([first, second, third].map(|entry| entry.entry_timeout), [VALID, VALID, Duration::ZERO]);
        // Told twice of one file, it knows one file.
        look(c"a");
        share.batch_forget(&context, vec![(third.inode, 1), (first.inode, 1)]);
        assert_eq!(share.known().len(), 2);
        assert_eq!(look(c"c").entry_timeout, Duration::ZERO);
        share.forget(&context, first.inode, 1);
        assert_eq!(look(c"b").entry_timeout, VALID);
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
        assert!(share.known().is_empty());
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
        assert_eq!(share.known().len(), 2);
    }
}
