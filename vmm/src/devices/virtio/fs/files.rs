//! Requests for open files and directories.

use std::io;
use std::os::fd::{AsFd, IntoRawFd};

use rustix::fs::{FallocateFlags, FileType, OFlags, SeekFrom, fallocate, fdatasync, fstatfs, fsync, seek};
use vm_memory::ByteValued;

use super::abi::{
    CopyFileRangeIn, FSYNC_DATA, FallocateIn, FlushIn, FsyncIn, LseekIn, LseekOut, OPEN_KILL_SET_ID, OpenIn,
    OpenOut, ReadIn, ReleaseIn, WRITE_CACHE, WRITE_KILL_SET_ID, WriteIn, WriteOut, fopen,
};
use super::attributes::status;
use super::flights::Flight;
use super::handles::is_local;
use super::message::{Caller, MAX_WRITE, Request};
use super::names::is_writable;
use super::server::{Body, Server, invalid, number};
use super::{directory, set_id};

/// Filters the flags of open(2) for the host. The guest kernel handles the others itself: it caches or not
/// (`O_DIRECT`), and marks each appending write (`O_APPEND`).
///
/// # Errors
/// `EINVAL` for `O_PATH` and `O_TMPFILE`, which mean something else on the host and which Linux never sends.
pub fn host_flags(flags: u32) -> io::Result<OFlags> {
    let flags = flags as i32;
    if flags & libc::O_PATH != 0 || flags & libc::O_TMPFILE == libc::O_TMPFILE {
        return Err(invalid());
    }
    let taken = libc::O_ACCMODE | libc::O_TRUNC | libc::O_DSYNC | libc::O_SYNC | libc::O_NOATIME;
    // A lease of another process on the host must not block the thread.
    Ok(OFlags::from_bits_retain((flags & taken) as u32) | OFlags::NONBLOCK | OFlags::CLOEXEC)
}

/// Whether each read must go to the host. A file of size 0 on a file system without blocks is generated when it is read,
/// as those of proc(5).
fn is_made_when_read(file: impl AsFd) -> bool {
    status(&file).is_ok_and(|status| status.kind() == FileType::RegularFile && status.size() == 0)
        && fstatfs(&file)
            .is_ok_and(|fs| fs.f_blocks == 0 && i128::from(fs.f_type) != i128::from(libc::TMPFS_MAGIC))
}

impl Server {
    pub(super) fn open(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let OpenIn { flags, open_flags } = body.take()?;
        let host = host_flags(flags)?;
        let inode = self.inode_for(caller, node)?;
        let writable = is_writable(flags);
        let mut answer = OpenOut::default();
        let open = || -> io::Result<_> {
            let goes = !host.contains(OFlags::TRUNC) || open_flags & OPEN_KILL_SET_ID != 0;
            let file = set_id::keep(&inode.file, goes, || inode.open(host))?;
            // If a server does not send a page, other processes that open the file would wait for it in the guest's page
            // cache, and could not be killed. A request can be interrupted.
            if is_made_when_read(&file) || !is_local(&file) {
                answer.open_flags |= fopen::DIRECT_IO;
            }
            Ok(file)
        };
        answer.handle = self.handles.add(inode.clone(), writable, open)?;
        // A file opened for reading has nothing to flush.
        if !writable {
            answer.open_flags |= fopen::NOFLUSH;
        }
        Ok(answer.as_slice().to_vec())
    }

    pub(super) fn opendir(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let OpenIn { flags, .. } = body.take()?;
        host_flags(flags)?;
        let inode = self.inode_for(caller, node)?;
        let open = || inode.open(OFlags::RDONLY | OFlags::DIRECTORY);
        let handle = self.handles.add(inode.clone(), false, open)?;
        Ok(OpenOut { handle, ..OpenOut::default() }.as_slice().to_vec())
    }

    pub(super) fn readdir(
        &self,
        request: &Request<'_>,
        mut body: Body<'_>,
        plus: bool,
    ) -> io::Result<Vec<u8>> {
        let ReadIn { handle, offset, size, .. } = body.take()?;
        let handle = self.handle_for(&request.caller, request.header.node, handle)?;
        let room = request.reply.room().min(size as usize).min(MAX_WRITE);
        directory::list(&handle, offset, room, plus.then_some(&self.inodes))
    }

    /// Answers a read; `None` if it was interrupted.
    pub(super) fn read(&self, request: Request<'_>, flight: &Flight) -> Option<u32> {
        let found = Body(&request.body).take::<ReadIn>().and_then(|read| {
            let handle = self.handle_for(&request.caller, request.header.node, read.handle)?;
            Ok((handle, read))
        });
        let (handle, read) = match found {
            Ok(found) => found,
            Err(error) => return flight.claim().then(|| request.reply.error(number(&error))),
        };
        let size = (read.size as usize).min(MAX_WRITE).min(request.reply.room());
        if handle.is_local {
            return flight.claim().then(|| request.reply.read_from(handle.as_fd(), size, read.offset));
        }
        // The guest's buffers are not written until the right to answer is taken.
        let mut bytes = vec![0; size];
        let result = read_all(&handle, &mut bytes, read.offset);
        flight.claim().then(|| match result {
            Ok(count) => request.reply.parts(&[&bytes[..count]]),
            Err(error) => request.reply.error(number(&error)),
        })
    }

