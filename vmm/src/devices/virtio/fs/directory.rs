//! Directory listings.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, openat, seek};
use vm_memory::ByteValued;

use super::ATTRIBUTE_TIMEOUT;
use super::abi::{Attr, Dirent, EntryOut};
use super::attributes::{status, status_at_hand};
use super::handles::Handle;
use super::inodes::{Identity, Inodes};
use super::tree::Tree;
use crate::bus::lock;

/// Bytes that are read of a directory at once.
const CHUNK: usize = 32 << 10;

/// The names in an open directory from `offset` on, as many as `room` bytes hold. With `inodes` each file is added to the
/// inode table, as by a lookup.
///
/// # Errors
/// The error of getdents64(2). A failed lookup of a file is no error; its name is listed.
pub fn list(handle: &Handle, offset: u64, room: usize, inodes: Option<&Inodes>) -> io::Result<Vec<u8>> {
    let _alone = lock(&handle.position);
    seek(handle, SeekFrom::Start(offset))?;
    let mut buffer = vec![MaybeUninit::uninit(); CHUNK];
    let mut entries = RawDir::new(handle, &mut buffer);
    let mut listing = Vec::with_capacity(room.min(CHUNK));
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Ok(entry) => entry,
            // Return what was listed so far first.
            Err(_) if !listing.is_empty() => break,
            Err(error) => return Err(error.into()),
        };
        let (name, kind) = (entry.file_name(), entry.file_type());
        let head = if inodes.is_some() { size_of::<EntryOut>() } else { 0 };
        let length = head + size_of::<Dirent>() + name.to_bytes().len().next_multiple_of(8);
        if listing.len() + length > room {
            break;
        }
        let mut ino = entry.ino();
        if let Some(inodes) = inodes {
            let entry = told(handle, name, inodes).unwrap_or_else(|| unknown(ino, kind));
            // A mount has the number here that it covers, as on the host.
            if entry.node != 0 {
                ino = entry.attr.ino;
            }
            listing.extend(entry.as_slice());
        }
        let dirent = Dirent {
            ino,
            offset: entry.next_entry_cookie(),
            // A name has at most 255 bytes.
            name_length: name.to_bytes().len() as u32,
            kind: kind.as_raw_mode() >> 12,
        };
        listing.extend(dirent.as_slice());
        listing.extend(name.to_bytes());
        listing.resize(listing.len().next_multiple_of(8), 0);
    }
    Ok(listing)
}

/// Looks up the file with this name for the guest. `None` if the guest must look it up itself: the lookup failed, the
/// file is on another mount, whose server could block the listing, or the directory is of the share tree.
fn told(handle: &Handle, name: &CStr, inodes: &Inodes) -> Option<EntryOut> {
    let directory = &handle.inode;
    let of_tree = !matches!(directory.tree, Tree::None);
    if matches!(name.to_bytes(), b"." | b"..") || inodes.is_full() || of_tree {
        return None;
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&directory.file, name, flags, rustix::fs::Mode::empty()).ok()?;
    let identity = status_at_hand(&file).ok()?.identity();
    let place = |identity: &Identity| (identity.mount, identity.device);
    if place(&identity) != place(&directory.identity) {
        return None;
    }
    let status = status(&file).ok()?;
    let (inode, timeout) = inodes.tell(directory, name, file, &status).ok()?;
    Some(status.entry_out(directory, &inode, timeout, ATTRIBUTE_TIMEOUT))
}

/// An entry without a file (`fuse_direntplus_link` of fs/fuse/readdir.c).
fn unknown(ino: u64, kind: FileType) -> EntryOut {
    let attr = Attr { ino, mode: kind.as_raw_mode(), ..Attr::default() };
    EntryOut { attr, ..EntryOut::default() }
}
