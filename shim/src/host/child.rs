//! A child process of pouch-vm that may outlive its parent. It reads its task from one pipe, and reports on
//! another that it is ready.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use pouch_vmm_api::inherited::Inherited;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::Report;
use crate::PROCESS_NAME;

/// Bytes of the longest report.
const MAX_REPORT: u64 = 64 * 1024;

/// The standard streams of a child.
pub struct ChildStreams {
    /// Its standard input.
    pub stdin: Stdio,
    /// Its standard output.
    pub stdout: Stdio,
    /// Its standard error.
    pub stderr: Stdio,
}

impl ChildStreams {
    /// Those of this process.
    pub fn inherited() -> Self {
        ChildStreams { stdin: Stdio::inherit(), stdout: Stdio::inherit(), stderr: Stdio::inherit() }
    }
}

/// Starts pouch-vm's internal `command` with the given standard streams, in a session of its own, and
/// waits for its report: `None` if it ended without one. `name` is shown in lists of processes.
///
/// # Errors
/// The kernel's error. The started process then ends by itself.
pub fn start(
    command: &str,
    name: Option<&str>,
    task: &impl Serialize,
    streams: ChildStreams,
) -> io::Result<(Child, Option<Report>)> {
    // Not on its command line: that has a limit, and all users of the host can read it.
    let (task_reader, mut task_writer) = io::pipe()?;
    let (report_reader, report_writer) = io::pipe()?;
    let inherited = [task_reader.as_raw_fd(), report_writer.as_raw_fd()];
    let mut process = Command::new("/proc/self/exe");
    process
        .arg0("pouch-vm")
        .arg(command)
        .args(inherited.map(|fd| fd.to_string()))
        .args(name)
        .stdin(streams.stdin)
        .stdout(streams.stdout)
        .stderr(streams.stderr);
    // SAFETY: the calls may be made between fork and exec, and touch no memory.
    unsafe {
        process.pre_exec(move || {
            // So that it gets no signals of the parent's session. A child is not a group leader, so this cannot fail.
            libc::setsid();
            inherit_only(&inherited)
        });
    }
    let child = process.spawn()?;
    drop((task_reader, report_writer));
    // If the process has ended already, it sends no report.
    let _ = task_writer.write_all(&serde_json::to_vec(task)?);
    drop(task_writer);
    let mut text = Vec::new();
    report_reader.take(MAX_REPORT).read_to_end(&mut text)?;
    let report = if text.is_empty() { None } else { Some(serde_json::from_slice(&text)?) };
    Ok((child, report))
}

/// What a process that [`start`] started inherited: its task, and its ready pipe.
///
/// # Errors
/// If the descriptors are not those that it was started with, or the task is malformed.
pub fn take<T: DeserializeOwned>(
    inherited: &mut Inherited,
    task_fd: RawFd,
    report_fd: RawFd,
) -> io::Result<(T, ReadyPipe)> {
    let mut claim = |fd| inherited.claim(fd).map(File::from).map_err(|_| for_own_use());
    let (mut task, report) = (claim(task_fd)?, claim(report_fd)?);
    // Executed through /proc/self/exe, the process would be called "exe".
    // SAFETY: the name is NUL-terminated and outlives the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, PROCESS_NAME.as_ptr()) };
    let mut text = Vec::new();
    task.read_to_end(&mut text)?;
    Ok((serde_json::from_slice(&text)?, ReadyPipe(Some(report))))
}

/// The pipe by which a child reports once that it is ready, or why it is not.
pub struct ReadyPipe(Option<File>);

impl ReadyPipe {
    /// Reports. Only the first report is sent.
    ///
    /// # Errors
    /// If the parent does not read it.
    pub fn give(&mut self, word: &Report) -> io::Result<()> {
        match self.0.take() {
            Some(mut pipe) => pipe.write_all(&serde_json::to_vec(word)?),
            None => Ok(()),
        }
    }
}

/// Lets the program that is about to be executed inherit `fds` and the standard streams only: an
/// engine's pipe that a process held open for the life of a container would never end.
fn inherit_only(fds: &[RawFd]) -> io::Result<()> {
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

fn for_own_use() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "this command is for pouch-vm's own use")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    #[test]
    fn a_descriptor_that_is_named_twice_or_was_not_inherited_is_refused() {
        let (reader, mut writer) = io::pipe().unwrap();
        let number = reader.as_raw_fd();
        writer.write_all(b"1").unwrap();
        drop(writer);
        for report in [number, 9999, 1, -1] {
            let mut inherited: Inherited = [OwnedFd::from(reader.try_clone().unwrap())].into_iter().collect();
            let task = inherited.iter().next().unwrap().as_raw_fd();
            let report = if report == number { task } else { report };
            let error = take::<u32>(&mut inherited, task, report).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{report}");
        }
    }
}
