//! File systems that the host requests: the share tree, disks, tmpfs and bind mounts.

mod plan;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pouch_protocol::agent::Storage;
use ttrpc::proto::Code;

use crate::error::{Coded, RequestError};
use plan::{Kind, Plan, plan};

/// How many storages one guest may have.
const STORAGES_MAX: usize = 4096;
/// How long a disk may take to appear: the host may have plugged it in just now.
const DISK_TIME: Duration = Duration::from_secs(5);
/// A little more than the time for which the kernel keeps a name of the share.
const NAME_TIME: Duration = Duration::from_millis(1100);
/// How often the agent looks whether the host has removed a directory of the share.
const LOOKS: usize = 10;

/// Why a storage could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Something is mounted there already.
    #[error("storage.mount_point: {0:?} is in use already")]
    InUse(String),
    /// Nothing is mounted there.
    #[error("mount_point: nothing is mounted at {0:?}")]
    NotMounted(String),
    /// Too many.
    #[error("the guest already has {STORAGES_MAX} storages")]
    TooMany,
    /// No disk has the serial.
    #[error("storage.source: no disk has the serial {0:?}")]
    NoDisk(String),
    /// The mount point cannot be made.
    #[error("storage.mount_point: cannot make {0:?}")]
    Directory(String, #[source] io::Error),
    /// The kernel refused to mount.
    #[error("storage: cannot mount {source_name:?} at {target:?}")]
    Mount {
        /// What.
        source_name: String,
        /// Where.
        target: String,
        /// Why not.
        #[source]
        error: Errno,
    },
    /// The kernel refused to unmount.
    #[error("storage: cannot unmount {0:?}")]
    Unmount(String, #[source] Errno),
    /// The agent's own task failed.
    #[error("the agent's task failed: {0}")]
    Task(String),
}

impl Coded for StorageError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::InUse(_) => Code::ALREADY_EXISTS,
            Self::NotMounted(_) | Self::NoDisk(_) => Code::NOT_FOUND,
            Self::TooMany => Code::RESOURCE_EXHAUSTED,
            _ => Code::INTERNAL,
        }
    }
}

/// The mounts, in mount order.
#[derive(Default)]
pub struct Storages(Mutex<Mounted>);

#[derive(Default)]
struct Mounted {
    /// Mount points with their owners: a container's ID, or none.
    owners: HashMap<String, String>,
    order: Vec<String>,
    /// Directories of the share that the host mounts and removes, by their owners. They may have several.
    submounts: HashMap<String, Vec<String>>,
    /// Those of disks that can be written to.
    writable_disks: HashSet<String>,
}

impl Storages {
    fn lock(&self) -> MutexGuard<'_, Mounted> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn reserve(&self, target: &str, owner: &str) -> Result<(), StorageError> {
        let mut mounted = self.lock();
        if mounted.owners.contains_key(target) {
            return Err(StorageError::InUse(target.to_owned()));
        }
        if mounted.owners.len() >= STORAGES_MAX {
            return Err(StorageError::TooMany);
        }
        mounted.owners.insert(target.to_owned(), owner.to_owned());
        mounted.order.push(target.to_owned());
        Ok(())
    }

    fn release(&self, target: &str) {
        let mut mounted = self.lock();
        mounted.owners.remove(target);
        mounted.writable_disks.remove(target);
        mounted.order.retain(|other| other != target);
    }

    fn note_submount(&self, owner: &str, target: &str) -> Result<(), StorageError> {
        let mut mounted = self.lock();
        let count: usize = mounted.submounts.values().map(Vec::len).sum();
        if count >= STORAGES_MAX {
            return Err(StorageError::TooMany);
        }
        mounted.submounts.entry(owner.to_owned()).or_default().push(target.to_owned());
        Ok(())
    }

    /// Removes the notes of the submounts of an owner, or of all.
    fn take_submounts(&self, owner: Option<&str>) -> Vec<String> {
        let submounts = &mut self.lock().submounts;
        match owner {
            Some(owner) => submounts.remove(owner).unwrap_or_default(),
            None => std::mem::take(submounts).into_values().flatten().collect(),
        }
    }

    fn note_writable_disk(&self, target: &str) {
        self.lock().writable_disks.insert(target.to_owned());
    }

    /// Whether a disk is mounted that can be written to.
    pub fn have_writable_disk(&self) -> bool {
        !self.lock().writable_disks.is_empty()
    }

    /// The mount points of an owner, the last one first.
    fn owned(&self, owner: Option<&str>) -> Vec<String> {
        let mounted = self.lock();
        let of = |target: &&String| {
            owner.is_none_or(|owner| mounted.owners.get(*target).is_some_and(|o| o == owner))
        };
        mounted.order.iter().rev().filter(of).cloned().collect()
    }
}

