//! Attributes of mounts (mount_setattr(2), Linux 5.12).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Which mounts are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// The mount alone.
    One,
    /// The mount and all below it.
    All,
}

/// Sets attributes (`MOUNT_ATTR_*`) of the mount at `path`, from the directory `at` on. With an empty path it is the mount of
/// `at` itself. `MOUNT_ATTR_IDMAP` takes its map from `users`, a user namespace.
///
/// # Errors
/// What mount_setattr(2) says; `EINVAL` for a path with a NUL.
pub fn set(
    at: impl AsFd,
    path: &Path,
    depth: Depth,
    attributes: u64,
    users: Option<impl AsFd>,
) -> io::Result<()> {
    // A descriptor that is open is not negative.
    let users = users.as_ref().map_or(0, |users| users.as_fd().as_raw_fd() as u64);
    let attributes = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: users };
    change(at, path, depth, &attributes)
}

/// Clears attributes (`MOUNT_ATTR_*`) of a mount; see [`set`].
///
/// # Errors
/// As [`set`].
pub fn clear(at: impl AsFd, path: &Path, depth: Depth, attributes: u64) -> io::Result<()> {
    change(
        at,
        path,
        depth,
        &libc::mount_attr { attr_set: 0, attr_clr: attributes, propagation: 0, userns_fd: 0 },
    )
}

fn change(at: impl AsFd, path: &Path, depth: Depth, attributes: &libc::mount_attr) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let recursive = if depth == Depth::All { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is NUL-terminated, and the structure is live and of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at.as_fd().as_raw_fd(),
            path.as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            std::ptr::from_ref(attributes),
            size_of_val(attributes),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
