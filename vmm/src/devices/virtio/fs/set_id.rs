//! Preserves the set-user-ID and set-group-ID bits of a file when its content changes.
//!
//! Linux clears them when a file is written or truncated, unless the process has `CAP_FSETID` in the host's
//! initial user namespace (`setattr_should_drop_suidgid` in fs/attr.c), which the VMM never has. The guest
//! kernel reports whether the process in the guest has it: see `FUSE_HANDLE_KILLPRIV_V2` in
//! include/uapi/linux/fuse.h.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{CWD, FileType, Mode, chmodat};

use super::attributes::status;
use super::credentials;

/// Runs `change` on the contents of `file`. Unless the guest requests that they `go`, the set-id bits are restored
/// afterwards.
///
/// # Errors
/// Those of `change`. If the bits cannot be restored, this is no error: the file then has fewer rights, never more.
pub fn keep<T>(file: impl AsFd, go: bool, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    if go {
        return change();
    }
    let set_id = (Mode::SUID | Mode::SGID).bits();
    let before = status(&file).ok().filter(|status| status.kind() == FileType::RegularFile);
    let before = before.map(|status| status.mode() & 0o7777).filter(|mode| mode & set_id != 0);
    let result = change()?;
    if let Some(mode) = before
        && credentials::assume_own().is_ok()
    {
        // Through its link, because the descriptor may be one of `O_PATH`.
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let _ = chmodat(CWD, path, Mode::from_bits_truncate(mode), rustix::fs::AtFlags::empty());
    }
    Ok(result)
}
