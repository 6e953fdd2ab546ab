//! The root directory of a sandbox host process while its container runs.
//!
//! It has the files that the process opens by path. They have the names that they have on the host, so that code need
//! not know whether it runs before or after.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use super::ConfineError;

/// What is bound into the root, besides the directory of the container's progress.
const FILES: [(&str, Access); 3] = [
    // For streams that lead nowhere.
    ("/dev/null", Access::Device),
    // Settings of the network namespace of who opens them: for tap devices, and for ports of an engine's resolver. The
    // kernel checks the capability for that namespace.
    ("/proc/sys/net", Access::Write),
    // Whether an engine's resolver listens in the network namespace.
    ("/proc/thread-self/net/udp", Access::Read),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
    Device,
}

/// A root directory that is yet to be made.
#[derive(Clone, Debug)]
pub struct Root {
    /// A directory to create, at which the root is assembled.
    place: PathBuf,
    /// The directory of the container's progress.
    progress: PathBuf,
}

impl Root {
    /// A root that is assembled at `place`, with the directory `progress`.
    pub fn new(place: PathBuf, progress: PathBuf) -> Self {
        Root { place, progress }
    }

    /// Makes it the root of all threads. The mount namespace must be this process's own. Its own root directory is
    /// kept, because an engine that enters the namespace finds the container's files there.
    ///
    /// # Errors
    /// [`ConfineError::Root`] names the file.
    pub(super) fn enter(&self) -> Result<(), ConfineError> {
        let place = self.place.as_path();
        let failed = |action| failed(place, action);
        fs::create_dir(place).map_err(failed("created"))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let none = None::<&str>;
        mount(Some("pouch-host"), place, Some("tmpfs"), flags, Some("mode=755,size=64k"))
            .map_err(|errno| failed("mounted")(errno.into()))?;
        self.bind(&self.progress, Access::Write)?;
        for (file, access) in FILES {
            self.bind(Path::new(file), access)?;
        }
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | flags;
        mount(none, place, none, read_only, none).map_err(|errno| failed("made read-only")(errno.into()))?;
        // No descriptor of a directory outside it may be open: `..` of it leads to the host's files.
        let entered = chroot(place).and_then(|()| chdir("/"));
        entered.map_err(|errno| failed("entered")(errno.into()))
    }

    /// Binds something of the host to its own name below the root. What this host does not have is left out.
    fn bind(&self, source: &Path, access: Access) -> Result<(), ConfineError> {
        let failed = |action| failed(source, action);
        let target = self.place.join(source.strip_prefix("/").unwrap_or(source));
        let directory = match fs::metadata(source) {
            Ok(metadata) => metadata.is_dir(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("found")(error)),
        };
        let parent = if directory { Some(target.as_path()) } else { target.parent() };
        parent.map_or(Ok(()), fs::create_dir_all).map_err(failed("created"))?;
        if !directory {
            File::create(&target).map_err(failed("created"))?;
        }
        let none = None::<&str>;
        mount(Some(source), &target, none, MsFlags::MS_BIND, none)
            .map_err(|errno| failed("bound")(errno.into()))?;
        let mut flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
        flags.set(MsFlags::MS_NODEV, access != Access::Device);
        flags.set(MsFlags::MS_RDONLY, access == Access::Read);
        mount(none, &target, none, flags, none).map_err(|errno| failed("restricted")(errno.into()))
    }
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> ConfineError {
    let path = path.to_owned();
    move |source| ConfineError::Root { path, action, source }
}
