//! Hard links on a host before Linux 6.10.
//!
//! The server makes them from a descriptor (`AT_EMPTY_PATH` of linkat(2)), which older kernels let only the
//! host's own root do, and say that there is no such file. There is another way, by the descriptor's
//! entry in proc(5).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsRawFd;

use fuse_backend_rs::api::filesystem::Context;
use fuse_backend_rs::passthrough::PassthroughFs;

use super::descriptors::{Descriptors, by_name};

/// Gives the file `inode` the further `name` in the directory `parent`.
///
/// # Errors
/// What linkat(2) says; `ESTALE` if one of the two was moved meanwhile.
pub fn link(
    descriptors: &Descriptors,
    files: &PassthroughFs,
    context: &Context,
    inode: u64,
    parent: u64,
    name: &CStr,
) -> io::Result<()> {
    let file = by_name(files, context, inode)?;
    let parent = by_name(files, context, parent)?;
    let entry = CString::new(file.as_raw_fd().to_string())?;
    // SAFETY: the descriptors are open and the names NUL-terminated, for as long as the call takes.
    let result = unsafe {
        let (descriptors, parent) = (descriptors.folder().as_raw_fd(), parent.as_raw_fd());
        libc::linkat(descriptors, entry.as_ptr(), parent, name.as_ptr(), libc::AT_SYMLINK_FOLLOW)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fuse_backend_rs::api::filesystem::FileSystem;
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
        let (descriptors, context) = (Descriptors::new().unwrap(), Context::default());
        let link = |file, folder, name| link(&descriptors, &files, &context, file, folder, name);
        let number = |name| files.lookup(&context, 1, name).unwrap().inode;
        let (file, below) = (number(c"file"), number(c"below"));
        link(file, below, c"link").unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("below/link")).unwrap(), "text");
        let again = link(file, below, c"link").unwrap_err();
        assert_eq!(again.raw_os_error(), Some(libc::EEXIST));
        fs::remove_file(folder.path().join("file")).unwrap();
        fs::write(folder.path().join("file"), "another").unwrap();
        assert!(link(file, 1, c"other").is_err());
    }
}
