//! Adds files of the host to the share tree of a VM that runs, and removes them.
//!
//! The share tree is the root of the VMM's mount namespace. The files are assembled in a mount namespace of their own,
//! with all their restrictions, and then moved into that of the VMM as one. So the guest sees either nothing or the
//! whole, and nothing without its restrictions. All of this needs root, and is done by a front end, which does not read
//! what a guest said.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use pouch_vmm_api::share::CONTAINERS;

use super::share::{self, ShareError, SharedPath};

/// How many containers can be in a VM that runs. The share tree has a directory for each.
pub const SLOTS: usize = 64;

/// Files could not be added to a VM that runs.
#[derive(Debug, thiserror::Error)]
pub enum LaterError {
    /// The tree could not be assembled.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The VMM is gone, or its namespace cannot be entered.
    #[error("the mount namespace of the VMM could not be entered")]
    Enter(#[source] io::Error),
    /// The tree could not be moved into the VMM's namespace.
    #[error("the container's files could not be moved to {path} in the share tree")]
    Move {
        /// The directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// A thread could not be used.
    #[error("a thread for the container's files failed")]
    Thread(#[source] io::Error),
}

/// The directory of a slot, from the share tree on.
pub fn directory(slot: usize) -> PathBuf {
    Path::new(CONTAINERS).join(slot.to_string())
}

/// The mount namespace of a VMM.
pub struct VmmMounts(OwnedFd);

impl VmmMounts {
    /// That of the VMM with this PID, which must not have ended: its PID could be another's.
    ///
    /// # Errors
    /// [`LaterError::Enter`] if there is no such process.
    pub fn of(pid: i32) -> Result<Self, LaterError> {
        let pid = Pid::from_raw(pid).ok_or_else(|| LaterError::Enter(io::ErrorKind::NotFound.into()))?;
        pidfd_open(pid, PidfdFlags::empty()).map(VmmMounts).map_err(|errno| LaterError::Enter(errno.into()))
    }

    /// Adds files at `target`, an existing directory of the namespace. `scratch` is a directory of the host for the
    /// assembly, which must not exist.
    ///
    /// # Errors
    /// [`LaterError`] names the path; nothing is left then.
    pub fn add(&self, target: &Path, scratch: &Path, shared: &[SharedPath]) -> Result<(), LaterError> {
        let added = on_a_thread(|| {
            share::enter_namespace()?;
            share::build(scratch, shared, 0)?;
            let moved = |source: rustix::io::Errno| LaterError::Move {
                path: target.to_owned(),
                source: source.into(),
            };
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let tree = open_tree(CWD, scratch, flags).map_err(moved)?;
            self.enter()?;
            move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(moved)
        });
        // The mounts were in the thread's namespace, which is gone.
        let _ = fs::remove_dir(scratch);
        added
    }

    /// Removes the files at `target`. Files that the guest has open stay until it closes them.
    ///
    /// # Errors
    /// [`LaterError`] if nothing is mounted there.
    pub fn remove(&self, target: &Path) -> Result<(), LaterError> {
        on_a_thread(|| {
            // A thread that shares its root with others cannot change its mount namespace.
            unshare(CloneFlags::CLONE_FS).map_err(|errno| LaterError::Enter(errno.into()))?;
            self.enter()?;
            let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
            umount2(target, flags)
                .map_err(|errno| LaterError::Move { path: target.to_owned(), source: errno.into() })
        })
    }

    fn enter(&self) -> Result<(), LaterError> {
        setns(self.0.as_fd(), CloneFlags::CLONE_NEWNS).map_err(|errno| LaterError::Enter(errno.into()))
    }
}

/// Runs `work` on a thread, whose namespaces end with it.
fn on_a_thread(work: impl FnOnce() -> Result<(), LaterError> + Send) -> Result<(), LaterError> {
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

    #[test]
    fn files_come_as_a_whole_and_go() {
        let Some(mut shell) = Shell::start() else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir_all(path("source/inner")).unwrap();
        fs::write(path("source/file"), "text").unwrap();
        fs::create_dir(path("target")).unwrap();
        let entry = |read_only, target: &str| SharedPath {
            read_only,
            directory: true,
            recursive: true,
            ..SharedPath::new(path("source"), target.into())
        };
        let mounts = VmmMounts::of(shell.0.id() as i32).unwrap();
        let shared = [entry(false, "0/rootfs"), entry(true, "0/1")];
        mounts.add(&path("target"), &path("scratch"), &shared).unwrap();
        assert!(
            !path("scratch").exists() && !path("target/0/rootfs").exists(),
            "nothing is left on the host"
        );
        let target = path("target").display().to_string();
        assert_eq!(shell.say(&format!("cat {target}/0/rootfs/file {target}/0/1/file")), "texttext");
        let denied = shell.say(&format!(
            "touch {target}/0/rootfs/new && echo made; touch {target}/0/1/x 2>/dev/null || echo read-only; \
             mkdir {target}/y 2>/dev/null || echo read-only"
        ));
        assert_eq!(denied, "made read-only read-only");
        let flags = shell.say(&format!("grep -c '{target}.* nosuid,nodev' /proc/self/mountinfo"));
        assert_eq!(flags, "0", "the options begin with ro or rw");
        let flags = shell.say(&format!("grep '{target}' /proc/self/mountinfo | grep -c nodev"));
        assert_eq!(flags, "3");
        mounts.remove(&path("target")).unwrap();
        assert_eq!(shell.say(&format!("ls {target}")), "");
        let gone = mounts.remove(&path("target")).unwrap_err().to_string();
        assert!(gone.contains("target"), "{gone}");
    }

    #[test]
    fn what_cannot_be_added_is_named_and_leaves_nothing() {
        let Some(shell) = Shell::start() else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mounts = VmmMounts::of(shell.0.id() as i32).unwrap();
        let missing = SharedPath {
            directory: true,
            recursive: true,
            ..SharedPath::new(path("no-such-source"), "0/rootfs".into())
        };
        let error = mounts.add(&path("target"), &path("scratch"), &[missing]).unwrap_err().to_string();
        assert!(error.contains("no-such-source"), "{error}");
        let error = mounts.add(&path("no-such-target"), &path("scratch"), &[]).unwrap_err().to_string();
        assert!(error.contains("no-such-target"), "{error}");
        assert!(!path("scratch").exists());
    }
}
