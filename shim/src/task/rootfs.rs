//! Mounts a container's root file system as a snapshotter of containerd describes it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use containerd_shim::protos::api::Mount;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::loop_device::LoopDevice;

/// The name of the directory in the bundle.
const ROOTFS: &str = "rootfs";
/// The longest options that mount(2) takes: a page with its end.
const MAX_OPTIONS: usize = 4095;
/// The option of mount(8) for a source that is an image file.
const IMAGE: &str = "loop";

/// Flags of mount(8) with their effect: set or cleared.
const FLAGS: [(&str, MsFlags, bool); 24] = [
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("atime", MsFlags::MS_NOATIME, false),
    ("bind", MsFlags::MS_BIND, true),
    ("defaults", MsFlags::empty(), true),
    ("dev", MsFlags::MS_NODEV, false),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("mand", MsFlags::MS_MANDLOCK, true),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("nodev", MsFlags::MS_NODEV, true),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("nomand", MsFlags::MS_MANDLOCK, false),
    ("norelatime", MsFlags::MS_RELATIME, false),
    ("nostrictatime", MsFlags::MS_STRICTATIME, false),
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("rbind", MsFlags::MS_BIND.union(MsFlags::MS_REC), true),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("ro", MsFlags::MS_RDONLY, true),
    ("rw", MsFlags::MS_RDONLY, false),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
];