    /// Answers a write; `None` if it was interrupted.
    pub(super) fn write(&self, request: Request<'_>, flight: &Flight) -> Option<u32> {
        let Request { header, body, data, reply, caller } = request;
        let found = Body(&body).take::<WriteIn>().and_then(|write| {
            let handle = self.handle_for(&caller, header.node, write.handle)?;
            Ok((handle, write))
        });
        let (handle, write) = match found {
            Ok(found) => found,
            Err(error) => return flight.claim().then(|| reply.error(number(&error))),
        };
        // What the guest's cache writes back has a place already.
        let appends = write.flags as i32 & libc::O_APPEND != 0 && write.write_flags & WRITE_CACHE == 0;
        let flags = if appends { libc::RWF_APPEND } else { 0 };
        let goes = write.write_flags & WRITE_KILL_SET_ID != 0;
        let result = if handle.is_local {
            if !flight.claim() {
                return None;
            }
            set_id::keep(&*handle, goes, || data.write_to(handle.as_fd(), write.offset, flags))
        } else {
            let bytes = data.copy();
            let result = set_id::keep(&*handle, goes, || write_all(&handle, &bytes, write.offset, flags));
            if !flight.claim() {
                return None;
            }
            result
        };
        Some(match result {
            // At most what one request moves.
            Ok(count) => reply.parts(&[WriteOut { size: count as u32, padding: 0 }.as_slice()]),
            Err(error) => reply.error(number(&error)),
        })
    }

    pub(super) fn release(&self, node: u64, mut body: Body<'_>) -> io::Result<()> {
        let ReleaseIn { handle, .. } = body.take()?;
        self.handles.remove(node, handle);
        Ok(())
    }

    pub(super) fn flush(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<()> {
        let FlushIn { handle, .. } = body.take()?;
        let handle = self.handle_for(caller, node, handle)?;
        // Closing a duplicate returns the errors of closing the file; on NFS, close writes.
        let second = rustix::io::dup(&*handle)?.into_raw_fd();
        // SAFETY: the descriptor was just made, and nothing else owns it.
        let result = unsafe { libc::close(second) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(super) fn fsync(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<()> {
        let FsyncIn { handle, flags, .. } = body.take()?;
        let handle = self.handle_for(caller, node, handle)?;
        Ok(if flags & FSYNC_DATA != 0 { fdatasync(&*handle) } else { fsync(&*handle) }?)
    }

    pub(super) fn fallocate(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<()> {
        let FallocateIn { handle, offset, length, mode, .. } = body.take()?;
        let handle = self.handle_for(caller, node, handle)?;
        Ok(fallocate(&*handle, FallocateFlags::from_bits_retain(mode), offset, length)?)
    }

    pub(super) fn lseek(&self, caller: &Caller, node: u64, mut body: Body<'_>) -> io::Result<Vec<u8>> {
        let LseekIn { handle, offset, whence, .. } = body.take()?;
        let handle = self.handle_for(caller, node, handle)?;
        // The guest knows its own position and the file's size; only the host knows of holes.
        let target = match whence as i32 {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(invalid()),
        };
        let offset = seek(&*handle, target)?;
        Ok(LseekOut { offset }.as_slice().to_vec())
    }

    pub(super) fn copy_file_range(
        &self,
        caller: &Caller,
        node: u64,
        mut body: Body<'_>,
    ) -> io::Result<Vec<u8>> {
        let copy: CopyFileRangeIn = body.take()?;
        let from = self.handle_for(caller, node, copy.handle)?;
        let to = self.handles.get(copy.to_node, copy.to_handle)?;
        // The answer has 32 bits; the caller continues where it ended.
        let length = usize::try_from(copy.length).unwrap_or(usize::MAX).min(1 << 30);
        let (mut offset, mut to_offset) = (copy.offset, copy.to_offset);
        let count =
            rustix::fs::copy_file_range(&*from, Some(&mut offset), &*to, Some(&mut to_offset), length)?;
        // No more than the length.
        Ok(WriteOut { size: count as u32, padding: 0 }.as_slice().to_vec())
    }
}

/// Fills `bytes` from `offset` on, up to the end of the file.
fn read_all(file: impl AsFd, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        let mut rest = [io::IoSliceMut::new(&mut bytes[done..])];
        let at = offset.saturating_add(done as u64);
        match rustix::io::preadv2(&file, &mut rest, at, rustix::io::ReadWriteFlags::empty()) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

/// Writes `bytes` at `offset`, with these flags of pwritev2(2).
fn write_all(file: impl AsFd, bytes: &[u8], offset: u64, flags: i32) -> io::Result<usize> {
    let flags = rustix::io::ReadWriteFlags::from_bits_retain(flags as u32);
    let mut done = 0;
    while done < bytes.len() {
        let rest = [io::IoSlice::new(&bytes[done..])];
        match rustix::io::pwritev2(&file, &rest, offset.saturating_add(done as u64), flags) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(_) if done > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}
