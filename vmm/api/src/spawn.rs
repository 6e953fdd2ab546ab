//! Starts a VMM in new namespaces.

use std::ffi::{CString, NulError};
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::restricted::{self, Access};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

/// The new namespaces of a VMM, which contain nothing of the host.
const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// linux/sched.h; the libc crate's constant is too narrow for it.
pub const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// A program to start.
pub struct Spawn<'a> {
    /// The VMM's binary.
    pub program: &'a Path,
    /// Its arguments, without its name.
    pub arguments: &'a [&'a str],
    /// Descriptors that it inherits under the numbers that they have here.
    pub files: &'a [BorrowedFd<'a>],
    /// Its standard error.
    pub log: BorrowedFd<'a>,
    /// The directory of the cgroup (v2) in which it starts; without one, in the caller's. To be made
    /// there takes no time, unlike a move (Linux 5.7).
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A VMM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A path or argument cannot be passed on.
    #[error("the VMM's path or arguments contain a NUL byte")]
    Argument(#[from] NulError),
    /// The process could not be created.
    #[error("the VMM's process in new namespaces could not be created")]
    Clone(#[source] io::Error),
    /// The ID mappings of the user namespace could not be written.
    #[error("{file} of the VMM's user namespace could not be written")]
    Map {
        /// The file.
        file: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// There is nothing for its standard input and output.
    #[error("/dev/null could not be opened for the VMM")]
    Null(#[source] io::Error),
    /// A pipe failed.
    #[error("the pipe to the VMM's process failed")]
    Pipe(#[source] io::Error),
    /// The binary could not be executed.
    #[error("{program} could not be executed")]
    Exec {
        /// The VMM's binary.
        program: String,
        /// The kernel's error.
        source: io::Error,
    },
}

/// A VMM that was started.
#[derive(Debug)]
pub struct JailedChild {
    /// Its process identifier in this process's PID namespace.
    pub pid: libc::pid_t,
    /// A pidfd: readable when it has ended.
    pub pidfd: OwnedFd,
}

/// Everything that the new process uses before it executes the program. It is prepared before the clone, because a
/// process that was cloned from one with threads must not allocate memory.
struct Prepared {
    program: CString,
    arguments: Vec<*const libc::c_char>,
    environment: [*const libc::c_char; 1],
    files: Vec<RawFd>,
    log: RawFd,
    null: RawFd,
    go: RawFd,
    go_writer: RawFd,
    failure: RawFd,
}

impl Spawn<'_> {
    /// Starts the program. It dies with the thread that called this.
    ///
    /// # Errors
    /// [`SpawnError`] names the step; nothing is left behind then.
    pub fn spawn(&self) -> Result<JailedChild, SpawnError> {
        let program = CString::new(self.program.as_os_str().as_bytes())?;
        let owned: Vec<CString> =
            self.arguments.iter().map(|argument| CString::new(*argument)).collect::<Result<_, _>>()?;
        let mut arguments: Vec<*const libc::c_char> = vec![program.as_ptr()];
        arguments.extend(owned.iter().map(|argument| argument.as_ptr()));
        arguments.push(std::ptr::null());
        let null = restricted::open(Path::new("/dev/null"), Access::Write).map_err(SpawnError::Null)?;
        let (go_reader, mut go_writer) = io::pipe().map_err(SpawnError::Pipe)?;
        let (mut failure_reader, failure_writer) = io::pipe().map_err(SpawnError::Pipe)?;
        let prepared = Prepared {
            program: program.clone(),
            arguments,
            environment: [std::ptr::null()],
            files: self.files.iter().map(AsRawFd::as_raw_fd).collect(),
            log: self.log.as_raw_fd(),
            null: null.as_raw_fd(),
            go: go_reader.as_raw_fd(),
            go_writer: go_writer.as_raw_fd(),
            failure: failure_writer.as_raw_fd(),
        };
        let child = clone_into_namespaces(&prepared, self.cgroup)?;
        drop((go_reader, failure_writer));
        let failed = |error| {
            child.kill();
            error
        };
        write_id_maps(child.pid).map_err(failed)?;
        go_writer.write_all(&[1]).map_err(|error| failed(SpawnError::Pipe(error)))?;
        // The pipe closes when the program is executed; before that an error number may come.
        let mut number = [0; 4];
        match failure_reader.read(&mut number).map_err(|error| failed(SpawnError::Pipe(error)))? {
            0 => Ok(child),
            _ => {
                child.kill();
                let source = io::Error::from_raw_os_error(i32::from_ne_bytes(number));
                Err(SpawnError::Exec { program: self.program.display().to_string(), source })
            }
        }
    }
}

impl JailedChild {
    /// Kills the process and reaps it. It is no error if it has been reaped already.
    pub fn kill(&self) {
        // By its descriptor: once it is reaped, its number may be another process's.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.wait();
    }

    /// Waits until the process has ended, and reaps it.
    pub fn wait(&self) {
        let wait = || waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        while wait().is_err_and(|error| error == rustix::io::Errno::INTR) {}
    }
}

fn clone_into_namespaces(
    prepared: &Prepared,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<JailedChild, SpawnError> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data, all zeros is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (NAMESPACES | libc::CLONE_PIDFD) as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the new process has memory of its own, as after fork(2); it calls
    // only functions that make system calls and then executes a program or ends.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    match pid {
        0 => run_child(prepared),
        pid if pid > 0 => {
            // SAFETY: the descriptor is new and nothing else owns it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(JailedChild { pid: pid as libc::pid_t, pidfd })
        }
        _ => Err(SpawnError::Clone(io::Error::last_os_error())),
    }
}

/// The new process, up to its program.
fn run_child(prepared: &Prepared) -> ! {
    // SAFETY: only system calls, on memory that was made ready before the clone.
    unsafe {
        // Die with the parent, also if it died before this call: then the pipe is at its end, now that
        // this process has no writer of it.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::close(prepared.go_writer);
        let mut byte = 0u8;
        let ready = libc::read(prepared.go, (&raw mut byte).cast(), 1) == 1;
        if !ready {
            libc::_exit(125);
        }
        libc::setsid();
        // Signals that the parent blocks would stay blocked in the program.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        let mut good = libc::dup2(prepared.null, 0) >= 0 && libc::dup2(prepared.null, 1) >= 0;
        good &= libc::dup2(prepared.log, 2) >= 0;
        // The VMM must not inherit other descriptors of the parent, such as one that a library opened without
        // close-on-exec. A connection to systemd, for example, would give it root's rights.
        good &= libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) == 0;
        for fd in &prepared.files {
            good &= libc::fcntl(*fd, libc::F_SETFD, 0) >= 0;
        }
        if good {
            libc::execve(
                prepared.program.as_ptr(),
                prepared.arguments.as_ptr(),
                prepared.environment.as_ptr(),
            );
        }
        let number = (*libc::__errno_location()).to_ne_bytes();
        libc::write(prepared.failure, number.as_ptr().cast(), number.len());
        libc::_exit(126)
    }
}

/// Maps every user and group of this namespace to itself. The VMM serves files of all owners, and
/// the namespace is there to make its capabilities count for nothing else.
fn write_id_maps(pid: libc::pid_t) -> Result<(), SpawnError> {
    for file in ["uid_map", "gid_map"] {
        let error = |source| SpawnError::Map { file, source };
        let own = fs::read_to_string(format!("/proc/self/{file}")).map_err(error)?;
        let identity = identity_map(&own);
        fs::write(format!("/proc/{pid}/{file}"), identity).map_err(error)?;
    }
    Ok(())
}

/// From the lines "inside outside count" of this namespace the lines that map each identifier
/// of it to itself.
fn identity_map(own: &str) -> String {
    let mut map = String::new();
    for line in own.lines() {
        let mut words = line.split_whitespace();
        if let (Some(inside), Some(_), Some(count)) = (words.next(), words.next(), words.next()) {
            map.push_str(&format!("{inside} {inside} {count}\n"));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_identifier_is_mapped_to_itself() {
        let nested = "         0     100000      65536\n     70000  4 5\n";
        assert_eq!(identity_map(nested), "0 0 65536\n70000 70000 5\n");
    }

    #[test]
    fn a_program_inherits_what_it_is_given_and_nothing_else() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let given = fs::File::open("/dev/null").unwrap();
        // As a library leaves one open: not to be closed when a program is executed.
        // SAFETY: the call takes a number; the new descriptor is closed with the process.
        let left_open = unsafe { libc::dup(given.as_raw_fd()) };
        let name = |fd: RawFd| format!("[ -e /proc/self/fd/{fd} ] && echo {fd} >&2");
        let script = format!("{}; {}; {}", name(given.as_raw_fd()), name(left_open), "echo end >&2");
        let spawn = Spawn {
            program: Path::new("/bin/sh"),
            arguments: &["-c", &script],
            files: &[given.as_fd()],
            log: log.as_file().as_fd(),
            cgroup: None,
        };
        let child = match spawn.spawn() {
            Ok(child) => child,
            // Without the right to make namespaces there is nothing to test.
            Err(SpawnError::Null(_) | SpawnError::Clone(_) | SpawnError::Map { .. }) => return,
            Err(error) => panic!("{error:?}"),
        };
        child.wait();
        // That it is gone does not make this kill another.
        child.kill();
        assert_eq!(fs::read_to_string(log.path()).unwrap(), format!("{}\nend\n", given.as_raw_fd()));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let log = io::stderr();
        let spawn = Spawn {
            program: Path::new("/no/such/vmm"),
            arguments: &[],
            files: &[],
            log: log.as_fd(),
            cgroup: None,
        };
        match spawn.spawn() {
            Err(SpawnError::Exec { program, source }) => {
                assert_eq!((program.as_str(), source.kind()), ("/no/such/vmm", io::ErrorKind::NotFound));
            }
            // Without the right to make namespaces there is nothing to test.
            Err(SpawnError::Null(_) | SpawnError::Clone(_) | SpawnError::Map { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
