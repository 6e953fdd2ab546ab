//! Requests for file attributes and for whole file systems.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, chmodat, chownat,
    fstatvfs, ftruncate, utimensat,
};
use vm_memory::ByteValued;

use super::ATTRIBUTE_TIMEOUT;
use super::abi::{
    FileLock, GETATTR_HANDLE, GetattrIn, GetxattrIn, GetxattrOut, IoctlIn, IoctlOut, LockIn, SetattrIn,
    SetxattrIn, StatfsOut, StatxIn, setattr,
};
use super::attributes::{Status, status};
use super::handles::Handle;
use super::inodes::Inode;
use super::locks::{Access, Owner};
use super::message::Caller;
use super::server::{Body, Server, invalid};
use super::xattr::{self, Answer};
use super::{credentials, set_id};

/// The requests of ioctl(2) that file systems share (include/uapi/linux/fs.h), with the bytes that each takes or gives.
/// The three older ones are declared with a `long` and move an `int`.
const IOCTLS: [(u32, usize); 6] = [
    (FS_IOC_GETFLAGS, 4),
    (FS_IOC_SETFLAGS, 4),
    (FS_IOC_GETVERSION, 4),
    (FS_IOC_FSGETXATTR, 28),
    (FS_IOC_FSSETXATTR, 28),
    (FS_IOC_GETFSLABEL, LABEL_MAX),
];
/// Bytes of a file system's label (FSLABEL_MAX), the most that one of them moves.
const LABEL_MAX: usize = 256;
/// `_IOR('f', 1, long)`.
pub const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
/// `_IOW('f', 2, long)`.
pub const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
/// `_IOR('v', 1, long)`.
pub const FS_IOC_GETVERSION: u32 = 0x8008_7601;
/// `_IOR(0x94, 49, char[FSLABEL_MAX])`.
pub const FS_IOC_GETFSLABEL: u32 = 0x8100_9431;
/// `_IOR('X', 31, struct fsxattr)`.
pub const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
/// `_IOW('X', 32, struct fsxattr)`.
pub const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;

impl Server {
    fn status_of(&self, caller: &Caller, node: u64, handle: Option<u64>) -> io::Result<(Arc<Inode>, Status)> {
        let inode = self.inode_for(caller, node)?;
        // An open file's attributes may be read wherever the file is now.
        let handle = handle.and_then(|handle| self.handles.get(node, handle).ok());
        let status = handle.map_or_else(|| status(&inode.file), |handle| status(&*handle))?;
        Ok((inode, status))
    }

    pub(super) fn getattr(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let request: GetattrIn = body.take()?;
        let handle = (request.flags & GETATTR_HANDLE != 0).then_some(request.handle);
        let (inode, status) = self.status_of(caller, node, handle)?;
        Ok(status.attr_out(&inode, ATTRIBUTE_TIMEOUT).as_slice().to_vec())
    }

    pub(super) fn statx(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let request: StatxIn = body.take()?;
        let handle = (request.getattr_flags & GETATTR_HANDLE != 0).then_some(request.handle);
        let (inode, status) = self.status_of(caller, node, handle)?;
        Ok(status.statx_out(&inode, ATTRIBUTE_TIMEOUT).as_slice().to_vec())
    }