/// Mounts storages in their order; if one fails, those before it are unmounted again.
pub async fn mount_all(storages: &Storages, owner: &str, list: Vec<Storage>) -> Result<(), StorageError> {
    let plans = list.iter().map(plan).collect::<Result<Vec<_>, _>>()?;
    let (submounts, plans): (Vec<_>, Vec<_>) =
        plans.into_iter().partition(|plan| plan.kind == Kind::Submount);
    let mut done: Vec<String> = Vec::new();
    for plan in plans {
        let target = plan.target.clone();
        let mounted = match storages.reserve(&target, owner) {
            Ok(()) => {
                if matches!(plan.kind, Kind::Disk(_)) && !plan.flags.contains(MsFlags::MS_RDONLY) {
                    storages.note_writable_disk(&target);
                }
                let result = blocking(move || perform(&plan)).await;
                if result.is_err() {
                    storages.release(&target);
                }
                result
            }
            Err(error) => Err(error),
        };
        if let Err(error) = mounted {
            for target in done.iter().rev() {
                if let Err(undo) = unmount(storages, target).await {
                    log::error!("{}", pouch_errors::chain(&undo));
                }
            }
            return Err(error);
        }
        done.push(target);
    }
    submounts.iter().try_for_each(|plan| storages.note_submount(owner, &plan.target))
}

async fn blocking<T: Send + 'static>(
    task: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(task).await.map_err(|error| StorageError::Task(error.to_string()))?
}

/// Unmounts one storage.
pub async fn unmount(storages: &Storages, target: &str) -> Result<(), StorageError> {
    if !storages.lock().owners.contains_key(target) {
        return Err(StorageError::NotMounted(target.to_owned()));
    }
    let point = target.to_owned();
    blocking(move || detach(&point)).await?;
    storages.release(target);
    Ok(())
}

/// Has the kernel forget a directory of the share that the host removes. When the kernel looks it up and does not find
/// it, it drops everything below it. Until then the VMM has these files open.
async fn forget(directory: String) {
    // If it stays, another container uses it.
    for _ in 0..LOOKS {
        tokio::time::sleep(NAME_TIME).await;
        let path = directory.clone();
        match tokio::task::spawn_blocking(move || fs::symlink_metadata(path)).await {
            Ok(Ok(_)) => {}
            _ => return,
        }
    }
}

/// Unmounts what belongs to an owner, the last one first.
pub async fn unmount_owned(storages: &Storages, owner: &str) -> Result<(), StorageError> {
    for directory in storages.take_submounts(Some(owner)) {
        let point = directory.clone();
        blocking(move || detach(&point)).await?;
        tokio::spawn(forget(directory));
    }
    for target in storages.owned(Some(owner)) {
        unmount(storages, &target).await?;
    }
    Ok(())
}

/// Unmounts everything, for the end.
pub async fn unmount_every(storages: &Storages) {
    for directory in storages.take_submounts(None) {
        if let Err(error) = blocking(move || detach(&directory)).await {
            log::warn!("{}", pouch_errors::chain(&error));
        }
    }
    for target in storages.owned(None) {
        if let Err(error) = unmount(storages, &target).await {
            log::warn!("{}", pouch_errors::chain(&error));
        }
    }
}

