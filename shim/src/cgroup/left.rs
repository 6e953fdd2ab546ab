//! The cgroup of a container whose state cannot be read.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;

use procfs::process::Process;

use super::{remove_default_parent, remove_when_empty, roots};

/// The cgroup of a sandbox host process, as the kernel tells it.
pub struct LeftCgroup {
    /// Below the root of a hierarchy, without a leading slash.
    paths: BTreeSet<PathBuf>,
}

impl LeftCgroup {
    /// That of the process with this PID; none if there is no such process.
    pub fn of(pid: i32) -> Option<Self> {
        let cgroups = Process::new(pid).and_then(|process| process.cgroups()).ok()?;
        let paths = cgroups.into_iter().map(|cgroup| PathBuf::from(cgroup.pathname.trim_start_matches('/')));
        Some(LeftCgroup { paths: paths.filter(|path| !path.as_os_str().is_empty()).collect() })
    }

    /// The directories of the cgroup.
    fn directories(&self) -> Vec<PathBuf> {
        roots().iter().flat_map(|root| self.paths.iter().map(|path| root.join(path))).collect()
    }

    /// See [`super::Cgroup::open_disk_statistics`].
    pub fn open_disk_statistics(&self) -> Option<File> {
        self.directories().iter().find_map(|directory| File::open(directory.join("io.stat")).ok())
    }

    /// Removes it if no process is left in it. A process that had not joined the container's cgroup was in one with
    /// others, who are not killed.
    pub fn remove(&self) {
        for directory in self.directories() {
            remove_when_empty(&directory);
        }
        for path in &self.paths {
            remove_default_parent(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_with_a_process_in_it_stays() {
        let left = LeftCgroup::of(std::process::id() as i32).unwrap();
        let directories = left.directories();
        let there = || directories.iter().filter(|directory| directory.exists()).count();
        let before = there();
        left.remove();
        assert_eq!(there(), before);
        assert!(LeftCgroup::of(-1).is_none());
    }
}
