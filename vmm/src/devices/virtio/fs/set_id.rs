//! Keeps the set-user-id and set-group-id bits of a file through a change of its contents.
//!
//! Linux takes them away when a file is written or cut, unless the process has `CAP_FSETID` in the
//! host's own user namespace (`setattr_should_drop_suidgid` in fs/attr.c), which the VMM never has. Its
//! guest's kernel says whether the process in the guest has it: see `FUSE_HANDLE_KILLPRIV_V2` in
//! include/uapi/linux/fuse.h.

use std::io;

use fuse_backend_rs::abi::fuse_abi::stat64;
use fuse_backend_rs::api::filesystem::{Context, FileSystem, SetattrValid};
use fuse_backend_rs::passthrough::PassthroughFs;

const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

fn is_set_id(attributes: &stat64) -> bool {
    attributes.st_mode & libc::S_IFMT == libc::S_IFREG && attributes.st_mode & SET_ID != 0
}

/// Runs `change` on the contents of a file. Unless the guest says that they `go`, the file then has the
/// set-id bits that it had before.
///
/// # Errors
/// Those of `change`. That the bits could not be given back is none: the file is then less than it
/// was, and never more.
pub fn keep<T>(
    files: &PassthroughFs,
    context: &Context,
    inode: u64,
    handle: Option<u64>,
    go: bool,
    change: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    if go {
        return change();
    }
    let before = files.getattr(context, inode, handle).ok().map(|(attributes, _)| attributes);
    let result = change()?;
    if let Some(before) = before.filter(is_set_id) {
        let _ = files.setattr(context, inode, before, handle, SetattrValid::MODE);
    }
    Ok(result)
}
