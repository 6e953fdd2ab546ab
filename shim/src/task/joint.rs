//! Directories that several containers of a pod mount: one mount of the share tree serves all of them.
//!
//! So a name that one container makes is there for the others at once, and inotify tells of it. With a mount for each
//! container, only files would be the same ones in the guest, and not directories
//! (`vmm/src/devices/virtio/fs/mounts.rs`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use procfs::process::Process;
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::container::guest_spec::{GuestSpec, guest_path};
use crate::sandbox::later;
use crate::sandbox::share::{ROOTFS, SharedPath};

/// The directories that the containers of a pod mount.
#[derive(Default)]
pub struct Directories {
    mounted: Vec<Directory>,
    /// How many there have been. The guest may remember for a second what a name was.
    count: u64,
}

/// A directory that is mounted in the share tree.
struct Directory {
    source: Source,
    entry: SharedPath,
    users: usize,
}

/// What makes mounts of two containers the same.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    mount: u64,
    device: (u32, u32),
    number: u64,
    /// The IDs of the mounts below it, if they are mounted too.
    below: Option<Vec<i32>>,
}

impl Source {
    fn of(entry: &SharedPath) -> io::Result<Self> {
        let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
        let status = statx(CWD, &entry.source, AtFlags::empty(), wanted)?;
        let below = if entry.recursive { Some(mounts_below(&entry.source)?) } else { None };
        Ok(Source {
            mount: status.stx_mnt_id,
            device: (status.stx_dev_major, status.stx_dev_minor),
            number: status.stx_ino,
            below,
        })
    }
}

/// The IDs of the mounts below a directory of the host.
fn mounts_below(directory: &Path) -> io::Result<Vec<i32>> {
    let directory = fs::canonicalize(directory)?.into_os_string().into_string();
    let mut directory = directory.map_err(|_| io::Error::from(io::ErrorKind::InvalidFilename))?;
    // As the kernel writes them (`mangle` of fs/proc_namespace.c).
    for (character, escape) in [("\\", "\\134"), (" ", "\\040"), ("\t", "\\011"), ("\n", "\\012")] {
        directory = directory.replace(character, escape);
    }
    let mounts = Process::myself().and_then(|process| process.mountinfo()).map_err(io::Error::other)?;
    let is_below = |point: &Path| point != Path::new(&directory) && point.starts_with(&directory);
    Ok(mounts.into_iter().filter(|mount| is_below(&mount.mount_point)).map(|mount| mount.mnt_id).collect())
}

impl Directories {
    /// Has the specification use the mounts that there are, and notes those that it adds. Returns all that it uses, by
    /// their places in the share tree; [`Self::release`] gives them back. `guest.shared` keeps what must be added.
    pub fn take(&mut self, guest: &mut GuestSpec) -> Vec<PathBuf> {
        let mut used = Vec::new();
        for mut entry in std::mem::take(&mut guest.shared) {
            let source = if can_be_joint(&entry) { Source::of(&entry).ok() } else { None };
            let Some(source) = source else {
                guest.shared.push(entry);
                continue;
            };
            // The guest mounts it read-only for a container that has it so.
            let serves = |known: &&mut Directory| {
                known.source == source && (entry.read_only || !known.entry.read_only)
            };
            if let Some(known) = self.mounted.iter_mut().find(serves) {
                known.users += 1;
                redirect(guest, &entry.target, &known.entry.target);
                used.push(known.entry.target.clone());
                continue;
            }
            self.count += 1;
            let target = later::joint_mount(&entry.target, self.count);
            redirect(guest, &entry.target, &target);
            entry.target.clone_from(&target);
            guest.shared.push(entry.clone());
            self.mounted.push(Directory { source, entry, users: 1 });
            used.push(target);
        }
        used
    }

