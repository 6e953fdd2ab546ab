//! The processes that the host knows, and their exit statuses.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::{oneshot, watch};
use ttrpc::proto::Code;

use crate::error::Coded;
use crate::streams::stdio::ProcessStdio;

/// How a process ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// The exit status as in a shell.
    pub status: u32,
    /// The signal that ended it, or 0.
    pub signal: u32,
    /// The out-of-memory killer hit its container.
    pub oom_killed: bool,
    /// Nanoseconds since 1970.
    pub at_nanoseconds: i64,
    /// Bytes written to stdout or the terminal.
    pub stdout_bytes: u64,
    /// Bytes written to stderr.
    pub stderr_bytes: u64,
}

/// What `waitpid` says of an ended process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitStatus(pub i32);

impl WaitStatus {
    /// The status as a shell gives it, and the signal or 0.
    pub fn decode(self) -> (u32, u32) {
        if libc::WIFSIGNALED(self.0) {
            let signal = libc::WTERMSIG(self.0) as u32;
            (128 + signal, signal)
        } else {
            (libc::WEXITSTATUS(self.0) as u32, 0)
        }
    }
}

/// Why a signal could not be sent.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// There is no such signal.
    #[error("signal: {0} is not a signal")]
    Unknown(u32),
    /// The process has ended.
    #[error("the process has ended already")]
    Ended,
    /// The kernel refused.
    #[error("signal: the kernel refused it")]
    Refused(#[source] io::Error),
}

impl Coded for SignalError {
    fn code(&self) -> Code {
        match self {
            Self::Unknown(_) => Code::INVALID_ARGUMENT,
            Self::Ended => Code::NOT_FOUND,
            Self::Refused(_) => Code::INTERNAL,
        }
    }
}

/// One process: a container's first, or one that was started in it later.
pub struct Process {
    /// The container's id.
    pub container_id: String,
    /// Empty for the first process.
    pub exec_id: String,
    /// In the guest's initial PID namespace.
    pub pid: i32,
    /// Its standard streams.
    pub stdio: ProcessStdio,
    /// Missing if it had ended and been reaped before it was known.
    handle: Option<OwnedFd>,
    exit: watch::Sender<Option<Exit>>,
}

impl Process {
    /// Wraps a process that has been started, and may have ended.
    pub fn new(container_id: &str, exec_id: &str, pid: i32, stdio: ProcessStdio) -> io::Result<Self> {
        let (exit, _) = watch::channel(None);
        let (container_id, exec_id) = (container_id.to_owned(), exec_id.to_owned());
        let handle = match open_pidfd(pid) {
            Ok(handle) => Some(handle),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { container_id, exec_id, pid, stdio, handle, exit })
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits until it has ended.
    pub async fn wait(&self) -> Exit {
        let mut receiver = self.exit.subscribe();
        loop {
            if let Some(exit) = *receiver.borrow_and_update() {
                return exit;
            }
            if receiver.changed().await.is_err() {
                // The sender lives in `self`; this cannot be reached.
                return Exit::default();
            }
        }
    }

    /// Records the end; waiting requests answer.
    pub fn set_exit(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
    }

    /// Sends a signal; 0 only asks whether the process lives.
    pub fn signal(&self, signal: u32) -> Result<(), SignalError> {
        check_signal(signal)?;
        match &self.handle {
            Some(handle) if self.exit().is_none() => send_signal(handle, signal),
            _ => Err(SignalError::Ended),
        }
    }
}

/// Refuses numbers that are not signals. 0 is allowed.
pub fn check_signal(signal: u32) -> Result<(), SignalError> {
    if signal > 64 { Err(SignalError::Unknown(signal)) } else { Ok(()) }
}

/// Opens a pidfd for the process with `pid`.
pub fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends a signal through a process handle.
pub fn send_signal(handle: &OwnedFd, signal: u32) -> Result<(), SignalError> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the descriptor is open, a null siginfo is allowed, and flags are 0.
    let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, handle.as_raw_fd(), signal, none, 0) };
    if sent == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ESRCH) {
        Err(SignalError::Ended)
    } else {
        Err(SignalError::Refused(error))
    }
}

/// The wall clock in nanoseconds since 1970.
pub fn now_nanoseconds() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

#[derive(Default)]
struct Table {
    processes: HashMap<i32, Arc<Process>>,
    runners: HashMap<i32, oneshot::Sender<WaitStatus>>,
    /// Exit statuses of unknown processes, kept while a process is being started.
    unclaimed: HashMap<i32, WaitStatus>,
    starting: usize,
}

