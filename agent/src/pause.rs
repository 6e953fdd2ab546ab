//! The first process of a PID namespace that containers share, such as a pod's.
//!
//! Kubernetes has the process of the pause image there. It reaps the orphans of the containers and does nothing else.
//! A container sees it as process 1, so it has nothing that a container could take: no files but an empty root, no
//! capabilities, and a user of its own.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Uid, chdir, fork, pivot_root, setgid, setgroups, setuid};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;

use crate::container::launch;
use crate::process::{ProcessTable, open_pidfd, send_signal};

/// The name (`argv[0]`) that the agent starts it with.
pub const NAME: &str = "pouch-pause";
/// Its user and group, as in the pause image.
const USER: u32 = 65535;
/// How long it may take to start.
const START_TIME: Duration = Duration::from_secs(60);

/// A running one, as the agent knows it.
pub struct Pause {
    handle: OwnedFd,
    /// The PID namespace whose first process it is.
    pub namespace: File,
}

impl Pause {
    /// Starts one in a new PID namespace.
    ///
    /// # Errors
    /// The kernel's error, or what the new process reports.
    pub async fn start(table: &ProcessTable) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let child = Command::new("/proc/self/exe")
            .arg0(NAME)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::null())
            .spawn()?;
        // The reaper waits for it; `Child` does not on drop.
        let starter = child.id() as i32;
        let ended = table.add_runner(starter);
        let reader = OwnedFd::from(reader);
        crate::streams::stdio::set_nonblocking(&reader)?;
        let mut line = String::new();
        let mut lines = BufReader::new(pipe::Receiver::from_owned_fd_unchecked(reader)?);
        let Ok(read) = tokio::time::timeout(START_TIME, lines.read_line(&mut line)).await else {
            launch::abandon(starter);
            return Err(io::ErrorKind::TimedOut.into());
        };
        read?;
        let _ = tokio::time::timeout(START_TIME, ended).await;
        let pid: i32 = line.trim().parse().map_err(|_| io::Error::other(line.trim().to_owned()))?;
        let handle = open_pidfd(pid)?;
        let namespace = File::open(format!("/proc/{pid}/ns/pid"))?;
        let pause = Pause { handle, namespace };
        // If it lives, the file is that of this process, and not of a later one with its PID.
        if pause.lives() { Ok(pause) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    }

    /// Whether it lives. A container with the right to reboot can end it (reboot(2)).
    pub fn lives(&self) -> bool {
        send_signal(&self.handle, 0).is_ok()
    }
}

/// Reports the PID of the new process, or why there is none, on standard output.
pub fn main() -> i32 {
    let (line, status) = match start() {
        Ok(Some(pid)) => (pid.to_string(), 0),
        // The new process, which does not return from here.
        Ok(None) => return reap(),
        Err(error) => (error.to_string(), 1),
    };
    // The agent may have given up.
    let _ = writeln!(io::stdout(), "{line}");
    status
}

/// Confines this process and forks; returns the PID of the new process, or none in it.
fn start() -> io::Result<Option<i32>> {
    // The report must be all that is written there.
    let null = File::open("/dev/null")?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)?;
    empty_root()?;
    setgroups(&[])?;
    setgid(Gid::from_raw(USER))?;
    // With it go all capabilities (capabilities(7), "Effect of user ID changes on capabilities").
    setuid(Uid::from_raw(USER))?;
    // SAFETY: this process has a single thread.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(Some(child.as_raw())),
        ForkResult::Child => {
            nix::unistd::dup2_stdout(&null)?;
            Ok(None)
        }
    }
}

/// Replaces the root by an empty directory.
fn empty_root() -> nix::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), "/tmp", Some("tmpfs"), flags, Some("size=4k,nr_inodes=1,mode=0555"))?;
    chdir("/tmp")?;
    // The old root is mounted over the new one, and goes with the second call (pivot_root(2), "NOTES").
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// Reaps orphans, until the namespace ends.
fn reap() -> i32 {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    loop {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
        {
        }
        if signals.wait().is_err() {
            return 1;
        }
    }
}
