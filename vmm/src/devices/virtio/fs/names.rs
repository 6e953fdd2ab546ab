//! Requests for directory entries: lookup, create, link, rename and remove.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, getxattr_query, linkat, mkdirat, mknodat, openat,
    readlinkat, renameat_with, symlinkat, unlinkat,
};
use vm_memory::ByteValued;

use super::ATTRIBUTE_TIMEOUT;
use super::abi::{CreateIn, LinkIn, MkdirIn, MknodIn, OpenOut, Rename2In, RenameIn, fopen, op};
use super::attributes::status;
use super::files::host_flags;
use super::handles::is_local;
use super::inodes::Inode;
use super::message::Caller;
use super::server::{Body, Server, no_entry};

/// Opens a file by name with `O_PATH`.
fn find(parent: &Inode, name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(&parent.file, name, flags, Mode::empty())?)
}

/// A second descriptor of an open file, with `O_PATH`.
fn place_of(file: &OwnedFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// The mode of a new file in `parent`: a default access control list takes the place of the umask (acl(5)).
fn masked(parent: &Inode, mode: u32, umask: u32) -> Mode {
    let has_default = getxattr_query(parent.path(), c"system.posix_acl_default").is_ok_and(|size| size > 0);
    Mode::from_raw_mode(if has_default { mode } else { mode & !umask } & 0o7777)
}

impl Server {
    pub(super) fn lookup(&self, caller: &Caller, node: u64, name: &CStr) -> io::Result<Vec<u8>> {
        let parent = self.inode_for(caller, node)?;
        let entry = match self.told(&parent, name) {
            // Cache the negative lookup, because compilers and shells look for a file in many directories.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => no_entry(ATTRIBUTE_TIMEOUT),
            told => return told,
        };
        Ok(entry.as_slice().to_vec())
    }

    /// Looks up the file with a name.
    fn told(&self, parent: &Inode, name: &CStr) -> io::Result<Vec<u8>> {
        let file = find(parent, name)?;
        let status = status(&file)?;
        Ok(self.entry(parent, name, file, &status)?.0.as_slice().to_vec())
    }

    pub(super) fn symlink(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let (name, target) = (body.name()?, body.text()?);
        let parent = self.inode_for(caller, node)?;
        symlinkat(target, &parent.file, name)?;
        self.told(&parent, name)
    }

    pub(super) fn mknod(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let MknodIn { mode, rdev, umask, .. } = body.take()?;
        let name = body.name()?;
        let parent = self.inode_for(caller, node)?;
        // As the kernel packs it (`new_decode_dev` of include/linux/kdev_t.h).
        let (major, minor) = ((rdev & 0xf_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00));
        let device = rustix::fs::makedev(major, minor);
        mknodat(&parent.file, name, FileType::from_raw_mode(mode), masked(&parent, mode, umask), device)?;
        self.told(&parent, name)
    }

    pub(super) fn mkdir(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let MkdirIn { mode, umask } = body.take()?;
        let name = body.name()?;
        let parent = self.inode_for(caller, node)?;
        mkdirat(&parent.file, name, masked(&parent, mode, umask))?;
        self.told(&parent, name)
    }

    pub(super) fn unlink(&self, caller: &Caller, node: u64, name: &CStr, directory: bool) -> io::Result<()> {
        let parent = self.inode_for(caller, node)?;
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        Ok(unlinkat(&parent.file, name, flags)?)
    }

    pub(super) fn rename(
        &self,
        caller: &Caller,
        node: u64,
        mut body: Body<'_>,
        operation: u32,
    ) -> io::Result<()> {
        let (new_parent, flags) = if operation == op::RENAME2 {
            let Rename2In { new_parent, flags, .. } = body.take()?;
            (new_parent, flags)
        } else {
            let RenameIn { new_parent } = body.take()?;
            (new_parent, 0)
        };
        let (name, new_name) = (body.name()?, body.name()?);
        let parent = self.inode_for(caller, node)?;
        let new_parent = self.inodes.get(new_parent)?;
        let flags = RenameFlags::from_bits_retain(flags);
        Ok(renameat_with(&parent.file, name, &new_parent.file, new_name, flags)?)
    }

    pub(super) fn link(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let LinkIn { node: file } = body.take()?;
        let name = body.name()?;
        let parent = self.inode_for(caller, node)?;
        // A link is made on one mount.
        let file = self.inodes.get_beside(file, &parent)?;
        // Its link in /proc leads to the file itself. The other way, AT_EMPTY_PATH, took a capability of the host's
        // before Linux 6.10.
        linkat(CWD, file.path(), &parent.file, name, AtFlags::SYMLINK_FOLLOW)?;
        self.told(&parent, name)
    }

    pub(super) fn create(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let CreateIn { flags, mode, umask, .. } = body.take()?;
        let name = body.name()?;
        let parent = self.inode_for(caller, node)?;
        let exclusive = flags as i32 & libc::O_EXCL != 0;
        let mode = masked(&parent, mode, umask);
        self.made(&parent, name, flags, || {
            let flags = host_flags(flags)? | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            match openat(&parent.file, name, flags, mode) {
                // The file was created after the guest's lookup, and the guest has not checked permissions for it. With this
                // error it looks the file up again and checks (`do_filp_open` of fs/namei.c).
                Err(rustix::io::Errno::EXIST) if !exclusive => {
                    Err(io::Error::from_raw_os_error(libc::ESTALE))
                }
                result => Ok(result?),
            }
        })
    }

    pub(super) fn tmpfile(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let CreateIn { flags, mode, umask, .. } = body.take()?;
        let parent = self.inode_for(caller, node)?;
        let mode = masked(&parent, mode, umask);
        let exclusive = OFlags::from_bits_truncate(flags) & OFlags::EXCL;
        // The purpose of the request is in its flags too.
        let flags = flags & !(libc::O_TMPFILE as u32);
        self.made(&parent, c"", flags, || {
            let flags = host_flags(flags)? | OFlags::TMPFILE | exclusive;
            Ok(openat(CWD, parent.path(), flags, mode)?)
        })
    }

    /// Answers with a new file of this name, if it has one, that `make` creates and opens.
    fn made(
        &self,
        parent: &Inode,
        name: &CStr,
        flags: u32,
        make: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<Vec<u8>> {
        let file = make()?;
        let place = place_of(&file)?;
        let status = status(&place)?;
        let (entry, inode) = self.entry(parent, name, place, &status)?;
        let node = inode.node;
        let open_flags = if is_local(&file) { 0 } else { fopen::DIRECT_IO };
        let added = self.handles.add(inode, is_writable(flags), || Ok(file));
        let handle = added.inspect_err(|_| {
            self.inodes.forget(node, 1);
        })?;
        let opened = OpenOut { handle, open_flags, ..OpenOut::default() };
        Ok([entry.as_slice(), opened.as_slice()].concat())
    }

    pub(super) fn readlink(&self, caller: &Caller, node: u64) -> io::Result<Vec<u8>> {
        let inode = self.inode_for(caller, node)?;
        Ok(readlinkat(&inode.file, c"", Vec::new())?.into_bytes())
    }
}

/// Whether these flags of open(2) open a file for writing.
pub fn is_writable(flags: u32) -> bool {
    flags as i32 & libc::O_ACCMODE != libc::O_RDONLY
}
