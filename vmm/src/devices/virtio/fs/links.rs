//! Hard links on a host before Linux 6.10.
//!
//! The server makes them from a descriptor (`AT_EMPTY_PATH` of linkat(2)), which older kernels let only the
//! host's own root do, and say that there is no such file. There is another way, by the descriptor's
//! entry in proc(5).

use std::ffi::{CStr, CString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use fuse_backend_rs::api::filesystem::{Context, FileSystem};
use fuse_backend_rs::passthrough::PassthroughFs;

/// What makes hard links.
pub struct Links {
    /// `/proc/self/fd`.
    descriptors: File,
}

impl Links {
    /// Must be called while `/proc` is there.
    ///
    /// # Errors
    /// What opening `/proc/self/fd` says.
    pub fn new() -> io::Result<Self> {
        Ok(Links { descriptors: open_path("/proc/self/fd".as_ref())? })
    }

    /// Gives the file `inode` the further `name` in the directory `parent`.
    ///
    /// # Errors
    /// What linkat(2) says; `ESTALE` if one of the two was moved meanwhile.
    pub fn link(
        &self,
        files: &PassthroughFs,
        context: &Context,
        inode: u64,
        parent: u64,
        name: &CStr,
    ) -> io::Result<()> {
        let file = reopen(files, context, inode)?;
        let parent = reopen(files, context, parent)?;
        let entry = CString::new(file.as_raw_fd().to_string())?;
        // SAFETY: the descriptors are open and the names NUL-terminated, for as long as the call takes.
        let result = unsafe {
            let (descriptors, parent) = (self.descriptors.as_raw_fd(), parent.as_raw_fd());
            libc::linkat(descriptors, entry.as_ptr(), parent, name.as_ptr(), libc::AT_SYMLINK_FOLLOW)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A descriptor of a file that the server has one of too, which it keeps to itself.
fn reopen(files: &PassthroughFs, context: &Context, inode: u64) -> io::Result<File> {
    let file = open_path(&files.readlinkat_proc_file(inode)?)?;
    let (wanted, _) = files.getattr(context, inode, None)?;
    let found = file.metadata()?;
    if (found.dev(), found.ino()) == (wanted.st_dev, wanted.st_ino) {
        Ok(file)
    } else {
        Err(io::Error::from_raw_os_error(libc::ESTALE))
    }
}

fn open_path(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fuse_backend_rs::passthrough::Config;
    use std::fs;

    #[test]
    fn a_file_gets_a_further_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "text").unwrap();
        fs::create_dir(folder.path().join("below")).unwrap();
        let root_dir = folder.path().to_str().unwrap().to_owned();
        let files = PassthroughFs::new(Config { root_dir, use_host_ino: true, ..Config::default() }).unwrap();
        files.import().unwrap();
        let (links, context) = (Links::new().unwrap(), Context::default());
        let number = |name| files.lookup(&context, 1, name).unwrap().inode;
        let (file, below) = (number(c"file"), number(c"below"));
        links.link(&files, &context, file, below, c"link").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("below/link")).unwrap(), "text");
        let again = links.link(&files, &context, file, below, c"link").unwrap_err();
        assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
        fs::remove_file(folder.path().join("file")).unwrap();
        fs::write(folder.path().join("file"), "another").unwrap();
        assert!(links.link(&files, &context, file, 1, c"other").is_err());
    }
}
