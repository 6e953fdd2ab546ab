//! The process that reports out-of-memory kills ([`super::oom`]) for a sandbox host process.
//!
//! A host process gives up its access to the cgroup before it can be taken over. So it starts this process first, which
//! is root and waits for one byte. It is a copy of the host process that executes nothing until it is told to, because
//! to execute a program takes as long as a hundredth of a container's start.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::thread;
use std::time::Duration;

use pouch_vmm_api::spawn::CLONE_INTO_CGROUP;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use super::{Cgroup, CgroupPlacement};

/// The internal command that it executes.
pub const REPORT_COMMAND: &str = "oom-report";
/// Bytes of the longest error.
const MAX_ERROR: u64 = 4096;
/// How long the process stays in the cgroup after a kill. systemd removes a cgroup as soon as it is empty, and an engine
/// may not have read the kernel's counter by then. An engine that has read it deletes the container, which ends the
/// process at once.
const LINGER: Duration = Duration::from_secs(5);

/// The process could not be started.
#[derive(Debug, thiserror::Error)]
#[error("the process that reports out-of-memory kills could not be {0}")]
pub struct ReporterError(&'static str, #[source] io::Error);

/// A process that reports an out-of-memory kill when it is told to, and ends when this is dropped.
pub struct OomReporter {
    go: Option<PipeWriter>,
    answer: PipeReader,
    /// The process, until it has reported a kill.
    process: Option<OwnedFd>,
}

/// Everything that the process uses, prepared before it is cloned.
struct Prepared {
    program: CString,
    arguments: [CString; 3],
    null: File,
    go: PipeReader,
    answer: PipeWriter,
}

impl OomReporter {
    /// Starts the process in the cgroup. This process must have one thread.
    ///
    /// # Errors
    /// [`ReporterError`] names the step.
    pub fn start(cgroup: &Cgroup, placement: &CgroupPlacement) -> Result<Self, ReporterError> {
        let failed = |step| move |error: io::Error| ReporterError(step, error);
        let (go, go_writer) = io::pipe().map_err(failed("given a pipe"))?;
        let (answer_reader, answer) = io::pipe().map_err(failed("given a pipe"))?;
        let null = File::options().read(true).write(true).open("/dev/null");
        let arguments = arguments(cgroup).map_err(failed("given its arguments"))?;
        let prepared = Prepared {
            program: c"/proc/self/exe".to_owned(),
            arguments,
            null: null.map_err(failed("given /dev/null"))?,
            go,
            answer,
        };
        let process = clone(&prepared, placement).map_err(failed("created"))?;
        Ok(OomReporter { go: Some(go_writer), answer: answer_reader, process: Some(process) })
    }

    /// Has one out-of-memory kill counted in the cgroup. The VM must have ended.
    ///
    /// # Errors
    /// Why the engine does not learn of the kill.
    pub fn report(mut self) -> io::Result<()> {
        if let Some(mut go) = self.go.take() {
            go.write_all(b"!")?;
        }
        let mut error = String::new();
        (&self.answer).take(MAX_ERROR).read_to_string(&mut error)?;
        if !error.is_empty() {
            return Err(io::Error::other(error));
        }
        // It is left to the parent of this process.
        self.process = None;
        Ok(())
    }
}

impl Drop for OomReporter {
    fn drop(&mut self) {
        self.go.take();
        let Some(process) = &self.process else { return };
        // It was the only child that could be waited for by this descriptor.
        let wait = || waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
        while wait().is_err_and(|error| error == rustix::io::Errno::INTR) {}
    }
}

fn arguments(cgroup: &Cgroup) -> io::Result<[CString; 3]> {
    let cgroup = serde_json::to_string(cgroup)?;
    let all = ["pouch-vm", REPORT_COMMAND, &cgroup].map(CString::new);
    let [name, command, cgroup] = all;
    Ok([name?, command?, cgroup?])
}

/// Clones this process; returns a pidfd of the copy.
fn clone(prepared: &Prepared, placement: &CgroupPlacement) -> io::Result<OwnedFd> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain data, all zeros is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = libc::CLONE_PIDFD as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let CgroupPlacement::In(directory) = placement {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = directory.as_raw_fd() as u64;
    }
    let [name, command, cgroup] = prepared.arguments.each_ref().map(|argument| argument.as_ptr());
    let pointers = [name, command, cgroup, std::ptr::null()];
    // SAFETY: without CLONE_VM the new process has memory of its own, as after fork(2); it calls only functions that
    // make system calls and then executes a program or ends.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of_val(&arguments)) };
    match pid {
        0 => wait_and_execute(prepared, &pointers),
        // SAFETY: the descriptor is new and nothing else owns it.
        pid if pid > 0 => Ok(unsafe { OwnedFd::from_raw_fd(pidfd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The new process.
fn wait_and_execute(prepared: &Prepared, arguments: &[*const libc::c_char; 4]) -> ! {
    let environment = [std::ptr::null::<libc::c_char>()];
    // SAFETY: only system calls, on memory that was made ready before the clone.
    unsafe {
        let mut good = libc::dup2(prepared.go.as_raw_fd(), 0) >= 0;
        good &= libc::dup2(prepared.answer.as_raw_fd(), 1) >= 0;
        good &= libc::dup2(prepared.null.as_raw_fd(), 2) >= 0;
        // An engine's pipe that stayed open here would never end. Nor would the pipe that this process waits for.
        good &= libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) == 0;
        let mut byte = 0u8;
        if good && libc::read(0, (&raw mut byte).cast(), 1) == 1 {
            libc::execve(prepared.program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
            let text = c"its program could not be executed";
            libc::write(1, text.as_ptr().cast(), text.count_bytes());
        }
        libc::_exit(1)
    }
}

/// The whole life of the program that the process executes: it writes an error to its standard output, and closes it.
pub fn report_main(cgroup: &str) -> i32 {
    let reported = serde_json::from_str::<Cgroup>(cgroup).map_err(io::Error::from);
    match reported.and_then(|cgroup| cgroup.count_oom_kill()) {
        Ok(()) => {
            // SAFETY: nothing in this process owns the descriptor or writes to it any more.
            unsafe { libc::close(libc::STDOUT_FILENO) };
            thread::sleep(LINGER);
            0
        }
        Err(error) => {
            // The parent may have ended.
            let _ = write!(io::stdout(), "{error}");
            1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reporter() -> OomReporter {
        let cgroup = Cgroup::new(Some("/no/such".as_ref()), "a", false).unwrap();
        OomReporter::start(&cgroup, &CgroupPlacement::Inherited).unwrap()
    }

    #[test]
    fn it_ends_when_it_is_not_needed() {
        let reporter = reporter();
        let process = reporter.process.as_ref().unwrap().try_clone().unwrap();
        drop(reporter);
        let gone = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
        assert_eq!(gone.err(), Some(rustix::io::Errno::CHILD), "it was waited for");
    }

    #[test]
    fn what_it_executes_tells_an_error_by_its_output() {
        // The program of the tests does not know the command, and says so.
        let error = reporter().report().unwrap_err().to_string();
        assert!(!error.is_empty());
    }
}
