//! Adds files of the host to the share tree of a VM that runs, and removes them.
//!
//! The share tree is a mount of the VMM's mount namespace. The mounts are assembled in a mount namespace of their own,
//! with all their restrictions, and then moved into that of the VMM. So the guest sees a mount with its restrictions or
//! not at all. All of this needs root, and is done by a front end, which does not read what a guest said.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::{major, minor};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use pouch_vmm_api::mount_attributes::{self, Depth};
use pouch_vmm_api::share::{CONTAINERS, SYSTEMS};

use super::share::{self, ShareError, SharedPath};

/// How many containers can be in a VM that runs.
pub const SLOTS: usize = 64;

/// The directory of mounts that several containers use, in that of a file system.
const JOINT: &str = "joint";
/// How many names a path in the directory of a file system begins with: `containers/systems/MAJOR-MINOR`.
const SYSTEM_DEPTH: usize = 3;

/// Files could not be added to a VM that runs.
#[derive(Debug, thiserror::Error)]
pub enum LaterError {
    /// The tree could not be assembled.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The VMM is gone, or its namespace cannot be entered.
    #[error("the mount namespace of the VMM could not be entered")]
    Enter(#[source] io::Error),
    /// The directory of the file systems could not be made writable.
    #[error("the mount for the pod's file systems could not be made writable")]
    Open(#[source] io::Error),
    /// A mount could not be moved into the VMM's namespace.
    #[error("the container's files could not be moved to {path} in the share tree")]
    Move {
        /// The directory or file for the mount.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Something could not be removed from the VMM's namespace.
    #[error("{path} could not be removed from the share tree")]
    Remove {
        /// The mount, or the directory for mounts.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A mount could not be copied.
    #[error("the mount at {path} could not be copied")]
    Copy {
        /// The mount.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A thread could not be used.
    #[error("a thread for the container's files failed")]
    Thread(#[source] io::Error),
}

/// The directory of what only the container in a slot has, from the share tree on.
pub fn directory(slot: usize) -> PathBuf {
    Path::new(CONTAINERS).join(slot.to_string())
}

/// The directory of what the container in a slot has of a file system with this device number. The containers of a pod
/// have the file system in common.
pub fn joint_directory(device: u64, slot: usize) -> PathBuf {
    let system = format!("{}-{}", major(device), minor(device));
    systems().join(system).join(slot.to_string())
}

/// The directory of file systems that the containers have in common.
fn systems() -> PathBuf {
    Path::new(CONTAINERS).join(SYSTEMS)
}

/// The place of a mount that several containers use, instead of `target`, which is one container's.
pub fn joint_mount(target: &Path, number: u64) -> PathBuf {
    let system: PathBuf = target.iter().take(SYSTEM_DEPTH).collect();
    system.join(JOINT).join(number.to_string())
}

/// The directories in those of file systems that lead to mounts at these places: those of a container, and of mounts
/// that several containers use.
pub fn joint_directories<'a>(targets: impl IntoIterator<Item = &'a PathBuf>) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for target in targets.into_iter().filter(|target| target.starts_with(systems())) {
        let is_of_all = target.iter().nth(SYSTEM_DEPTH) == Some(JOINT.as_ref());
        let depth = if is_of_all { SYSTEM_DEPTH + 2 } else { SYSTEM_DEPTH + 1 };
        let in_system: PathBuf = target.iter().take(depth).collect();
        if !directories.contains(&in_system) {
            directories.push(in_system);
        }
    }
    directories
}

/// Whether something is of a file system that the containers have in common.
pub fn is_joint(entry: &SharedPath) -> bool {
    entry.target.starts_with(systems())
}

/// The mount namespace of a VMM, and the share tree in it.
pub struct VmmMounts {
    process: OwnedFd,
    /// Where the share tree is mounted in the namespace.
    place: PathBuf,
    /// The directory of containers in it, writable.
    containers: OwnedFd,
}

impl VmmMounts {
    /// Those of the VMM with this PID, which must not have ended: its PID could be another's. `place` is where its share
    /// tree is. Its directory of containers becomes one that this process can write to. `scratch` is as for
    /// [`Self::add`].
    ///
    /// # Errors
    /// [`LaterError`] if there is no such process or tree.
    pub fn of(pid: i32, place: &Path, scratch: &Path) -> Result<Self, LaterError> {
        let pid = Pid::from_raw(pid).ok_or_else(|| LaterError::Enter(io::ErrorKind::NotFound.into()))?;
        let process =
            pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| LaterError::Enter(errno.into()))?;
        let containers = on_a_thread(|| {
            share::enter_namespace()?;
            share::build(scratch, &[], false)?;
            let (containers, of_vmm) = (open(scratch)?, open(scratch)?);
            // Only here: the VMM has it read-only.
            mount_attributes::clear(&containers, Path::new(""), Depth::One, libc::MOUNT_ATTR_RDONLY)
                .map_err(LaterError::Open)?;
            enter(&process)?;
            move_to(&of_vmm, place.join(CONTAINERS))?;
            Ok(containers)
        });
        let _ = fs::remove_dir(scratch);
        Ok(VmmMounts { process, place: place.to_owned(), containers: containers? })
    }

    /// Adds the files of the container in `slot`. `scratch` is a directory of the host for the assembly, which must not
    /// exist.
    ///
    /// # Errors
    /// [`LaterError`] names the path. Some files may be there then; [`Self::remove`] removes them.
    pub fn add(&self, slot: usize, scratch: &Path, shared: &[SharedPath]) -> Result<(), LaterError> {
        let (mut own, joint): (Vec<SharedPath>, Vec<SharedPath>) =
            shared.iter().cloned().partition(|entry| !is_joint(entry));
        for entry in &mut own {
            entry.target = below(&entry.target, directory(slot));
        }
        let joint_scratch = scratch.with_extension("joint");
        let added = on_a_thread(|| {
            share::enter_namespace()?;
            share::build(scratch, &own, false)?;
            share::build(&joint_scratch, &joint, false)?;
            self.create_mount_point(directory(slot), true)?;
            let mut trees = vec![(open(scratch)?, directory(slot))];
            for entry in &joint {
                self.create_mount_point(entry.target.clone(), entry.directory)?;
                trees.push((open(&joint_scratch.join(&entry.target))?, entry.target.clone()));
            }
            enter(&self.process)?;
            trees.iter().try_for_each(|(tree, target)| move_to(tree, self.place.join(target)))
        });
        // The mounts were in the thread's namespace, which is gone.
        for directory in [scratch, &joint_scratch] {
            let _ = fs::remove_dir(directory);
        }
        added
    }

    /// Removes the files of the container in `slot`, which were added, or a part of them. Files that the guest has open
    /// stay until it closes them.
    ///
    /// # Errors
    /// [`LaterError`] names what is left.
    pub fn remove(&self, slot: usize, shared: &[SharedPath]) -> Result<(), LaterError> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_FS).map_err(|errno| LaterError::Enter(errno.into()))?;
            enter(&self.process)?;
            let joint = shared.iter().filter(|entry| is_joint(entry)).map(|entry| &entry.target);
            for target in joint.chain([&directory(slot)]) {
                let path = self.place.join(target);
                match umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                    // It was not added.
                    Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
                    Err(errno) => return Err(LaterError::Remove { path, source: errno.into() }),
                }
            }
            Ok(())
        })?;
        let joint = joint_directories(shared.iter().map(|entry| &entry.target));
        for target in joint.iter().chain([&directory(slot)]) {
            let path = self.containers().join(below(target, CONTAINERS));
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(LaterError::Remove { path, source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn create_mount_point(&self, target: PathBuf, directory: bool) -> Result<(), ShareError> {
        share::create_mount_point(&self.containers(), &below(&target, CONTAINERS), directory).map(drop)
    }

    /// The directory of containers, for a thread that is in no namespace of the VMM.
    fn containers(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.containers.as_raw_fd()))
    }
}

