//! Disks of the VM that containers use as devices: they come when the first container that uses them is created, and
//! go with the last one.

use std::collections::{BTreeSet, HashMap};
use std::{fs, io};

use pouch_protocol::agent::BlockDevice;
use tokio::sync::Mutex;
use ttrpc::proto::Code;

use crate::container::spec::Renumbered;
use crate::error::{Coded, RequestError};
use crate::virtio;

/// How many disks one container may use: more than a VM has slots.
const DISKS_MAX: usize = 64;

/// Why a disk could not be used, or not be given up.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The driver does not find it.
    #[error(
        "devices[{index}].slot: virtio device {slot}, for block device {major}:{minor}, could not be started"
    )]
    Start {
        /// Which entry.
        index: usize,
        /// The virtio device.
        slot: u32,
        /// Its major number on the host.
        major: u32,
        /// Its minor number on the host.
        minor: u32,
        /// The kernel's error.
        source: io::Error,
    },
    /// The driver does not let go of it.
    #[error("the disk of virtio device {slot} could not be removed")]
    Remove {
        /// The virtio device.
        slot: u32,
        /// The kernel's error.
        source: io::Error,
    },
    /// The agent's own task failed.
    #[error("the agent's task failed: {0}")]
    Task(String),
}

impl Coded for DiskError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            _ => Code::INTERNAL,
        }
    }
}

/// A disk as the guest's kernel has it.
#[derive(Clone, Debug, Default)]
struct Disk {
    numbers: (u32, u32),
    writable: bool,
    /// The IDs of the containers that use it.
    users: BTreeSet<String>,
}

/// The disks that containers use, by the numbers of their virtio devices. The lock is held while one comes or goes.
#[derive(Default)]
pub struct Disks(Mutex<HashMap<u32, Disk>>);

impl Disks {
    /// Starts those of `devices` that no container uses yet, for the container `owner`.
    ///
    /// # Errors
    /// [`DiskError`] names the entry; the container has none of them then.
    pub async fn take(&self, owner: &str, devices: &[BlockDevice]) -> Result<Vec<Renumbered>, DiskError> {
        if devices.len() > DISKS_MAX {
            return Err(RequestError::new("devices", format!("has more than {DISKS_MAX} entries")).into());
        }
        let taken = self.take_all(owner, devices).await;
        if taken.is_err()
            && let Err(error) = self.release(owner).await
        {
            log::error!("{}", pouch_errors::chain(&error));
        }
        taken
    }

    async fn take_all(&self, owner: &str, devices: &[BlockDevice]) -> Result<Vec<Renumbered>, DiskError> {
        let mut disks = self.0.lock().await;
        let mut taken = Vec::with_capacity(devices.len());
        for (index, device) in devices.iter().enumerate() {
            let BlockDevice { major, minor, slot, .. } = *device;
            // From now on it is released with the container, also if it is started in part only.
            let disk = disks.entry(slot).or_default();
            let known = !disk.users.is_empty();
            disk.users.insert(owner.to_owned());
            if !known {
                let started = blocking(move || start(slot)).await?;
                (disk.numbers, disk.writable) =
                    started.map_err(|source| DiskError::Start { index, slot, major, minor, source })?;
            }
            taken.push(Renumbered { host: (major, minor), guest: disk.numbers });
        }
        Ok(taken)
    }

    /// Takes the disks from the container `owner`, and from the guest's driver those that no container uses any more.
    ///
    /// # Errors
    /// [`DiskError`] if the driver does not let go of one; it can be tried again.
    pub async fn release(&self, owner: &str) -> Result<(), DiskError> {
        let mut disks = self.0.lock().await;
        let used = |disk: &Disk| disk.users.contains(owner);
        let slots: Vec<u32> = disks.iter().filter(|(_, disk)| used(disk)).map(|(slot, _)| *slot).collect();
        let mut result = Ok(());
        for slot in slots {
            if let Some(disk) = disks.get_mut(&slot).filter(|disk| disk.users.len() > 1) {
                disk.users.remove(owner);
                continue;
            }
            match blocking(move || virtio::let_go(slot)).await? {
                Ok(()) => drop(disks.remove(&slot)),
                Err(source) => result = Err(DiskError::Remove { slot, source }),
            }
        }
        result
    }

    /// Whether a container can write to one.
    pub async fn any_writable(&self) -> bool {
        self.0.lock().await.values().any(|disk| disk.writable)
    }
}

/// Starts a disk; returns its numbers, and whether it can be written to.
fn start(slot: u32) -> io::Result<((u32, u32), bool)> {
    // A disk may have been here before that the driver did not let go of.
    virtio::let_go(slot)?;
    let entry = virtio::bring_to_life(slot, "block")?.path();
    let text = fs::read_to_string(entry.join("dev"))?;
    let numbers = numbers(text.trim())
        .ok_or_else(|| io::Error::other(format!("{text:?} are not the numbers of a device")))?;
    let writable = fs::read_to_string(entry.join("ro"))?.trim() == "0";
    Ok((numbers, writable))
}

/// Reads `254:16`.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

async fn blocking<T: Send + 'static>(task: impl FnOnce() -> T + Send + 'static) -> Result<T, DiskError> {
    tokio::task::spawn_blocking(task).await.map_err(|error| DiskError::Task(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used_by(users: &[&str], writable: bool) -> Disk {
        let users = users.iter().map(|user| (*user).to_owned()).collect();
        Disk { numbers: (254, 0), writable, users }
    }

    fn device(slot: u32) -> BlockDevice {
        BlockDevice { major: 7, minor: 3, slot, ..Default::default() }
    }

    #[tokio::test]
    async fn a_disk_is_shared_and_stays_for_the_last_container() {
        let disks = Disks(Mutex::new([(12, used_by(&["a"], true))].into()));
        let taken = disks.take("b", &[device(12)]).await.unwrap();
        assert_eq!(taken, [Renumbered { host: (7, 3), guest: (254, 0) }]);
        disks.release("a").await.unwrap();
        disks.release("a").await.unwrap();
        assert_eq!(disks.0.lock().await[&12].users, BTreeSet::from(["b".to_owned()]));
        assert!(disks.any_writable().await);
    }

    #[tokio::test]
    async fn what_does_not_start_is_named_and_nothing_is_kept() {
        let disks = Disks(Mutex::new([(12, used_by(&["a"], false))].into()));
        // No machine has so many.
        let error = disks.take("b", &[device(12), device(4_000_000)]).await.unwrap_err().to_string();
        assert!(error.starts_with("devices[1].slot: virtio device 4000000, for block device 7:3"), "{error}");
        assert_eq!(disks.0.lock().await[&12].users, BTreeSet::from(["a".to_owned()]));
        assert!(!disks.any_writable().await);
        let error = disks.take("b", &vec![device(12); DISKS_MAX + 1]).await.unwrap_err();
        assert_eq!(error.code(), Code::INVALID_ARGUMENT);
    }

    #[test]
    fn numbers_are_read() {
        assert_eq!(numbers("254:16"), Some((254, 16)));
        assert!(["", "254", "254:", "x:1"].into_iter().all(|text| numbers(text).is_none()));
    }
}