    /// Gives back what a container used. Returns what nobody uses any more.
    pub fn release(&mut self, used: &[PathBuf]) -> Vec<SharedPath> {
        for target in used {
            if let Some(known) = self.mounted.iter_mut().find(|known| known.entry.target == *target) {
                known.users -= 1;
            }
        }
        self.mounted.extract_if(.., |known| known.users == 0).map(|known| known.entry).collect()
    }
}

/// Whether a mount could serve several containers. A root is one container's own. What follows the mounts of the host,
/// or shows other owners, differs from container to container.
fn can_be_joint(entry: &SharedPath) -> bool {
    let plain = !entry.follows && entry.idmap.is_none() && entry.overlay.is_none();
    entry.directory && plain && later::is_joint(entry) && !entry.target.ends_with(ROOTFS)
}

fn redirect(guest: &mut GuestSpec, from: &Path, to: &Path) {
    let (from, to) = (guest_path(from), guest_path(to));
    for mount in guest.spec.mounts_mut().iter_mut().flatten() {
        if mount.source().as_deref() == Some(&from) {
            mount.set_source(Some(to.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Bundle;
    use crate::container::guest_spec::{Place, translate};
    use crate::container::pod_spec::Neighbors;
    use serde_json::json;

    /// A container in a slot of a pod, with mounts of directories and their options.
    fn container(folder: &Path, slot: usize, mounts: &[(&str, &[&str])]) -> GuestSpec {
        let mounts: Vec<_> = mounts
            .iter()
            .map(|(name, options)| {
                json!({"destination": format!("/{name}"), "type": "bind", "source": folder.join(name),
                       "options": options})
            })
            .collect();
        let path = |kind: &str| json!({"type": kind, "path": format!("/proc/7/ns/{kind}")});
        let spec = json!({
            "ociVersion": "1.2.0", "root": {"path": "rootfs"}, "mounts": mounts,
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/"},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, path("network"), path("ipc"), path("uts")]},
        });
        fs::write(folder.join("config.json"), spec.to_string()).unwrap();
        let bundle = Bundle::load(folder).unwrap();
        let place = Place { slot, pod: Neighbors { sandbox: 7, containers: [].into() } };
        translate(&bundle, Some(&place)).unwrap()
    }

    #[test]
    fn a_directory_is_mounted_once_and_as_long_as_it_is_used() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["rootfs", "data", "fixed", "later"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let mut directories = Directories::default();
        let mut join = |slot, mounts: &[(&str, &[&str])]| {
            let mut guest = container(folder.path(), slot, mounts);
            let used = directories.take(&mut guest);
            let sources: Vec<_> =
                guest.spec.mounts().iter().flatten().map(|mount| mount.source().clone().unwrap()).collect();
            assert_eq!(sources.len(), mounts.len());
            for target in &used {
                assert!(sources.contains(&guest_path(target)), "{sources:?}");
            }
            (used, guest.shared.len())
        };
        let (first, added) =
            join(0, &[("data", &["rbind"]), ("fixed", &["rbind", "ro"]), ("later", &["rslave"])]);
        assert_eq!((first.len(), added), (2, 4), "with the root and what follows the host");
        // One that reads has the mount of one that writes, and not the other way.
        let (second, added) = join(1, &[("data", &["rbind", "ro"]), ("fixed", &["rbind"])]);
        assert_eq!((&second[0], added), (&first[0], 2));
        assert_ne!(second[1], first[1]);
        let (third, _) = join(2, &[("data", &["bind"])]);
        assert_ne!(third[0], first[0], "without what is mounted below");
        let released = |directories: &mut Directories, used: &[PathBuf]| -> Vec<PathBuf> {
            directories.release(used).into_iter().map(|entry| entry.target).collect()
        };
        assert_eq!(released(&mut directories, &first), [first[1].clone()]);
        assert_eq!(released(&mut directories, &second), second);
        assert_eq!(released(&mut directories, &third), third);
        assert!(released(&mut directories, &third).is_empty());
    }
}