/// The known processes of the guest.
#[derive(Clone, Default)]
pub struct ProcessTable(Arc<Mutex<Table>>);

/// While one of these exists, exit statuses of unknown processes are kept, because one of them may be the
/// process that is being started.
pub struct Starting(ProcessTable);

impl Drop for Starting {
    fn drop(&mut self) {
        let mut table = self.0.lock();
        table.starting -= 1;
        if table.starting == 0 {
            table.unclaimed.clear();
        }
    }
}

impl ProcessTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Says that a process is about to be started.
    pub fn starting(&self) -> Starting {
        self.lock().starting += 1;
        Starting(self.clone())
    }

    /// Adds a process. If it has ended already, its status is returned.
    pub fn add(&self, process: Arc<Process>) -> Option<WaitStatus> {
        let mut table = self.lock();
        let ended = table.unclaimed.remove(&process.pid);
        if ended.is_none() {
            table.processes.insert(process.pid, process);
        }
        ended
    }

    /// Adds a runner: the result receives its status.
    pub fn add_runner(&self, pid: i32) -> oneshot::Receiver<WaitStatus> {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.lock();
        match table.unclaimed.remove(&pid) {
            // The receiver is at hand.
            Some(status) => drop(sender.send(status)),
            None => drop(table.runners.insert(pid, sender)),
        }
        receiver
    }

    /// Records an exit status; returns the process if it is known.
    pub fn ended(&self, pid: i32, status: WaitStatus) -> Option<Arc<Process>> {
        let mut table = self.lock();
        if let Some(process) = table.processes.remove(&pid) {
            return Some(process);
        }
        if let Some(runner) = table.runners.remove(&pid) {
            // The caller may have timed out.
            let _ = runner.send(status);
        } else if table.starting > 0 {
            table.unclaimed.insert(pid, status);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32) -> Arc<Process> {
        Arc::new(Process::new("c", "", pid, ProcessStdio::none()).unwrap())
    }

    fn me() -> i32 {
        std::process::id() as i32
    }

    #[test]
    fn statuses_are_a_shells() {
        assert_eq!(WaitStatus(3 << 8).decode(), (3, 0));
        assert_eq!(WaitStatus(9).decode(), (137, 9));
        assert_eq!(WaitStatus(11 | 0x80).decode(), (139, 11), "with a core dump");
    }

    #[test]
    fn an_end_before_the_registration_is_not_lost() {
        let table = ProcessTable::new();
        let starting = table.starting();
        assert!(table.ended(me(), WaitStatus(256)).is_none());
        assert_eq!(table.add(process(me())), Some(WaitStatus(256)));
        drop(starting);
        assert!(table.ended(me(), WaitStatus(0)).is_none(), "it was not added");
        assert!(table.lock().unclaimed.is_empty(), "strangers are forgotten when nothing starts");
    }

    #[tokio::test]
    async fn waiting_answers_at_the_end_and_after_it() {
        let table = ProcessTable::new();
        let process = process(me());
        assert_eq!(table.add(process.clone()), None);
        let waiter = tokio::spawn({
            let process = process.clone();
            async move { process.wait().await }
        });
        tokio::task::yield_now().await;
        let ended = table.ended(me(), WaitStatus(0)).unwrap();
        ended.set_exit(Exit { status: 5, ..Exit::default() });
        assert_eq!(waiter.await.unwrap().status, 5);
        assert_eq!(process.wait().await.status, 5);
        assert!(matches!(process.signal(15), Err(SignalError::Ended)));
    }

    #[test]
    fn a_process_that_has_been_reaped_can_still_be_recorded() {
        let table = ProcessTable::new();
        let _starting = table.starting();
        // No process has this number: it is the largest that the kernel allows, less a few.
        let pid = 4_194_301;
        table.ended(pid, WaitStatus(7 << 8));
        let process = process(pid);
        assert!(matches!(process.signal(9), Err(SignalError::Ended)));
        assert_eq!(table.add(process), Some(WaitStatus(7 << 8)));
    }

    #[tokio::test]
    async fn runners_get_their_status() {
        let table = ProcessTable::new();
        let starting = table.starting();
        table.ended(5, WaitStatus(0));
        assert_eq!(table.add_runner(5).await.unwrap(), WaitStatus(0));
        let later = table.add_runner(6);
        table.ended(6, WaitStatus(512));
        assert_eq!(later.await.unwrap(), WaitStatus(512));
        drop(starting);
    }

    #[test]
    fn signals_are_checked() {
        assert!(process(me()).signal(0).is_ok());
        assert!(matches!(process(me()).signal(65), Err(SignalError::Unknown(65))));
    }
}
