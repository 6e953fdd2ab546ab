//! The container's cgroup on the host: the sandbox host process and the VMM are in it.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

/// Where the hierarchy is.
const HIERARCHY: &str = "/sys/fs/cgroup";
/// Below this a container without a path of its own gets one.
const DEFAULT_PARENT: &str = "pouch-vm";

/// The cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path leads elsewhere.
    #[error("linux.cgroupsPath {0} has a part that leads upwards")]
    Upwards(PathBuf),
    /// It could not be made or joined.
    #[error("the cgroup {path} could not be {action}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What was to be done.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Whether the host has cgroup v2 where it is expected. On a host without it, a container stays
/// in the cgroup of the engine that started it.
fn available() -> bool {
    Path::new(HIERARCHY).join("cgroup.controllers").exists()
}

/// The cgroup of a container, relative to the hierarchy.
///
/// # Errors
/// [`CgroupError::Upwards`] if the path tries to leave the hierarchy.
pub fn path_for(specified: Option<&Path>, id: &str) -> Result<Option<PathBuf>, CgroupError> {
    if !available() {
        return Ok(None);
    }
    let Some(specified) = specified.filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(Some(Path::new(DEFAULT_PARENT).join(id)));
    };
    let text = specified.to_string_lossy();
    // The systemd driver's form: slice:prefix:name.
    if let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] {
        let scope = format!("{prefix}-{name}.scope");
        return Ok(Some(slice_path(slice).join(scope)));
    }
    let mut path = PathBuf::new();
    for component in specified.components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::ParentDir => return Err(CgroupError::Upwards(specified.to_owned())),
            _ => {}
        }
    }
    Ok(Some(path))
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

/// Makes the cgroup and opens its directory.
///
/// # Errors
/// [`CgroupError::Io`] names the directory.
pub fn make(path: &Path) -> Result<File, CgroupError> {
    let directory = Path::new(HIERARCHY).join(path);
    fs::create_dir_all(&directory).and_then(|()| File::open(&directory)).map_err(|source| CgroupError::Io {
        path: directory,
        action: "made",
        source,
    })
}

/// Moves this process, with all its threads, into the cgroup. The kernel takes a grace period for
/// it: some 10 ms.
///
/// # Errors
/// [`CgroupError::Io`] names the directory.
pub fn enter(path: &Path) -> Result<(), CgroupError> {
    let directory = Path::new(HIERARCHY).join(path);
    fs::write(directory.join("cgroup.procs"), "0").map_err(|source| CgroupError::Io {
        path: directory,
        action: "joined",
        source,
    })
}

/// Kills what is left in the cgroup and removes it; its parents too as far as they are ours.
pub fn remove(path: &Path) {
    let directory = Path::new(HIERARCHY).join(path);
    // Linux 5.14; before that there is nobody left but what was killed by pid.
    let _ = fs::write(directory.join("cgroup.kill"), "1");
    for _ in 0..200 {
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            _ => break,
        }
    }
    if path.parent() == Some(Path::new(DEFAULT_PARENT)) {
        // Fails while other containers are in it.
        let _ = fs::remove_dir(Path::new(HIERARCHY).join(DEFAULT_PARENT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_lie_in_their_parents() {
        assert_eq!(slice_path("a-b.slice"), Path::new("a.slice/a-b.slice"));
        assert_eq!(slice_path(""), Path::new("system.slice"));
    }

    #[test]
    fn a_path_cannot_leave_the_hierarchy() {
        if available() {
            assert!(path_for(Some(Path::new("/a/../../etc")), "x").is_err());
            assert_eq!(path_for(Some(Path::new("/docker/c")), "x").unwrap(), Some("docker/c".into()));
            assert_eq!(path_for(None, "x").unwrap(), Some("pouch-vm/x".into()));
        } else {
            assert_eq!(path_for(None, "x").unwrap(), None);
        }
    }
}
