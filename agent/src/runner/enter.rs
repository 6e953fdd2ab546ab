//! Starts another process in a container: `exec`.
//!
//! The runner joins the container's cgroup and creates a process in its PID namespace, as a child of the
//! agent. This process enters the container's other namespaces, including its user namespace. The runner
//! stays outside and sets limits that root in the container could not raise.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid, setsid};
use oci_spec::runtime::{LinuxPersonalityDomain, Process};
use serde::{Deserialize, Serialize};

use super::program::Program;
use super::report::{Message, Reporter, reason};
use super::{RunnerError, capabilities, directory, limits, scheduling, terminal};
use crate::process::open_pidfd;

/// The container that a process of exec enters.
#[derive(Debug, Serialize, Deserialize)]
pub struct Target {
    /// The container's first process, in whose namespaces it will be.
    pub init: i32,
    /// The directory of its cgroup.
    pub cgroup: PathBuf,
    /// The execution domain of the container's processes (personality(2)).
    pub personality: Option<LinuxPersonalityDomain>,
}

/// Starts `program` there; returns its PID when it has been executed, or the error that it has reported.
pub(super) fn run(
    target: &Target,
    program: Program,
    console: Option<PathBuf>,
    reporter: Reporter,
) -> Result<i32, RunnerError> {
    let step = |what| move |error| RunnerError::Enter(what, error);
    let console =
        console.as_deref().map(terminal::connect).transpose().map_err(step("the terminal's socket"))?;
    // Processes of the container must not access this process or its child while these hold resources of the guest.
    nix::sys::prctl::set_dumpable(false).map_err(|error| RunnerError::Enter("this process", error.into()))?;
    let init = open_pidfd(target.init).map_err(step("the container's first process"))?;
    let affinity = program.process.exec_cpu_affinity().clone().unwrap_or_default();
    if let Some(cpus) = affinity.initial() {
        scheduling::set_cpus(cpus).map_err(step("process.execCPUAffinity.initial"))?;
    }
    fs::write(target.cgroup.join("cgroup.procs"), "0").map_err(step("the container's cgroup"))?;
    if let Some(cpus) = affinity.cpu_affinity_final() {
        scheduling::set_cpus(cpus).map_err(step("process.execCPUAffinity.final"))?;
    }
    let namespaces = namespaces(target.init).map_err(step("the container's namespaces"))?;
    if namespaces.contains(CloneFlags::CLONE_NEWPID) {
        setns(&init, CloneFlags::CLONE_NEWPID)
            .map_err(|error| RunnerError::Enter("the container's PID namespace", error.into()))?;
    }
    let (mut ours, theirs) = UnixStream::pair().map_err(step("a pair of sockets"))?;
    let limits = program.process.rlimits().clone().unwrap_or_default();
    let child = Child {
        init,
        namespaces,
        personality: target.personality,
        program,
        console,
        reporter,
        runner: theirs,
    };
    // SAFETY: this process has one thread, so its copy can do whatever it could.
    let pid = match unsafe { sibling() }.map_err(step("a process"))? {
        0 => {
            drop(ours);
            child.run()
        }
        pid => pid,
    };
    drop(child);
    let mut byte = [0];
    // Without the byte, the child has reported an error.
    if ours.read_exact(&mut byte).is_ok() {
        limits::set(pid, &limits).map_err(|(kind, error)| RunnerError::Limit(kind, error))?;
        // A child that has ended in between says no more than its status.
        let _ = ours.write_all(&byte);
        // The child's end is closed when its program is executed, or when it has reported an error.
        let _ = ours.read(&mut byte);
    }
    Ok(pid)
}

