//! What a VMM is started with: its program, its configuration and every file it needs, opened for it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use pouch_protocol::SHARE_TAG;
use pouch_vmm::config::{BlockConfig, FileSource, MAX_NETWORK_SLOTS, ShareConfig, VmConfig};

use crate::config::{Config, ConfigError};
use crate::container::size::VmSize;

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

/// What a VM is to be.
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
    /// Where the VMM's log and the console go: an existing directory.
    pub directory: &'a Path,
    /// The directory of the cgroup in which the VMM starts.
    pub cgroup: Option<&'a File>,
}

/// Something that a VMM needs cannot be had.
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
        /// What the kernel said.
        source: io::Error,
    },
    /// The configuration does not say where the files are.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file for the VMM could not be made.
    #[error("a descriptor for the VMM could not be made")]
    Descriptor(#[source] io::Error),
}

/// Opens what every VM needs, to find out early that it cannot be.
///
/// # Errors
/// [`FilesError`] names the file.
pub fn preflight(config: &Config, directory: &Path) -> Result<(), FilesError> {
    let size = VmSize { vcpus: 1, memory_mib: 0 };
    Files::open(&VmDescription { config, size, share: None, disks: Vec::new(), directory, cgroup: None })
        .map(drop)
}

/// Everything that the VMM gets as descriptors, and the description that names them.
pub struct Files {
    /// The program.
    pub vmm: PathBuf,
    /// The VM's configuration, in memory.
    pub config: File,
    /// The descriptors that the configuration names.
    pub files: Vec<File>,
    /// The VMM's log.
    pub log: File,
}

impl Files {
    /// Opens them.
    ///
    /// # Errors
    /// [`FilesError`] names the file.
    pub fn open(description: &VmDescription<'_>) -> Result<Self, FilesError> {
        let config = description.config;
        let parts = config.installation()?;
        let mut files = Vec::new();
        let open_file = |what, path: &Path, write: bool, hint| {
            OpenOptions::new().read(true).write(write).open(path).map_err(|source| FilesError::Open {
                what,
                path: path.to_owned(),
                hint,
                source,
            })
        };
        let mut open = |what, path: &Path, write: bool, hint| {
            let file = open_file(what, path, write, hint)?;
            let source = FileSource::Fd(file.as_raw_fd());
            files.push(file);
            Ok::<_, FilesError>(source)
        };
        let reinstall = "; is pouch-vm fully installed?";
        // Executed by its name: this tells early that it is there.
        drop(open_file("the VMM", &parts.vmm, false, reinstall)?);
        let kvm = open(
            "the KVM device",
            &config.kvm,
            true,
            "; load the module kvm_intel or kvm_amd, and see `pouch-vm check`",
        )?;
        let kernel = open("the guest kernel", &parts.kernel, false, reinstall)?;
        let root = open("the guest root", &parts.guest_root, false, reinstall)?;
        let console = if config.console {
            let path = description.directory.join("console.log");
            let file = open_log(&path).map_err(FilesError::Descriptor)?;
            drop(file);
            Some(open("the console log", &path, true, "")?)
        } else {
            None
        };
        let mut blocks = Vec::new();
        for disk in &description.disks {
            let file = open("the disk", &disk.path, !disk.read_only, "")?;
            blocks.push(BlockConfig { file, serial: disk.serial.clone(), read_only: disk.read_only });
        }
        let vm = VmConfig {
            vcpus: description.size.vcpus,
            memory_mib: description.size.memory_mib,
            kernel,
            root,
            kernel_arguments: config.kernel_arguments.clone(),
            console,
            kvm,
            share: description
                .share
                .map(|path| ShareConfig { path: path.to_owned(), tag: SHARE_TAG.to_owned() }),
            blocks,
            network_slots: MAX_NETWORK_SLOTS,
            vsock_cid: 3,
        };
        let config = serde_json::to_string(&vm).map_err(|error| FilesError::Descriptor(error.into()))?;
        let config = memfd_with(&config).map_err(FilesError::Descriptor)?;
        let log = open_log(&log_path(description.directory)).map_err(FilesError::Descriptor)?;
        Ok(Files { vmm: parts.vmm, config, files, log })
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// A file in memory with this content, at its start.
fn memfd_with(content: &str) -> io::Result<File> {
    let fd = nix::sys::memfd::memfd_create(c"pouch-vm-config", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(content.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// The VMM's log in a container's directory.
pub fn log_path(directory: &Path) -> PathBuf {
    directory.join("vmm.log")
}

/// The end of the VMM's log, for an error that has no other explanation.
pub fn log_tail(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(64 * 1024).read_to_string(&mut text).ok()?;
    text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
}
