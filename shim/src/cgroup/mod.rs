//! The container's cgroup on the host: the sandbox host process and the VMM are in it.
//!
//! This module creates directories of cgroup v2 itself, because a VMM can be started in one. Limits, systemd
//! units and cgroup v1 are handled by libcgroups.

mod left;
mod limits;
pub mod oom;
pub mod oom_reporter;
pub mod settings;
mod usage;

pub use left::LeftCgroup;
pub use usage::Usage;

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use libcgroups::common::{AnyCgroupManager, CgroupConfig, CgroupManager, create_cgroup_manager};
use libcgroups_nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// Where the hierarchy is.
const HIERARCHY: &str = "/sys/fs/cgroup";
/// Below this a container without a path of its own gets one.
const DEFAULT_PARENT: &str = "pouch-vm";
/// Controllers that limits may need, as far as the host has them.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "io", "memory", "pids"];
/// This directory exists if systemd runs.
const SYSTEMD: &str = "/run/systemd/system";
/// How often the removal of a cgroup is tried, and the time between.
const REMOVAL: (u32, Duration) = (200, Duration::from_millis(5));

/// The cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path leads out of the hierarchy.
    #[error("linux.cgroupsPath {0} contains ..")]
    Upwards(PathBuf),
    /// It contains processes, which would be killed with the container.
    #[error("linux.cgroupsPath {0} already has processes in it; a container needs its own cgroup")]
    InUse(PathBuf),
    /// systemd should create it, but does not run.
    #[error("--systemd-cgroup is given, but systemd does not run on this host ({SYSTEMD} is missing)")]
    NoSystemd,
    /// systemd should create it, but the path has another form.
    #[error("--systemd-cgroup is given, but linux.cgroupsPath {0} is not of the form SLICE:PREFIX:NAME")]
    NotSystemds(PathBuf),
    /// It could not be created or joined.
    #[error("the cgroup {path} could not be {action}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// The operation.
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// A limit was refused.
    #[error("linux.resources.{field} could not be set in the container's cgroup on the host")]
    Limit {
        /// The field.
        field: &'static str,
        /// The error of the library that sets it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The library that makes cgroups failed.
    #[error("the cgroup {path} could not be {action}")]
    Manager {
        /// The cgroup.
        path: PathBuf,
        /// The operation.
        action: &'static str,
        /// Its error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Which process creates the cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Driver {
    /// This process, in the hierarchy of cgroup v2.
    Unified,
    /// This process, in each hierarchy of cgroup v1.
    Legacy,
    /// systemd, as a scope.
    Systemd,
}

/// A container's cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    driver: Driver,
    /// As the specification has it, without a leading slash.
    specified: PathBuf,
    /// Below the root of the hierarchy.
    path: PathBuf,
    container: String,
}

/// How the VMM gets into the cgroup.
pub enum CgroupPlacement {
    /// It is started in this directory; this process joins later.
    In(File),
    /// It is started by this process, which is in it.
    Inherited,
}

/// Whether the host has cgroup v2 where it is expected.
fn unified() -> bool {
    Path::new(HIERARCHY).join("cgroup.controllers").exists()
}

