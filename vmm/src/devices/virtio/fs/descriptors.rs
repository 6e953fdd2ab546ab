//! Opens a file anew that the server has a descriptor of, which it keeps to itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use fuse_backend_rs::api::filesystem::{Context, FileSystem};
use fuse_backend_rs::passthrough::PassthroughFs;
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};

/// The process's descriptors.
pub struct Descriptors {
    /// `/proc/self/fd`.
    folder: File,
}

impl Descriptors {
    /// Must be called while `/proc` is there.
    ///
    /// # Errors
    /// What opening `/proc/self/fd` says.
    pub fn new() -> io::Result<Self> {
        let folder = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open("/proc/self/fd")?;
        Ok(Descriptors { folder })
    }

    /// The folder of the descriptors, in which each is a link to its file (proc_pid_fd(5)).
    pub fn folder(&self) -> &File {
        &self.folder
    }

    /// Opens the file with these flags of open(2), whether it still has a name or not.
    ///
    /// # Errors
    /// What open(2) says; `ESTALE` if the file cannot be found any more.
    pub fn open(
        &self,
        files: &PassthroughFs,
        context: &Context,
        inode: u64,
        flags: OFlag,
    ) -> io::Result<File> {
        let open = |name: &str| {
            let fd = openat(&self.folder, name, flags | OFlag::O_CLOEXEC, Mode::empty())?;
            Ok(File::from(fd))
        };
        match by_name(files, context, inode) {
            Ok(file) => open(&file.as_raw_fd().to_string()),
            // Without a name it can be found among the descriptors only.
            Err(_) => open(&self.find(files, context, inode)?),
        }
    }

    /// The descriptor that the server has of a file.
    fn find(&self, files: &PassthroughFs, context: &Context, inode: u64) -> io::Result<String> {
        let (wanted, _) = files.getattr(context, inode, None)?;
        let mut folder =
            Dir::openat(&self.folder, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        for entry in folder.iter() {
            let name = entry?.file_name().to_owned();
            let Ok(found) = fstatat(&self.folder, name.as_c_str(), AtFlags::empty()) else { continue };
            if let Ok(name) = name.into_string()
                && (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
            {
                return Ok(name);
            }
        }
        Err(stale())
    }
}

/// A descriptor of a file by the name that it has now, for its place in the tree only (`O_PATH`).
///
/// # Errors
/// What open(2) says; `ESTALE` if the file has no name any more, or another has it.
pub fn by_name(files: &PassthroughFs, context: &Context, inode: u64) -> io::Result<File> {
    let file = open_path(&files.readlinkat_proc_file(inode)?)?;
    let (wanted, _) = files.getattr(context, inode, None)?;
    let found = file.metadata()?;
    if (found.dev(), found.ino()) == (wanted.st_dev, wanted.st_ino) { Ok(file) } else { Err(stale()) }
}

fn open_path(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_NOFOLLOW).open(path)
}

fn stale() -> io::Error {
    io::Error::from_raw_os_error(libc::ESTALE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fuse_backend_rs::passthrough::Config;
    use std::fs;
    use std::io::Read;

    #[test]
    fn a_file_is_opened_with_and_without_a_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "text").unwrap();
        let root_dir = folder.path().to_str().unwrap().to_owned();
        let files = PassthroughFs::new(Config { root_dir, use_host_ino: true, ..Config::default() }).unwrap();
        files.import().unwrap();
        let (descriptors, context) = (Descriptors::new().unwrap(), Context::default());
        let inode = files.lookup(&context, 1, c"file").unwrap().inode;
        let read = || {
            let mut text = String::new();
            let mut file = descriptors.open(&files, &context, inode, OFlag::O_RDONLY).unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(read(), "text");
        fs::rename(folder.path().join("file"), folder.path().join("moved")).unwrap();
        assert_eq!(read(), "text");
        fs::remove_file(folder.path().join("moved")).unwrap();
        fs::write(folder.path().join("moved"), "another").unwrap();
        assert_eq!(read(), "text");
    }
}