/// A path from one of its parents on.
fn below(path: &Path, parent: impl AsRef<Path>) -> PathBuf {
    path.strip_prefix(parent).unwrap_or(path).to_owned()
}

/// Enters the mount namespace of a process. The thread must not share its root with others.
fn enter(process: &OwnedFd) -> Result<(), LaterError> {
    setns(process.as_fd(), CloneFlags::CLONE_NEWNS).map_err(|errno| LaterError::Enter(errno.into()))
}

/// A copy of the mounts at a path.
fn open(path: &Path) -> Result<OwnedFd, LaterError> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags)
        .map_err(|errno| LaterError::Copy { path: path.to_owned(), source: errno.into() })
}

fn move_to(tree: &OwnedFd, path: PathBuf) -> Result<(), LaterError> {
    move_mount(tree, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|errno| LaterError::Move { path, source: errno.into() })
}

/// Runs `work` on a thread, whose namespaces end with it.
fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T, LaterError> + Send) -> Result<T, LaterError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("mounts".to_owned()).spawn_scoped(scope, work);
        let thread = thread.map_err(LaterError::Thread)?;
        thread.join().unwrap_or_else(|_| Err(LaterError::Thread(io::Error::other("it panicked"))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};

    /// A shell in a mount namespace of its own.
    struct Shell(Child);

    impl Shell {
        /// None without the right to make namespaces.
        fn start() -> Option<Self> {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "sh"]);
            let mut shell = Shell(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?);
            (shell.say("echo up") == "up").then_some(shell)
        }

        /// What a line prints, on one line.
        fn say(&mut self, line: &str) -> String {
            writeln!(self.0.stdin.as_mut().unwrap(), "{line}\necho; echo end").unwrap();
            let reader = BufReader::new(self.0.stdout.as_mut().unwrap());
            let lines = reader.lines().map(Result::unwrap).take_while(|line| line != "end");
            lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// The share tree of a VM without files, in the shell's namespace.
    fn tree(shell: &mut Shell, path: &Path) -> VmmMounts {
        let path = path.display();
        let script = format!(
            "mkdir {path} && mount -t tmpfs none {path} && mkdir {path}/containers && \
             mount -o remount,bind,ro {path} && echo made"
        );
        assert_eq!(shell.say(&script), "made");
        let path = Path::new(&path.to_string()).to_owned();
        VmmMounts::of(shell.0.id() as i32, &path, &path.with_extension("scratch")).unwrap()
    }

    #[test]
    fn files_come_with_their_restrictions_and_go() {
        let Some(mut shell) = Shell::start() else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("source/inner")).unwrap();
        fs::write(path("source/file"), "text").unwrap();
        let entry = |read_only, target: &str| SharedPath {
            read_only,
            directory: true,
            recursive: true,
            ..SharedPath::new(path("source"), target.into())
        };
        let mounts = tree(&mut shell, &path("tree"));
        let file = SharedPath::new(path("source/file"), "containers/systems/8-1/3/2/file".into());
        let shared = [entry(false, "containers/3/rootfs"), entry(true, "containers/systems/8-1/3/1"), file];
        mounts.add(3, &path("scratch"), &shared).unwrap();
        let left =
            ["scratch", "scratch.joint", "tree.scratch", "tree/containers/3"].map(|name| path(name).exists());
        assert_eq!(left, [false; 4], "nothing is left on the host");
        let target = path("tree").display().to_string();
        let read = format!(
            "cd {target}; cat containers/3/rootfs/file containers/systems/8-1/3/1/file containers/systems/8-1/3/2/file"
        );
        assert_eq!(shell.say(&read), "texttexttext");
        let denied = shell.say(
            "touch containers/3/rootfs/new && echo made; touch containers/systems/8-1/3/1/x 2>/dev/null || echo read-only; \
             mkdir containers/systems/8-1/4 2>/dev/null || echo read-only",
        );
        assert_eq!(denied, "made read-only read-only");
        let flags = shell.say(&format!("grep '{target}/' /proc/self/mountinfo | grep -c nosuid,nodev"));
        assert_eq!(flags, "5");
        let joint = [joint_directory(0x801, 3), joint_mount(&shared[1].target, 7)];
        let targets = shared.iter().map(|entry| &entry.target);
        assert_eq!(joint_directories(targets.chain([&joint[1]])), joint);
        mounts.remove(3, &shared).unwrap();
        assert_eq!(
            shell.say("find . | sort"),
            ". ./containers ./containers/systems ./containers/systems/8-1"
        );
        mounts.remove(3, &shared).unwrap();
    }

    #[test]
    fn what_cannot_be_added_is_named_and_leaves_nothing() {
        let Some(mut shell) = Shell::start() else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mounts = tree(&mut shell, &path("tree"));
        let missing = SharedPath {
            directory: true,
            recursive: true,
            ..SharedPath::new(path("no-such-source"), "containers/systems/8-1/3/0".into())
        };
        let error = mounts.add(3, &path("scratch"), &[missing]).unwrap_err().to_string();
        assert!(error.contains("no-such-source"), "{error}");
        assert!(!path("scratch").exists() && !path("scratch.joint").exists());
        let none = VmmMounts::of(shell.0.id() as i32, &path("no-such-tree"), &path("scratch")).err().unwrap();
        assert!(none.to_string().contains("no-such-tree/containers"), "{none}");
    }
}