/// Those of the container's namespaces that are not the runner's; a process cannot join a user namespace in which it
/// is already.
fn namespaces(init: i32) -> io::Result<CloneFlags> {
    let kinds = [
        ("user", CloneFlags::CLONE_NEWUSER),
        ("mnt", CloneFlags::CLONE_NEWNS),
        ("net", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
        // Not in nix; linux/sched.h.
        ("time", CloneFlags::from_bits_retain(0x80)),
    ];
    let inode =
        |process: &str, name: &str| fs::metadata(format!("/proc/{process}/ns/{name}")).map(|data| data.ino());
    let mut flags = CloneFlags::empty();
    for (name, flag) in kinds {
        match inode("self", name) {
            Ok(own) if own != inode(&init.to_string(), name)? => flags |= flag,
            // A kernel without such namespaces.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(flags)
}

/// Forks a child of this process's parent; returns 0 in the child.
///
/// # Safety
/// The process must have one thread.
unsafe fn sibling() -> io::Result<i32> {
    // SAFETY: a clone_args is plain data, for which zeros are valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = libc::CLONE_PARENT as u64;
    // SAFETY: without CLONE_VM this is a fork; the structure is live and of the size given.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid as i32) }
}

/// What the child needs.
struct Child {
    init: OwnedFd,
    namespaces: CloneFlags,
    personality: Option<LinuxPersonalityDomain>,
    program: Program,
    console: Option<UnixStream>,
    reporter: Reporter,
    runner: UnixStream,
}

impl Child {
    fn run(&self) -> ! {
        let message = self.prepare().map_or_else(|message| message, |()| self.program.execute());
        self.reporter.send(&message);
        // SAFETY: nothing of this copy of the runner is to be cleaned up.
        unsafe { libc::_exit(1) }
    }

    fn prepare(&self) -> Result<(), Message> {
        let process = &self.program.process;
        setsid().map_err(failed("a session of its own"))?;
        if let Some(priority) = process.io_priority() {
            scheduling::set_io_priority(priority).map_err(io_failed("process.ioPriority"))?;
        }
        if let Some(scheduler) = process.scheduler() {
            scheduling::set_policy(scheduler).map_err(io_failed("process.scheduler"))?;
        }
        setns(&self.init, self.namespaces & !CloneFlags::CLONE_NEWPID)
            .map_err(failed("the container's namespaces"))?;
        // In a new user namespace this process has the overflow UID until it changes it; without a mapped root it keeps it.
        if self.namespaces.contains(CloneFlags::CLONE_NEWUSER) {
            let _ = become_user(0, 0);
        }
        if let Some(socket) = &self.console {
            terminal::take(socket).map_err(io_failed("the terminal"))?;
        }
        if let Some(domain) = self.personality {
            set_personality(domain).map_err(io_failed("linux.personality"))?;
        }
        if let Some(mask) = process.user().umask() {
            umask(Mode::from_bits_truncate(mask));
        }
        self.take_user(process)?;
        if process.no_new_privileges() == Some(true) {
            nix::sys::prctl::set_no_new_privs().map_err(failed("process.noNewPrivileges"))?;
        }
        close_on_exec().map_err(io_failed("the descriptors"))?;
        self.program.check()?;
        self.await_limits().map_err(io_failed("the process's limits"))
    }

    /// Enters the working directory as root if possible, otherwise as the user, because a network file system may allow
    /// it only to the user.
    fn take_user(&self, process: &Process) -> Result<(), Message> {
        let entered = directory::enter(process.cwd());
        let user = process.user();
        let groups: Vec<_> =
            user.additional_gids().iter().flatten().map(|group| Gid::from_raw(*group)).collect();
        setgroups(&groups).map_err(failed("process.user.additionalGids"))?;
        become_user(user.uid(), user.gid()).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => {
                let (uid, gid) = (user.uid(), user.gid());
                Message::Failed(format!(
                    "process.user: UID {uid} or GID {gid} is not mapped in the container's user namespace"
                ))
            }
            _ => io_failed("process.user")(error),
        })?;
        entered.or_else(|_| directory::enter(process.cwd()))
    }

    /// The runner sets the limits when it gets the byte, and answers when it could.
    fn await_limits(&self) -> io::Result<()> {
        let mut byte = [0];
        (&self.runner).write_all(&byte)?;
        (&self.runner).read_exact(&mut byte)
    }
}

fn failed(what: &str) -> impl FnOnce(Errno) -> Message {
    move |errno| io_failed(what)(errno.into())
}

fn io_failed(what: &str) -> impl FnOnce(io::Error) -> Message {
    move |error| Message::Failed(format!("{what}: {}", reason(&error)))
}

/// Changes user and group and keeps every capability, for the steps that follow.
fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    nix::sys::prctl::set_keepcaps(true)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    nix::sys::prctl::set_keepcaps(false)?;
    capabilities::raise()
}

fn set_personality(domain: LinuxPersonalityDomain) -> io::Result<()> {
    // linux/personality.h: PER_LINUX and PER_LINUX32.
    let domain: libc::c_ulong = match domain {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    };
    // SAFETY: personality takes a number.
    if unsafe { libc::personality(domain) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Closes all descriptors except the standard streams.
fn close_on_exec() -> io::Result<()> {
    // SAFETY: close_range takes three numbers; with this flag it closes nothing now.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_shares_its_own_namespaces() {
        let own = std::process::id() as i32;
        assert_eq!(namespaces(own).unwrap(), CloneFlags::empty());
        assert!(namespaces(-1).is_err());
    }
}