/// The hierarchies of cgroup v1.
fn hierarchies() -> impl Iterator<Item = PathBuf> {
    fs::read_dir(HIERARCHY).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The roots of all hierarchies.
fn roots() -> Vec<PathBuf> {
    if unified() { vec![PathBuf::from(HIERARCHY)] } else { hierarchies().collect() }
}

impl Cgroup {
    /// The cgroup of the container `id`.
    ///
    /// # Errors
    /// [`CgroupError`] if the path tries to leave the hierarchy, or is not systemd's.
    pub fn new(specified: Option<&Path>, id: &str, systemd: bool) -> Result<Self, CgroupError> {
        let driver = match (systemd, unified()) {
            (true, _) if !Path::new(SYSTEMD).exists() => return Err(CgroupError::NoSystemd),
            (true, true) => Driver::Systemd,
            (_, true) => Driver::Unified,
            // systemd does not manage these hierarchies.
            (_, false) => Driver::Legacy,
        };
        let default = match driver {
            Driver::Systemd => PathBuf::from(format!(":{DEFAULT_PARENT}:{id}")),
            _ => Path::new(DEFAULT_PARENT).join(id),
        };
        let specified = specified.filter(|path| !path.as_os_str().is_empty());
        let specified = specified.map_or(default, Path::to_owned);
        let path = match unit_path(&specified) {
            Some(path) => path,
            None if driver == Driver::Systemd => return Err(CgroupError::NotSystemds(specified)),
            None => plain_path(&specified)?,
        };
        let specified = if driver == Driver::Systemd { specified } else { path.clone() };
        Ok(Cgroup { driver, specified, path, container: id.to_owned() })
    }

    fn directory(&self) -> PathBuf {
        Path::new(HIERARCHY).join(&self.path)
    }

    fn io_error(&self, action: &'static str) -> impl FnOnce(io::Error) -> CgroupError {
        let path = self.directory();
        move |source| CgroupError::Io { path, action, source }
    }

    fn manager_error<E>(&self, action: &'static str) -> impl FnOnce(E) -> CgroupError
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let path = self.path.clone();
        move |source| CgroupError::Manager { path, action, source: Box::new(source) }
    }

    fn manager(&self) -> Result<AnyCgroupManager, CgroupError> {
        let systemd = self.driver == Driver::Systemd;
        // The library takes a path from the root for one that is not systemd's.
        let path = if systemd { self.specified.clone() } else { Path::new("/").join(&self.path) };
        create_cgroup_manager(CgroupConfig {
            cgroup_path: path,
            systemd_cgroup: systemd,
            container_name: self.container.clone(),
        })
        .map_err(self.manager_error("managed"))
    }

    /// Refuses a cgroup that has processes in it, because they would be killed with the container.
    ///
    /// # Errors
    /// [`CgroupError::InUse`] names it.
    pub fn check_unused(&self) -> Result<(), CgroupError> {
        let read = |directory: PathBuf, file| fs::read_to_string(directory.join(file)).unwrap_or_default();
        // systemd would not refuse either: the new process would join the existing unit.
        let populated = if unified() {
            read(self.directory(), "cgroup.events").lines().any(|line| line == "populated 1")
        } else {
            hierarchies().any(|root| !read(root.join(&self.path), "cgroup.procs").is_empty())
        };
        if populated { Err(CgroupError::InUse(Path::new("/").join(&self.path))) } else { Ok(()) }
    }

    /// Makes the cgroup.
    ///
    /// # Errors
    /// [`CgroupError`] names it.
    pub fn make(&self) -> Result<CgroupPlacement, CgroupError> {
        if self.driver != Driver::Unified {
            self.manager()?.add_task(Pid::this()).map_err(self.manager_error("created"))?;
            return Ok(CgroupPlacement::Inherited);
        }
        let directory = self.directory();
        fs::create_dir_all(&directory).map_err(self.io_error("created"))?;
        enable_controllers(&self.path);
        File::open(&directory).map(CgroupPlacement::In).map_err(self.io_error("opened"))
    }

    /// Moves this process, with all its threads, into the cgroup. The kernel takes a grace period
    /// for it: some 10 ms.
    ///
    /// # Errors
    /// [`CgroupError`] names it.
    pub fn enter(&self) -> Result<(), CgroupError> {
        fs::write(self.directory().join("cgroup.procs"), "0").map_err(self.io_error("joined"))
    }

    /// Moves this process into the cgroup that another process made.
    ///
    /// # Errors
    /// [`CgroupError`] names it.
    pub fn join(&self) -> Result<(), CgroupError> {
        if self.driver != Driver::Legacy {
            return self.enter();
        }
        // A controller that the kernel has without a directory for this cgroup is not in use.
        let directories = hierarchies().map(|root| root.join(&self.path)).filter(|path| path.is_dir());
        for directory in directories {
            fs::write(directory.join("cgroup.procs"), "0").map_err(self.io_error("joined"))?;
        }
        Ok(())
    }

    /// The file of the kernel's I/O counters, if they include writes of other processes on behalf of the cgroup.
    pub fn open_disk_statistics(&self) -> Option<File> {
        File::open(self.directory().join("io.stat")).ok()
    }

    /// Kills what is left in the cgroup and removes it; its parents too as far as they are ours.
    pub fn remove(&self) {
        if self.driver != Driver::Unified {
            // Nothing more can be done about a cgroup that stays.
            let _ = self.manager().map(|manager| manager.remove());
            remove_default_parent(&self.path);
            return;
        }
        let directory = self.directory();
        // Linux 5.14; on older kernels only processes that were killed by PID are left.
        let _ = fs::write(directory.join("cgroup.kill"), "1");
        remove_when_empty(&directory);
        remove_default_parent(&self.path);
    }
}

/// The processes of an ended VM may be in the cgroup for another moment.
fn remove_when_empty(directory: &Path) {
    let (tries, pause) = REMOVAL;
    for _ in 0..tries {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(pause),
            _ => break,
        }
    }
}

