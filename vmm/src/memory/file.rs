//! The file behind guest memory.
//!
//! A tmpfs with huge pages is preferred: what the host writes into it before the guest runs, mainly the
//! kernel, is then zeroed once and copied once. A memfd has small pages and would be zeroed twice.
//! [`super::make_huge`] and [`super::only_small_pages`] choose the ranges with huge pages.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

/// The name of the file, as it shows in `/proc/PID/smaps`.
const NAME: &CStr = c"pouch-vm-memory";
/// A huge page at the end may reach beyond the memory.
const ROUNDING_MIB: u32 = 2;

// Of linux/mount.h; the libc crate lacks them.
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// Makes the file for `mib` MiB, which has no pages yet. The process must still be allowed to mount for
/// the better one of two kinds.
///
/// # Errors
/// What memfd_create(2) says.
pub fn make(mib: u32) -> io::Result<File> {
    // Before Linux 5.2, or where mounting is not allowed, there is the other kind.
    on_tmpfs(mib).or_else(|_| memfd())
}

/// A file of a tmpfs that is mounted nowhere, and gone with the last descriptor.
fn on_tmpfs(mib: u32) -> io::Result<File> {
    // SAFETY: the name is NUL-terminated and outlives the call.
    let context = owned(unsafe { libc::syscall(libc::SYS_fsopen, c"tmpfs".as_ptr(), FSOPEN_CLOEXEC) })?;
    let size = CString::new(format!("{}m", mib.saturating_add(ROUNDING_MIB)))?;
    configure(&context, FSCONFIG_SET_STRING, Some((c"size", &size)))?;
    configure(&context, FSCONFIG_SET_STRING, Some((c"huge", c"always")))?;
    configure(&context, FSCONFIG_CMD_CREATE, None)?;
    let attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    // SAFETY: the call takes numbers only.
    let mount =
        owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), FSMOUNT_CLOEXEC, attributes) })?;
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
    // SAFETY: the name is NUL-terminated and outlives the call.
    owned(unsafe { libc::openat(mount.as_raw_fd(), NAME.as_ptr(), flags, 0o600) }.into())
}

/// fsconfig(2) with a key and a value, or with neither.
fn configure(context: &File, command: libc::c_uint, setting: Option<(&CStr, &CStr)>) -> io::Result<()> {
    let (key, value) =
        setting.map_or((std::ptr::null(), std::ptr::null()), |(k, v)| (k.as_ptr(), v.as_ptr()));
    // SAFETY: the pointers are null or to NUL-terminated strings that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn memfd() -> io::Result<File> {
    let make = |flags| {
        // SAFETY: the name is a NUL-terminated string that outlives the call.
        owned(unsafe { libc::memfd_create(NAME.as_ptr(), libc::MFD_CLOEXEC | flags) }.into())
    };
    // Before Linux 6.3 the flag is unknown.
    make(libc::MFD_NOEXEC_SEAL).or_else(|_| make(0))
}

/// Takes over the descriptor that a system call returned, or what it said instead.
fn owned(result: libc::c_long) -> io::Result<File> {
    let fd = libc::c_int::try_from(result).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nothing else owns it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn either_kind_holds_what_is_written() {
        // A user without rights has the second kind only.
        for file in [make(4).unwrap(), memfd().unwrap()] {
            file.set_len(4 << 20).unwrap();
            file.write_all_at(b"guest", (4 << 20) - 5).unwrap();
            let mut bytes = [0; 6];
            file.read_exact_at(&mut bytes, (4 << 20) - 6).unwrap();
            assert_eq!(&bytes, b"\0guest");
        }
    }
}
