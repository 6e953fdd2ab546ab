//! The cgroup of a container: `/sys/fs/cgroup/pouch/NAME`.

pub mod change;
pub mod limits;
pub mod stats;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use oci_spec::runtime::LinuxResources;
use ttrpc::proto::Code;

use crate::error::{Coded, RequestError};
use crate::procfs::flat_keyed;
use limits::Write;

/// Where cgroup v2 is mounted.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Above all containers. Its name is also the first part of their path.
const PARENT: &str = "pouch";
/// The deepest nesting that is walked; systemd uses about five levels.
const DEPTH_MAX: usize = 32;
/// How long freezing or killing may take.
const SETTLE_TIME: Duration = Duration::from_secs(10);

/// Why a cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A setting was refused by the kernel.
    #[error("{field}: cannot write {value:?} to {file}")]
    Setting {
        /// The field of the specification.
        field: String,
        /// The file of the cgroup.
        file: String,
        /// What was written.
        value: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file of the cgroup failed.
    #[error("cgroup: cannot {0} {path}", path = .1.display())]
    File(&'static str, PathBuf, #[source] io::Error),
    /// The kernel did not do it in time.
    #[error("cgroup: the processes were not {0} within {SETTLE_TIME:?}")]
    Timeout(&'static str),
}

impl Coded for CgroupError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Setting { .. } => Code::INVALID_ARGUMENT,
            _ => Code::INTERNAL,
        }
    }
}

/// Makes the parent of all containers and gives it every controller.
pub fn prepare_root() {
    let parent = Path::new(ROOT).join(PARENT);
    if let Err(error) = fs::create_dir_all(&parent) {
        return log::error!("cannot make {}: {error}", parent.display());
    }
    for directory in [Path::new(ROOT), &parent] {
        enable_controllers(directory);
    }
}

/// Controllers are enabled one by one: one that fails must not take the others with it.
fn enable_controllers(directory: &Path) {
    let controllers = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_ascii_whitespace() {
        if let Err(error) = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}")) {
            log::warn!("cannot enable {controller} in {}: {error}", directory.display());
        }
    }
}

/// One container's cgroup.
#[derive(Clone, Debug)]
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    /// The cgroup of the container that is called `name` in the guest.
    pub fn of(name: &str) -> Self {
        Self { directory: Path::new(ROOT).join(PARENT).join(name) }
    }

    /// The directory in the cgroup file system.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path from the root of the hierarchy, as a specification's `cgroupsPath` has it.
    pub fn hierarchy_path(&self) -> PathBuf {
        let relative = self.directory.strip_prefix(ROOT).unwrap_or(&self.directory);
        Path::new("/").join(relative)
    }

    /// Makes it, with its limits.
    pub fn create(&self, resources: Option<&LinuxResources>) -> Result<(), CgroupError> {
        fs::create_dir(&self.directory)
            .map_err(|error| CgroupError::File("make", self.directory.clone(), error))?;
        let applied = self.apply(resources);
        if applied.is_err() {
            // Return the error of the limits.
            let _ = fs::remove_dir(&self.directory);
        }
        applied
    }

    /// Applies limits; those that `resources` omits are unchanged.
    pub fn apply(&self, resources: Option<&LinuxResources>) -> Result<(), CgroupError> {
        let Some(resources) = resources else { return Ok(()) };
        limits::check_usage(resources, || self.number("memory.current"))?;
        let cpus = change::Size::of_guest().cpus;
        for write in limits::writes(resources, cpus, |file| self.directory.join(file).exists())? {
            self.write(write)?;
        }
        Ok(())
    }

    fn write(&self, write: Write) -> Result<(), CgroupError> {
        let Write { field, file, value } = write;
        fs::write(self.directory.join(&file), &value).map_err(|source| CgroupError::Setting {
            field,
            file,
            value,
            source,
        })
    }

    /// The text of one of its files.
    pub fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.directory.join(file)).ok()
    }

    fn number(&self, file: &str) -> Option<u64> {
        crate::procfs::limit(&self.read(file)?)
    }

    /// How often the out-of-memory killer killed a process in it or in a cgroup below.
    pub fn oom_kills(&self) -> u64 {
        let events = self.read("memory.events").unwrap_or_default();
        flat_keyed(&events).get("oom_kill").copied().unwrap_or(0)
    }

    /// Every process in it and below, in no order.
    pub fn processes(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        collect_processes(&self.directory, 0, &mut pids);
        pids
    }

    /// Stops or continues every process in it.
    pub fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let path = self.directory.join("cgroup.freeze");
        fs::write(&path, if frozen { "1" } else { "0" })
            .map_err(|error| CgroupError::File("write", path, error))?;
        let wanted = u64::from(frozen);
        let settled = self.wait_for_event("frozen", wanted);
        if !settled && frozen {
            // Do not leave it partly frozen; thaw it.
            let _ = fs::write(self.directory.join("cgroup.freeze"), "0");
        }
        if settled { Ok(()) } else { Err(CgroupError::Timeout(if frozen { "frozen" } else { "thawed" })) }
    }

    /// Polls `cgroup.events`, at first often: the kernel is mostly done at once.
    fn wait_for_event(&self, name: &str, wanted: u64) -> bool {
        let deadline = Instant::now() + SETTLE_TIME;
        let mut pause = Duration::from_micros(100);
        loop {
            let events = match fs::read_to_string(self.directory.join("cgroup.events")) {
                Ok(text) => flat_keyed(&text),
                // It was removed, so no process is left.
                Err(_) => return true,
            };
            if events.get(name).copied().unwrap_or(0) == wanted {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Kills every process in it, without waiting for their end.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let kill = self.directory.join("cgroup.kill");
        fs::write(&kill, "1").map_err(|error| CgroupError::File("write", kill, error))
    }

    /// Kills every process in it and removes it. Fine if it does not exist.
    pub fn destroy(&self) -> Result<(), CgroupError> {
        if !self.directory.exists() {
            return Ok(());
        }
        self.kill()?;
        if !self.wait_for_event("populated", 0) {
            return Err(CgroupError::Timeout("ended"));
        }
        self.remove(&self.directory, 0)
    }

    /// Removes a cgroup and those below it. A dying process keeps it busy for a moment after `populated` has
    /// become 0.
    fn remove(&self, directory: &Path, depth: usize) -> Result<(), CgroupError> {
        for child in subdirectories(directory) {
            if depth < DEPTH_MAX {
                self.remove(&child, depth + 1)?;
            }
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            match fs::remove_dir(directory) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error)
                    if error.raw_os_error() == Some(Errno::EBUSY as i32) && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(CgroupError::File("remove", directory.to_owned(), error)),
            }
        }
    }

    /// Lets a container's own root manage what is below: with a user namespace, the files
    /// that delegation needs belong to the mapped user.
    pub fn delegate(&self, owner: u32) -> Result<(), CgroupError> {
        for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
            let path = if file.is_empty() { self.directory.clone() } else { self.directory.join(file) };
            std::os::unix::fs::chown(&path, Some(owner), Some(owner))
                .map_err(|error| CgroupError::File("chown", path, error))?;
        }
        Ok(())
    }
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn collect_processes(directory: &Path, depth: usize, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    if depth < DEPTH_MAX {
        for child in subdirectories(directory) {
            collect_processes(&child, depth + 1, pids);
        }
    }
}
