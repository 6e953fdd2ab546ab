//! Block devices of the host that containers use, as disks that the VM gets while it runs.
//!
//! A front end opens the device, which takes rights that the sandbox host process need not have. The latter locks it,
//! and gives it to the VMM. Containers of a pod that name the same device share one disk.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::stat::makedev;
use pouch_protocol::agent::BlockDevice;
use pouch_vmm_api::config::{DiskConfig, MAX_DISK_SLOTS};
use pouch_vmm_api::restricted::{self, Access};
use serde::{Deserialize, Serialize};

use super::vm::{Vm, VmError};
use super::vm_files::lock;

/// A block device of the host that a container uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostDisk {
    /// Its path in the container, for messages.
    pub path: PathBuf,
    /// Its major number.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// The container may not write to it.
    pub read_only: bool,
}

/// A block device of the host could not be given to a VM.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The host does not have it.
    #[error("{disk} does not exist on the host")]
    Missing {
        /// The device.
        disk: String,
    },
    /// It cannot be opened.
    #[error("{disk} cannot be opened as {path}")]
    Open {
        /// The device.
        disk: String,
        /// The node on the host.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The node is of another device.
    #[error("{disk} cannot be opened: {path} is another device")]
    Other {
        /// The device.
        disk: String,
        /// The node on the host.
        path: PathBuf,
    },
    /// Its size is not known.
    #[error("the size of {disk} could not be determined")]
    Size {
        /// The device.
        disk: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A container outside the pod has it, or one in the pod that may only read it.
    #[error("{disk} is in use; one VM can have a block device for writing, or any number for reading")]
    InUse {
        /// The device.
        disk: String,
    },
    /// It could not be locked.
    #[error("{disk} cannot be locked against use by another container")]
    Lock {
        /// The device.
        disk: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// Its descriptor did not come.
    #[error("the descriptor of {disk} is missing")]
    Descriptor {
        /// The device.
        disk: String,
    },
    /// There are too many.
    #[error("{disk} cannot be added: a VM can have {MAX_DISK_SLOTS} block devices of the host at a time")]
    TooMany {
        /// The device.
        disk: String,
    },
    /// The VMM refuses.
    #[error("{disk} could not be added to the VM")]
    Plug {
        /// The device.
        disk: String,
        /// Why.
        source: VmError,
    },
    /// The VMM does not give it up.
    #[error("{disk} could not be removed from the VM")]
    Unplug {
        /// The device.
        disk: String,
        /// Why.
        source: VmError,
    },
}

impl std::fmt::Display for HostDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "linux.devices {}, block device {}:{}", self.path.display(), self.major, self.minor)
    }
}

impl HostDisk {
    /// Opens the device so that its descriptor allows no more than the container may do. One that the host itself can
    /// only read is opened for reading, and noted as such.
    ///
    /// # Errors
    /// [`DiskError`] names the device.
    pub fn open(&mut self) -> Result<File, DiskError> {
        let disk = self.to_string();
        let entry = PathBuf::from(format!("/sys/dev/block/{}:{}", self.major, self.minor));
        let attribute = |name: &str| fs::read_to_string(entry.join(name)).ok();
        let Some(path) = attribute("uevent").as_deref().and_then(node) else {
            return Err(DiskError::Missing { disk });
        };
        self.read_only |= attribute("ro").is_some_and(|text| text.trim() == "1");
        let access = if self.read_only { Access::Read } else { Access::Write };
        let failed = |source| DiskError::Open { disk: disk.clone(), path: path.clone(), source };
        let file = restricted::open(&path, access).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let number = makedev(self.major.into(), self.minor.into());
        if metadata.file_type().is_block_device() && metadata.rdev() == number {
            Ok(file)
        } else {
            Err(DiskError::Other { disk, path })
        }
    }

    fn lock(&self, file: &File) -> Result<(), DiskError> {
        let access = if self.read_only { Access::Read } else { Access::Write };
        let disk = self.to_string();
        lock(file, access).map_err(|errno| match errno {
            Errno::EAGAIN | Errno::EACCES => DiskError::InUse { disk },
            other => DiskError::Lock { disk, source: other.into() },
        })
    }
}

/// The node of a device that sysfs describes.
fn node(uevent: &str) -> Option<PathBuf> {
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(Path::new("/dev").join(name))
}

/// Where the disks go.
pub trait Plugs {
    /// Adds a disk; returns the number of its virtio device.
    ///
    /// # Errors
    /// [`VmError`] if the VMM refuses or is gone.
    fn plug(&self, file: &File, config: DiskConfig) -> Result<u32, VmError>;

