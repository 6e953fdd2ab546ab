//! Starts a sandbox host process and waits for its first word.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::host::Host;
use super::protocol::{Failure, Launch, Report};
use crate::container::{ContainerDir, State, StateError, Status};
use crate::errors::chain;

/// The hidden command that a host process is started with.
pub const HOST_COMMAND: &str = "sandbox-host";
/// Bytes of the longest first word.
const MAX_REPORT: u64 = 64 * 1024;

/// Creates a container: on return its host process runs, and is a child of this process.
///
/// # Errors
/// [`Failure`] for the user; nothing is left behind then.
pub fn launch(launch: &Launch) -> Result<Child, Failure> {
    let id = launch.id.parse().map_err(|error| Failure::new(chain(&error)))?;
    let dir = ContainerDir::new(&launch.root, &id);
    claim(&dir).map_err(|error| Failure::new(chain(&error)))?;
    let result = start_host(launch).map_err(|error| {
        Failure::new(format!("the host process of the container could not be started: {error}"))
    });
    let failure = match result {
        Ok((child, Report::Created)) => return Ok(child),
        Ok((mut child, Report::Failed(failure))) => {
            // It ends by itself.
            let _ = child.wait();
            failure
        }
        Err(failure) => failure,
    };
    clean_up(&dir);
    Err(failure)
}

/// Makes the container's directory; one that a killed `create` left behind is taken over.
fn claim(dir: &ContainerDir) -> Result<(), StateError> {
    match dir.create() {
        Err(StateError::Exists(id)) => {
            // Two that find the same directory left behind must not both take it over.
            let _lock = dir.lock()?;
            // A state of "creating" is shown as stopped once the host process is gone; a container
            // that had been created has an exit status or a VM.
            let abandoned = match dir.load() {
                Ok(State { status: Status::Stopped, vmm: None, exit_status: None, .. }) => true,
                Ok(_) => false,
                Err(_) => abandoned_for_long(dir),
            };
            if !abandoned {
                return Err(StateError::Exists(id));
            }
            clean_up(dir);
            dir.create()
        }
        other => other,
    }
}

/// A directory without a state, and old enough that nobody is about to write one.
fn abandoned_for_long(dir: &ContainerDir) -> bool {
    let age = std::fs::metadata(dir.path())
        .and_then(|metadata| metadata.modified())
        .ok()
        .map(|time| time.elapsed());
    age.is_some_and(|age| age.is_ok_and(|age| age.as_secs() > 10))
}

/// Removes what a container leaves on the host when its processes are gone.
pub fn clean_up(dir: &ContainerDir) {
    if let Ok(State { cgroup: Some(cgroup), .. }) = dir.load() {
        cgroup.remove();
    }
    // What is left is a directory that the next attempt takes over.
    let _ = dir.remove();
}

fn start_host(launch: &Launch) -> io::Result<(Child, Report)> {
    let (launch_reader, mut launch_writer) = io::pipe()?;
    let (report_reader, report_writer) = io::pipe()?;
    let inherited = [launch_reader.as_raw_fd(), report_writer.as_raw_fd()];
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("pouch-vm")
        .arg(HOST_COMMAND)
        .args(inherited.map(|fd| fd.to_string()))
        .arg(&launch.id)
        .stdin(Stdio::inherit())
        .stdout(Stdio::inherit())
        .stderr(Stdio::inherit());
    // SAFETY: the function makes system calls only, as is allowed between fork and exec.
    unsafe { command.pre_exec(move || inherit_only(&inherited)) };
    let mut child = command.spawn()?;
    drop((launch_reader, report_writer));
    // A host process that is gone already shows itself by its report.
    let _ = launch_writer.write_all(&serde_json::to_vec(launch)?);
    drop(launch_writer);
    let mut text = Vec::new();
    report_reader.take(MAX_REPORT).read_to_end(&mut text)?;
    if text.is_empty() {
        let status = child.wait()?;
        let failure = Failure::new(format!("the host process of the container ended early: {status}"));
        return Ok((child, Report::Failed(failure)));
    }
    Ok((child, serde_json::from_slice(&text)?))
}

/// Lets the program that is about to be executed inherit `fds` and the standard streams only: an
/// engine's pipe that a process held open for the life of a container would never end.
///
/// # Errors
/// What `fcntl(2)` says.
pub fn inherit_only(fds: &[RawFd]) -> io::Result<()> {
    // SAFETY: these calls take numbers only.
    unsafe {
        // Before Linux 5.11 the flag is unknown: then descriptors stay open, and no harm is done
        // but the one above.
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        for fd in fds {
            if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// The whole life of a host process; returns its exit status.
pub fn host_main(launch_fd: RawFd, report_fd: RawFd) -> i32 {
    let (Some(launch), Some(report)) = (take_fd(launch_fd), take_fd(report_fd)) else {
        eprintln!("pouch-vm: {HOST_COMMAND} is for pouch-vm's own use");
        return 1;
    };
    // Executed through /proc/self/exe, the process would be called "exe".
    // SAFETY: the name is NUL-terminated and outlives the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"pouch-vm".as_ptr()) };
    let mut text = String::new();
    let launch: Launch = match File::from(launch)
        .read_to_string(&mut text)
        .and_then(|_| serde_json::from_str(&text).map_err(io::Error::from))
    {
        Ok(launch) => launch,
        Err(error) => {
            eprintln!("pouch-vm: {HOST_COMMAND}: {error}");
            return 1;
        }
    };
    let (host, word) = match Host::create(&launch) {
        Ok(host) => (Some(host), Report::Created),
        Err(failure) => (None, Report::Failed(failure)),
    };
    let mut report = File::from(report);
    // If nobody listens any more, the container is there all the same, and can be deleted.
    let _ = serde_json::to_vec(&word).map(|bytes| report.write_all(&bytes));
    drop(report);
    host.map_or(1, Host::run)
}

/// Takes over a descriptor that was inherited, and keeps it from being inherited again.
fn take_fd(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: the call changes a flag of a number and touches no memory.
    if fd < 3 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: the descriptor is open, and the command line names each once.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}