/// A busy file system is detached: it is unmounted with its last user.
fn detach(target: &str) -> Result<(), StorageError> {
    let mut result = umount2(target, MntFlags::UMOUNT_NOFOLLOW);
    if result == Err(Errno::EBUSY) {
        result = umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH);
    }
    match result {
        // It is no error if it is not mounted any more.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(StorageError::Unmount(target.to_owned(), error)),
    }
    // Only the mount point's own directory, and only if it is empty.
    let _ = fs::remove_dir(target);
    Ok(())
}

fn perform(plan: &Plan) -> Result<(), StorageError> {
    let directory = |error| StorageError::Directory(plan.target.clone(), error);
    let single_file = plan.kind == Kind::Bind && Path::new(&plan.source).is_file();
    if single_file {
        if let Some(parent) = Path::new(&plan.target).parent() {
            fs::create_dir_all(parent).map_err(directory)?;
        }
        fs::File::options().create(true).append(true).open(&plan.target).map_err(directory)?;
    } else {
        fs::create_dir_all(&plan.target).map_err(directory)?;
    }
    let result = match &plan.kind {
        Kind::FileSystem(name) => call(plan, &plan.source, Some(name), plan.flags),
        Kind::Disk(name) => call(plan, &find_disk(&plan.source)?, Some(name), plan.flags),
        Kind::Bind => bind(plan),
        // The kernel mounts it when it is used.
        Kind::Submount => Ok(()),
    };
    if result.is_err() {
        let _ = fs::remove_dir(&plan.target);
    }
    result
}

/// A bind mount takes its flags in a second call only.
fn bind(plan: &Plan) -> Result<(), StorageError> {
    call(plan, &plan.source, None, MsFlags::MS_BIND | (plan.flags & MsFlags::MS_REC))?;
    let flags = plan.flags - MsFlags::MS_REC;
    if flags == MsFlags::MS_BIND {
        return Ok(());
    }
    let result = call(plan, &plan.source, None, flags | MsFlags::MS_REMOUNT);
    if result.is_err() {
        let _ = umount2(plan.target.as_str(), MntFlags::MNT_DETACH);
    }
    result
}

fn call(plan: &Plan, source: &str, kind: Option<&str>, flags: MsFlags) -> Result<(), StorageError> {
    mount(Some(source), plan.target.as_str(), kind, flags, Some(plan.options.as_str())).map_err(|error| {
        StorageError::Mount { source_name: plan.source.clone(), target: plan.target.clone(), error }
    })
}

/// The device of the virtio disk whose serial is `serial`.
fn find_disk(serial: &str) -> Result<String, StorageError> {
    let deadline = Instant::now() + DISK_TIME;
    loop {
        for entry in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            let found = fs::read_to_string(entry.path().join("serial"));
            if found.is_ok_and(|found| found.trim_end() == serial) {
                return Ok(format!("/dev/{}", entry.file_name().to_string_lossy()));
            }
        }
        if Instant::now() >= deadline {
            return Err(StorageError::NoDisk(serial.to_owned()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_knows_owners_and_order() {
        let storages = Storages::default();
        storages.reserve("/run/pouch/a", "c").unwrap();
        storages.reserve("/run/pouch/b", "").unwrap();
        storages.reserve("/run/pouch/a/x", "c").unwrap();
        assert!(matches!(storages.reserve("/run/pouch/a", ""), Err(StorageError::InUse(_))));
        assert_eq!(storages.owned(Some("c")), ["/run/pouch/a/x", "/run/pouch/a"]);
        storages.note_writable_disk("/run/pouch/a/x");
        assert!(storages.have_writable_disk());
        storages.release("/run/pouch/a/x");
        assert!(!storages.have_writable_disk());
        assert_eq!(storages.owned(None), ["/run/pouch/b", "/run/pouch/a"]);
        for owner in ["c", "d"] {
            storages.note_submount(owner, "/run/pouch/share/x").unwrap();
        }
        assert_eq!(storages.take_submounts(Some("c")), ["/run/pouch/share/x"]);
        assert_eq!(storages.take_submounts(Some("c")), [""; 0]);
        assert_eq!(storages.take_submounts(None), ["/run/pouch/share/x"]);
    }
}
