//! The program, configuration and files of a VMM, opened for it.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use pouch_protocol::SHARE_TAG;
use pouch_vmm_api::config::{BlockConfig, FileSource, MAX_NETWORK_SLOTS, ShareConfig, VmConfig};
use pouch_vmm_api::restricted::{self, Access};

use crate::config::{Config, ConfigError};
use crate::install::Installation;
use crate::sandbox::VmSize;

/// A disk for the VM.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The image file or block device.
    pub path: PathBuf,
    /// The name by which the guest finds it.
    pub serial: String,
    /// Without writing.
    pub read_only: bool,
}

/// The description of a VM.
#[derive(Clone, Debug)]
pub struct VmDescription<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// vCPUs and memory.
    pub size: VmSize,
    /// The share tree.
    pub share: Option<&'a Path>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Places for disks that come while the VM runs.
    pub disk_slots: u8,
    /// Where the VMM's log and the console go: an existing directory.
    pub directory: &'a Path,
    /// The directory of the cgroup in which the VMM starts.
    pub cgroup: Option<&'a File>,
}

/// A file that a VMM needs could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file cannot be opened.
    #[error("{what} {path} cannot be opened{hint}")]
    Open {
        /// What the file is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the user can do.
        hint: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// A disk has another user.
    #[error(
        "the disk {path} is in use by another container; one container can have a disk for writing, or any \
         number for reading"
    )]
    InUse {
        /// The disk.
        path: PathBuf,
    },
    /// A disk could not be locked.
    #[error("the disk {path} cannot be locked against use by another container")]
    Lock {
        /// The disk.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The configuration does not say where the files are.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file for the VMM could not be created.
    #[error("a descriptor for the VMM could not be created")]
    Descriptor(#[source] io::Error),
}

/// Checks early whether the files that every VM needs can be opened.
///
/// # Errors
/// [`FilesError`] names the file.
pub fn preflight(config: &Config) -> Result<(), FilesError> {
    let plain = |path: &Path, access| OpenOptions::new().read(true).write(access == Access::Write).open(path);
    Installed::open(config, plain).map(drop)
}

/// The files that every VM has.
struct Installed {
    parts: Installation,
    kvm: File,
    kernel: File,
    root: File,
}

impl Installed {
    /// Opens them by `open`.
    fn open(config: &Config, open: impl Fn(&Path, Access) -> io::Result<File>) -> Result<Self, FilesError> {
        const REINSTALL: &str = "; is pouch-vm fully installed?";
        const MODULES: &str = "; load the module kvm_intel or kvm_amd, and see `pouch-vm check`";
        let parts = config.installation()?;
        let file = |what, path: &Path, access, hint| {
            open(path, access).map_err(|source| FilesError::Open {
                what,
                path: path.to_owned(),
                hint,
                source,
            })
        };
        // It is executed by its path; this checks early that it exists.
        drop(file("the VMM", &parts.vmm, Access::Read, REINSTALL)?);
        Ok(Installed {
            kvm: file("the KVM device", &config.kvm, Access::Write, MODULES)?,
            kernel: file("the guest kernel", &parts.kernel, Access::Read, REINSTALL)?,
            root: file("the guest root", &parts.guest_root, Access::Read, REINSTALL)?,
            parts,
        })
    }
}

/// Everything that the VMM gets as descriptors, and the description that names them.
pub struct Files {
    /// The program.
    pub vmm: PathBuf,
    /// The VM's configuration, in memory.
    pub config: File,
    /// The descriptors that the configuration names.
    pub files: Vec<File>,
    /// Where the VMM writes its log, and where that comes out.
    pub log: (PipeReader, PipeWriter),
    /// Where the guest's console comes out, if the VM has one.
    pub console: Option<PipeReader>,
}

impl Files {
    /// Opens them, each for no more than the VMM may do with it.
    ///
    /// # Errors
    /// [`FilesError`] names the file.
    pub fn open(description: &VmDescription<'_>) -> Result<Self, FilesError> {
        let config = description.config;
        let mut files = Vec::new();
        let mut named = |file: File, name: &Path| {
            let source = FileSource::Fd { number: file.as_raw_fd(), name: name.display().to_string() };
            files.push(file);
            source
        };
        let Installed { parts, kvm, kernel, root } = Installed::open(config, restricted::open)?;
        let kvm = named(kvm, &config.kvm);
        let kernel = named(kernel, &parts.kernel);
        let root = named(root, &parts.guest_root);
        let log = io::pipe().map_err(FilesError::Descriptor)?;
        let (console, console_writer) = if config.console {
            let (reader, writer) = io::pipe().map_err(FilesError::Descriptor)?;
            (Some(reader), Some(named(File::from(OwnedFd::from(writer)), Path::new("the console"))))
        } else {
            (None, None)
        };
        let mut blocks = Vec::new();
        for disk in &description.disks {
            let file = named(open_disk(disk)?, &disk.path);
            blocks.push(BlockConfig { file, serial: disk.serial.clone(), read_only: disk.read_only });
        }
        let vm = VmConfig {
            vcpus: description.size.vcpus,
            memory_mib: description.size.memory_mib,
            kernel,
            root,
            kernel_arguments: config.kernel_arguments.clone(),
            console: console_writer,
            kvm,
            share: description
                .share
                .map(|path| ShareConfig { path: path.to_owned(), tag: SHARE_TAG.to_owned() }),
            blocks,
            network_slots: MAX_NETWORK_SLOTS,
            disk_slots: description.disk_slots,
            vsock_cid: 3,
        };
        let config = serde_json::to_string(&vm).map_err(|error| FilesError::Descriptor(error.into()))?;
        let config = memfd_with(&config).map_err(FilesError::Descriptor)?;
        Ok(Files { vmm: parts.vmm, config, files, log, console })
    }
}

/// Opens a disk and locks it as long as the VMM has it: exclusively if it is writable, shared if it is read-only.
fn open_disk(disk: &Disk) -> Result<File, FilesError> {
    let path = || disk.path.clone();
    let access = if disk.read_only { Access::Read } else { Access::Write };
    let file = restricted::open(&disk.path, access).map_err(|source| FilesError::Open {
        what: "the disk",
        path: path(),
        hint: "",
        source,
    })?;
    match lock(&file, access) {
        Ok(()) => Ok(file),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(FilesError::InUse { path: path() }),
        Err(errno) => Err(FilesError::Lock { path: path(), source: errno.into() }),
    }
}

/// Locks a whole file. The lock is the open file's, so that it goes with the last of its descriptors
/// (fcntl(2), "Open file description locks"): udev's own locks of block devices are of another kind.
pub(super) fn lock(file: &File, access: Access) -> Result<(), Errno> {
    let kind = if access == Access::Write { libc::F_WRLCK } else { libc::F_RDLCK };
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole)).map(drop)
}

/// A file in memory with this content, at its start.
fn memfd_with(content: &str) -> io::Result<File> {
    let fd = nix::sys::memfd::memfd_create(c"pouch-vm-config", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(content.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(path: &Path, read_only: bool) -> Disk {
        Disk { path: path.to_owned(), serial: "root".to_owned(), read_only }
    }

    #[test]
    fn a_disk_has_one_writer_or_any_number_of_readers() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let open = |read_only| open_disk(&disk(image.path(), read_only));
        let writer = match open(false) {
            // Without the right to mount there is nothing to test.
            Err(FilesError::Open { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => return,
            result => result.unwrap(),
        };
        let error = open(false).unwrap_err();
        assert!(matches!(&error, FilesError::InUse { path } if path == image.path()), "{error}");
        assert!(matches!(open(true), Err(FilesError::InUse { .. })));
        // The lock stays with what the VMM inherits.
        let inherited = writer.try_clone().unwrap();
        drop(writer);
        assert!(matches!(open(true), Err(FilesError::InUse { .. })));
        drop(inherited);
        let readers = [open(true).unwrap(), open(true).unwrap()];
        assert!(matches!(open(false), Err(FilesError::InUse { .. })));
        drop(readers);
        open(false).unwrap();
    }
}