    /// Removes a disk, and waits until the VMM has closed it.
    ///
    /// # Errors
    /// [`VmError`] if the VMM refuses or is gone.
    fn unplug(&self, device: u32) -> Result<(), VmError>;
}

impl Plugs for Vm {
    fn plug(&self, file: &File, config: DiskConfig) -> Result<u32, VmError> {
        self.plug_disk(file, config)
    }

    fn unplug(&self, device: u32) -> Result<(), VmError> {
        self.unplug_disk(device)
    }
}

/// A disk that the VM has.
struct Plugged {
    disk: HostDisk,
    /// The number of its virtio device.
    device: u32,
    /// The IDs of the containers that use it.
    users: BTreeSet<String>,
}

/// The disks of a VM that came while it runs. The lock is held while one comes or goes.
#[derive(Default)]
pub struct Disks(Mutex<Vec<Plugged>>);

impl Disks {
    fn lock(&self) -> MutexGuard<'_, Vec<Plugged>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the container `owner` these devices, whose descriptors come in the same order; returns what the agent needs
    /// to know of them.
    ///
    /// # Errors
    /// [`DiskError`] names the device; the container has none of them then.
    pub fn add(
        &self,
        vm: &impl Plugs,
        owner: &str,
        wanted: &[HostDisk],
        files: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<Vec<BlockDevice>, DiskError> {
        let mut files = files.into_iter();
        let added: Result<Vec<_>, _> = wanted
            .iter()
            .map(|disk| {
                let file = files.next().ok_or_else(|| DiskError::Descriptor { disk: disk.to_string() })?;
                let slot = self.add_one(vm, owner, disk, File::from(file))?;
                let (major, minor) = (disk.major, disk.minor);
                Ok(BlockDevice { major, minor, slot, ..BlockDevice::default() })
            })
            .collect();
        if added.is_err() {
            self.remove(vm, owner).iter().for_each(report);
        }
        added
    }

    fn add_one(
        &self,
        vm: &impl Plugs,
        owner: &str,
        disk: &HostDisk,
        mut file: File,
    ) -> Result<u32, DiskError> {
        let mut plugged = self.lock();
        let same = |one: &&mut Plugged| {
            let numbers = (one.disk.major, one.disk.minor) == (disk.major, disk.minor);
            // The rules of a container that may only read keep it from writing.
            numbers && (disk.read_only || !one.disk.read_only)
        };
        if let Some(one) = plugged.iter_mut().find(same) {
            one.users.insert(owner.to_owned());
            return Ok(one.device);
        }
        let name = || disk.to_string();
        if plugged.len() >= usize::from(MAX_DISK_SLOTS) {
            return Err(DiskError::TooMany { disk: name() });
        }
        disk.lock(&file)?;
        let size = file.seek(SeekFrom::End(0));
        let size = size.map_err(|source| DiskError::Size { disk: name(), source })?;
        let serial = format!("{}-{}", disk.major, disk.minor);
        let config = DiskConfig { serial, size, read_only: disk.read_only };
        let device = vm.plug(&file, config).map_err(|source| DiskError::Plug { disk: name(), source })?;
        plugged.push(Plugged { disk: disk.clone(), device, users: BTreeSet::from([owner.to_owned()]) });
        Ok(device)
    }

    /// Takes the devices from the container `owner`, which the guest has no more, and from the VM those that no container
    /// uses any more. Returns what went wrong.
    pub fn remove(&self, vm: &impl Plugs, owner: &str) -> Vec<DiskError> {
        let mut plugged = self.lock();
        for one in plugged.iter_mut() {
            one.users.remove(owner);
        }
        let unused = plugged.extract_if(.., |one| one.users.is_empty());
        let unplug = |one: Plugged| {
            let disk = one.disk.to_string();
            vm.unplug(one.device).err().map(|source| DiskError::Unplug { disk, source })
        };
        unused.filter_map(unplug).collect()
    }

    /// Whether the guest can write to one.
    pub fn any_writable(&self) -> bool {
        self.lock().iter().any(|one| !one.disk.read_only)
    }
}

/// Writes an error that does not stop anything to the log of the sandbox host process.
pub fn report(error: &DiskError) {
    eprintln!("pouch-vm: error: {}", pouch_errors::chain(error));
}

#[cfg(test)]
#[path = "disks_tests.rs"]
mod tests;
