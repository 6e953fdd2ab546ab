//! Opens files for a VMM so that it cannot reopen them with more rights.
//!
//! A process can reopen a file through its link in `/proc/self/fd`, and a VMM may write to files of all
//! owners. The mount of the descriptor decides what the process may then do, and whether it can change the
//! file's mode and owner. So each file is opened through its own mount, which no other process can reach and
//! which is removed with the descriptor. The mount has no device nodes, and it is read-only unless the VMM
//! may write to the file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::mount_attributes::{self, Depth};

/// What a file may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
}

/// Opens the file at `path`. Its descriptor's mount does not allow more than `access`, and no device to
/// be opened: a device that `path` names is open for `access`, and its descriptor allows nothing else.
///
/// The process must be allowed to mount in its mount namespace.
///
/// # Errors
/// The error of open(2), open_tree(2) or mount_setattr(2) (Linux 5.12).
pub fn open(path: &Path, access: Access) -> io::Result<File> {
    let write = access == Access::Write;
    let mount = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let link = format!("/proc/self/fd/{}", mount.as_raw_fd());
    let file = OpenOptions::new().read(true).write(write).open(link)?;
    // After the opening, or it would refuse a device itself. What is written to a device does not go to a file
    // system; only its mode and its owner do.
    let writable = write && file.metadata()?.is_file();
    let read_only = if writable { 0 } else { libc::MOUNT_ATTR_RDONLY };
    let attributes = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC | read_only;
    mount_attributes::set(&mount, Path::new(""), Depth::One, attributes, None::<File>)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    /// Opens a file again through its descriptor; returns the error number.
    fn again(file: &File, access: Access) -> Result<(), i32> {
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let opened = OpenOptions::new().read(true).write(access == Access::Write).open(link);
        opened.map(drop).map_err(|error| error.raw_os_error().unwrap_or_default())
    }

    /// The file, unless this process may not mount: then there is nothing to test.
    fn opened(path: &Path, access: Access) -> Option<File> {
        match open(path, access) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => None,
            result => Some(result.unwrap()),
        }
    }

    #[test]
    fn what_was_opened_for_reading_stays_so() {
        let path = tempfile::NamedTempFile::new().unwrap();
        path.as_file().write_all(b"disk").unwrap();
        let Some(mut file) = opened(path.path(), Access::Read) else { return };
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "disk");
        assert_eq!(again(&file, Access::Read), Ok(()));
        assert_eq!(again(&file, Access::Write), Err(libc::EROFS));
        // It is this descriptor's mount alone.
        let Some(mut written) = opened(path.path(), Access::Write) else { return };
        written.write_all(b"DISK").unwrap();
        assert_eq!(again(&written, Access::Write), Ok(()));
    }

    #[test]
    fn a_device_cannot_be_opened_again() {
        let Some(mut file) = opened(Path::new("/dev/null"), Access::Write) else { return };
        file.write_all(b"gone").unwrap();
        assert_eq!([again(&file, Access::Read), again(&file, Access::Write)], [Err(libc::EACCES); 2]);
        let mode = file.metadata().unwrap().permissions();
        assert_eq!(file.set_permissions(mode).unwrap_err().raw_os_error(), Some(libc::EROFS));
    }

    #[test]
    fn what_is_missing_is_an_error() {
        let error = open(Path::new("/no/such/disk"), Access::Read).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EPERM)));
    }
}