    pub(super) fn setattr(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let wanted: SetattrIn = body.take()?;
        let inode = self.inode_for(caller, node)?;
        let has = |bit| wanted.valid & bit != 0;
        if has(setattr::MODE) {
            let mode = Mode::from_raw_mode(wanted.mode & 0o7777);
            chmodat(CWD, inode.path(), mode, AtFlags::empty())?;
        }
        if wanted.valid & setattr::CHANGES == 0 {
            // A chown(2) that keeps owner and group clears the set-id bits. The guest asks for the same before a write
            // of a user who may not do that. The write clears them then.
            let _ = chownat(&inode.file, c"", None, None, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW);
        }
        if has(setattr::UID) || has(setattr::GID) {
            let owner = has(setattr::UID).then(|| Uid::from_raw(wanted.uid));
            let group = has(setattr::GID).then(|| Gid::from_raw(wanted.gid));
            chownat(&inode.file, c"", owner, group, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if has(setattr::SIZE) {
            self.set_size(&inode, &wanted)?;
            // Preserving the set-id bits may have changed the identity.
            credentials::assume(caller)?;
        }
        if has(setattr::ATIME) || has(setattr::MTIME) {
            utimensat(CWD, inode.path(), &times(&wanted), AtFlags::empty())?;
        }
        let status = status(&inode.file)?;
        Ok(status.attr_out(&inode, ATTRIBUTE_TIMEOUT).as_slice().to_vec())
    }

    fn set_size(&self, inode: &Inode, wanted: &SetattrIn) -> io::Result<()> {
        // With an owner or a mode, the guest sets the set-id bits explicitly.
        let says = setattr::MODE | setattr::UID | setattr::GID | setattr::KILL_SET_ID;
        let goes = wanted.valid & says != 0;
        if wanted.valid & setattr::HANDLE != 0 {
            let handle = self.handles.get(inode.node, wanted.handle)?;
            return set_id::keep(&*handle, goes, || Ok(ftruncate(&*handle, wanted.size)?));
        }
        let file: OwnedFd = inode.open(OFlags::WRONLY | OFlags::NONBLOCK)?;
        set_id::keep(&file, goes, || Ok(ftruncate(&file, wanted.size)?))
    }

    pub(super) fn statfs(&self, caller: &Caller, node: u64) -> io::Result<Vec<u8>> {
        let inode = self.inode_for(caller, node)?;
        let space = fstatvfs(&inode.file)?;
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let answer = StatfsOut {
            blocks: space.f_blocks,
            free_blocks: space.f_bfree,
            available_blocks: space.f_bavail,
            files: space.f_files,
            free_files: space.f_ffree,
            block_size: small(space.f_bsize),
            name_length: small(space.f_namemax),
            fragment_size: small(space.f_frsize),
            ..StatfsOut::default()
        };
        Ok(answer.as_slice().to_vec())
    }

    pub(super) fn syncfs(&self, caller: &Caller, node: u64) -> io::Result<()> {
        let inode = self.inodes.get(node)?;
        // A directory of the share tree stands for the file system whose mounts are in it.
        let file = match inode.tree.file_system() {
            Some(mounts) => mounts.file(),
            None => Some(inode),
        };
        // Without a file the guest has changed nothing there.
        let Some(file) = file else { return Ok(()) };
        Ok(rustix::fs::syncfs(open_again(caller, &file, OFlags::RDONLY)?)?)
    }

    pub(super) fn setxattr(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<()> {
        let SetxattrIn { size, flags, .. } = body.take()?;
        let name = body.text()?;
        let value = body.rest().get(..size as usize).ok_or_else(invalid)?;
        xattr::set(&*self.inodes.get(node)?, caller, name, value, flags)
    }

    pub(super) fn getxattr(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let GetxattrIn { size, .. } = body.take()?;
        let name = body.text()?;
        xattr::get(&*self.inodes.get(node)?, caller, name, size).map(attribute)
    }

    pub(super) fn listxattr(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let GetxattrIn { size, .. } = body.take()?;
        xattr::list(&*self.inodes.get(node)?, caller, size).map(attribute)
    }

    pub(super) fn removexattr(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<()> {
        xattr::remove(&*self.inodes.get(node)?, caller, body.text()?)
    }

    pub(super) fn ioctl(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let request: IoctlIn = body.take()?;
        let handle = self.handle_for(caller, node, request.handle)?;
        let known = IOCTLS.iter().find(|(command, _)| *command == request.command);
        let (command, size) = known.copied().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTTY))?;
        let mut data = [0_u8; LABEL_MAX];
        let given = body.rest().len().min(request.in_size as usize).min(size);
        data[..given].copy_from_slice(&body.rest()[..given]);
        file_ioctl(&handle, command, &mut data)?;
        let answer = IoctlOut::default();
        let out = (request.out_size as usize).min(data.len());
        Ok([answer.as_slice(), &data[..out]].concat())
    }

    pub(super) fn getlk(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let LockIn { owner, lock: wanted, flags, .. } = self.lock_request(&mut body)?;
        let inode = self.inodes.get(node)?;
        let open = |access| open_for_locks(caller, &inode, access);
        let found: FileLock = self.locks.test(Owner::new(inode.file_id(), owner, flags), &wanted, open)?;
        Ok(found.as_slice().to_vec())
    }

    pub(super) fn setlk(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<()> {
        let LockIn { owner, lock: wanted, flags, .. } = self.lock_request(&mut body)?;
        let inode = self.inodes.get(node)?;
        let open = |access| open_for_locks(caller, &inode, access);
        let written = self.handles.is_written(node);
        self.locks.set(Owner::new(inode.file_id(), owner, flags), &wanted, written, open)
    }

    /// If the guest does not retry, locks were not negotiated and are local to the guest.
    fn lock_request(&self, body: &mut Body<'_>) -> io::Result<LockIn> {
        if !self.locks_are_retried.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        body.take()
    }
}

/// Opens another descriptor of a file or directory that the caller has open.
///
/// The caller may have opened it with rights that it no longer has, or for writing only. The VMM's own identity may have
/// fewer rights than the caller's, as on a user's FUSE mount.
fn open_again(caller: &Caller, inode: &Inode, access: OFlags) -> io::Result<OwnedFd> {
    let open = || inode.open(access | OFlags::NONBLOCK);
    credentials::assume(caller)?;
    match open() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            credentials::assume_own()?;
            open()
        }
        result => result,
    }
}

fn open_for_locks(caller: &Caller, inode: &Inode, access: Access) -> io::Result<OwnedFd> {
    let access = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::RDWR,
    };
    open_again(caller, inode, access)
}

/// As the protocol has an attribute, or its size.
fn attribute(answer: Answer) -> Vec<u8> {
    match answer {
        Answer::Bytes(bytes) => bytes,
        Answer::Size(size) => GetxattrOut { size, padding: 0 }.as_slice().to_vec(),
    }
}

/// The times that a request sets.
fn times(wanted: &SetattrIn) -> Timestamps {
    let time = |set: u32, now: u32, seconds: u64, nanoseconds: u32| {
        let tv_nsec = match wanted.valid {
            valid if valid & set == 0 => UTIME_OMIT,
            valid if valid & now != 0 => UTIME_NOW,
            _ => nanoseconds.into(),
        };
        // The protocol has signed seconds as unsigned ones.
        Timespec { tv_sec: seconds as i64, tv_nsec }
    };
    Timestamps {
        last_access: time(setattr::ATIME, setattr::ATIME_NOW, wanted.atime, wanted.atime_ns),
        last_modification: time(setattr::MTIME, setattr::MTIME_NOW, wanted.mtime, wanted.mtime_ns),
    }
}

/// Makes one of [`IOCTLS`].
fn file_ioctl(file: &Handle, command: u32, data: &mut [u8; LABEL_MAX]) -> io::Result<()> {
    // SAFETY: each of these requests reads or writes no more than 256 bytes at the pointer, which is live.
    let result =
        unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::c_ulong::from(command), data.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
