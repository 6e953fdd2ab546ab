//! The file behind guest memory.
//!
//! A tmpfs with huge pages is preferred: what the host writes into it before the guest runs, mainly the
//! kernel, is then zeroed once and copied once. A memfd has small pages and would be zeroed twice.
//! [`super::make_huge`] and [`super::only_small_pages`] choose the ranges with huge pages.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
};

/// The name of the file, as it shows in `/proc/PID/smaps`.
const NAME: &CStr = c"pouch-vm-memory";
/// A huge page at the end may reach beyond the memory.
const ROUNDING_MIB: u32 = 2;

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
    let context = fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), c"size", format!("{}m", mib.saturating_add(ROUNDING_MIB)))?;
    fsconfig_set_string(context.as_fd(), c"huge", c"always")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    Ok(openat(mount, NAME, flags, Mode::RUSR | Mode::WUSR)?.into())
}

fn memfd() -> io::Result<File> {
    let make = |flags| memfd_create(NAME, MemfdFlags::CLOEXEC | flags).map(File::from);
    // Before Linux 6.3 the flag is unknown.
    Ok(make(MemfdFlags::NOEXEC_SEAL).or_else(|_| make(MemfdFlags::empty()))?)
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