/// The root file system could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// Its directory could not be created.
    #[error("{path} could not be created")]
    Create {
        /// The directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A mount was refused.
    #[error("rootfs[{index}]: {kind} {origin} could not be mounted on {path}")]
    Mount {
        /// The number of the mount in the request.
        index: usize,
        /// Its type.
        kind: String,
        /// Its source.
        origin: String,
        /// Where.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

/// Mounts the root file system of the bundle, one mount over the other. Nothing is mounted after an error.
///
/// # Errors
/// [`RootfsError`] names the mount.
pub fn mount_all(bundle: &Path, mounts: &[Mount]) -> Result<(), RootfsError> {
    if mounts.is_empty() {
        return Ok(());
    }
    let path = bundle.join(ROOTFS);
    fs::create_dir_all(&path).map_err(|source| RootfsError::Create { path: path.clone(), source })?;
    for (index, entry) in mounts.iter().enumerate() {
        let mounted = Options::parse(&entry.options).mount(&entry.type_, &entry.source, &path);
        if let Err(source) = mounted {
            unmount(bundle);
            let (kind, origin) = (entry.type_.clone(), entry.source.clone());
            return Err(RootfsError::Mount { index, kind, origin, path, source });
        }
    }
    Ok(())
}

/// Unmounts everything that is mounted on the root file system's directory of the bundle.
pub fn unmount(bundle: &Path) {
    let path = bundle.join(ROOTFS);
    // Until it is no mount point. The path must not lead elsewhere by a link in its last part.
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    while umount2(&path, flags).is_ok() {}
}

/// Options of a mount.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MsFlags,
    /// The source is an image file.
    of_image: bool,
    /// Those of the file system.
    data: Vec<String>,
}

impl Options {
    fn parse(options: &[String]) -> Self {
        let mut parsed = Options { flags: MsFlags::empty(), of_image: false, data: Vec::new() };
        for option in options {
            match FLAGS.iter().find(|(name, ..)| name == option) {
                Some((_, flag, true)) => parsed.flags.insert(*flag),
                Some((_, flag, false)) => parsed.flags.remove(*flag),
                None if option == IMAGE => parsed.of_image = true,
                None => parsed.data.push(option.clone()),
            }
        }
        parsed
    }

    fn mount(&self, kind: &str, source: &str, target: &Path) -> io::Result<()> {
        let data = self.data.join(",");
        if data.len() > MAX_OPTIONS {
            return self.mount_relative(kind, source, target);
        }
        let read_only = self.flags.contains(MsFlags::MS_RDONLY);
        let device = self.of_image.then(|| LoopDevice::attach(Path::new(source), read_only)).transpose()?;
        let source = device.as_ref().map_or(Path::new(source), LoopDevice::path);
        mount(Some(source), target, Some(kind), self.flags, Some(data.as_str()))?;
        let read_only = MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        if self.flags.contains(read_only) {
            // A bind mount takes flags only when it is mounted again.
            mount(None::<&str>, target, None::<&str>, self.flags | MsFlags::MS_REMOUNT, None::<&str>)?;
        }
        Ok(())
    }

    /// Mounts an overlay with many layers, whose paths are too long together: from the directory that they have in
    /// common. Only a thread with a working directory of its own can go there.
    fn mount_relative(&self, kind: &str, source: &str, target: &Path) -> io::Result<()> {
        let too_long =
            || io::Error::new(io::ErrorKind::ArgumentListTooLong, "its options are longer than a page");
        let (directory, data) = shortened(&self.data).ok_or_else(too_long)?;
        if data.len() > MAX_OPTIONS {
            return Err(too_long());
        }
        let (kind, source, flags) = (CString::new(kind)?, CString::new(source)?, self.flags);
        let target = std::path::absolute(target)?;
        let run = move || {
            unshare(CloneFlags::CLONE_FS)?;
            nix::unistd::chdir(&directory)?;
            Ok(mount(Some(source.as_c_str()), &target, Some(kind.as_c_str()), flags, Some(data.as_str()))?)
        };
        let thread = thread::Builder::new().name("mount".to_owned()).spawn(run)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts panicked")))
    }
}

/// The directory that all layers of an overlay are below, and the options with the layers' paths from there.
fn shortened(options: &[String]) -> Option<(PathBuf, String)> {
    const LAYERS: &str = "lowerdir=";
    let layers: Vec<&Path> =
        options.iter().find_map(|option| option.strip_prefix(LAYERS))?.split(':').map(Path::new).collect();
    let mut common = layers.first()?.parent()?;
    while !layers.iter().all(|layer| layer.starts_with(common)) {
        common = common.parent()?;
    }
    let relative: Option<Vec<String>> =
        layers.iter().map(|layer| layer.strip_prefix(common).ok()?.to_str().map(str::to_owned)).collect();
    let relative = relative?.join(":");
    let data = options.iter().map(|option| match option.starts_with(LAYERS) {
        true => format!("{LAYERS}{relative}"),
        false => option.clone(),
    });
    Some((common.to_owned(), data.collect::<Vec<_>>().join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn flags_are_told_from_options_of_the_file_system() {
        let options =
            Options::parse(&texts(&["rbind", "ro", "nosuid", "suid", "loop", "lowerdir=/a:/b", "index=off"]));
        assert_eq!(options.flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY);
        assert_eq!(options.data, ["lowerdir=/a:/b", "index=off"]);
        assert!(options.of_image);
    }

    #[test]
    fn layers_are_named_from_their_common_directory() {
        let options = texts(&["workdir=/s/9/work", "lowerdir=/s/8/fs:/s/71/fs", "upperdir=/s/9/fs"]);
        let (directory, data) = shortened(&options).unwrap();
        assert_eq!(directory, Path::new("/s"));
        assert_eq!(data, "workdir=/s/9/work,lowerdir=8/fs:71/fs,upperdir=/s/9/fs");
        assert!(shortened(&texts(&["upperdir=/a"])).is_none());
    }

    #[test]
    fn a_mount_that_is_refused_is_named() {
        let bundle = tempfile::tempdir().unwrap();
        let mut entry = Mount::new();
        (entry.type_, entry.source) = ("no-such-type".to_owned(), "x".to_owned());
        let error = mount_all(bundle.path(), &[entry]).unwrap_err().to_string();
        assert!(error.starts_with("rootfs[0]: no-such-type x could not be mounted on"), "{error}");
        mount_all(bundle.path(), &[]).unwrap();
    }
}