/// Removes what containers without a path of their own share, if this is the path of one.
fn remove_default_parent(path: &Path) {
    if path.parent() != Some(Path::new(DEFAULT_PARENT)) {
        return;
    }
    for root in roots() {
        // Fails while other containers are in it.
        let _ = fs::remove_dir(root.join(DEFAULT_PARENT));
    }
}

/// Enables controllers in every directory above the cgroup. If that fails, setting the limit that needs the
/// controller reports the error.
fn enable_controllers(path: &Path) {
    let has = |directory: &Path, controller: &str| {
        let text = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().any(|word| word == controller)
    };
    let root = Path::new(HIERARCHY);
    for controller in CONTROLLERS {
        if has(&root.join(path), controller) {
            continue;
        }
        let mut directory = root.to_owned();
        for component in path.components() {
            let _ = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
            directory.push(component);
        }
    }
}

/// The path of a unit in systemd's form, SLICE:PREFIX:NAME. The name of a slice is taken as it is.
fn unit_path(specified: &Path) -> Option<PathBuf> {
    let text = specified.to_string_lossy();
    let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] else { return None };
    let unit = if name.ends_with(".slice") { name.to_owned() } else { format!("{prefix}-{name}.scope") };
    Some(slice_path(slice).join(unit))
}

fn plain_path(specified: &Path) -> Result<PathBuf, CgroupError> {
    let mut path = PathBuf::new();
    for component in specified.components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => return Err(CgroupError::Upwards(specified.to_owned())),
            _ => {}
        }
    }
    Ok(path)
}

/// The directory of a systemd slice: `a-b.slice` lies in `a.slice`.
fn slice_path(slice: &str) -> PathBuf {
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    let mut path = PathBuf::new();
    let mut name = String::new();
    for part in stem.split('-').filter(|part| !part.is_empty()) {
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(part);
        path.push(format!("{name}.slice"));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_lie_in_their_parents() {
        assert_eq!(slice_path("a-b.slice"), Path::new("a.slice/a-b.slice"));
        assert_eq!(slice_path(""), Path::new("system.slice"));
        let path = |text: &str| unit_path(Path::new(text));
        assert_eq!(path("a-b.slice:docker:1").unwrap(), Path::new("a.slice/a-b.slice/docker-1.scope"));
        assert_eq!(path("::1").unwrap(), Path::new("system.slice/-1.scope"));
        assert_eq!(path("a.slice::b.slice").unwrap(), Path::new("a.slice/b.slice"));
        assert_eq!(path("/docker/1"), None);
    }

    #[test]
    fn a_path_cannot_leave_the_hierarchy() {
        let path = |specified| Cgroup::new(specified, "x", false).map(|cgroup| cgroup.path);
        assert!(path(Some(Path::new("/a/../../etc"))).is_err());
        assert_eq!(path(Some(Path::new("/docker/c"))).unwrap(), Path::new("docker/c"));
        assert_eq!(path(None).unwrap(), Path::new("pouch-vm/x"));
    }
}
