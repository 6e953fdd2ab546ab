//! Starts a runner and reads its reports.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use pouch_protocol::agent::command_error::Kind;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use ttrpc::proto::Code;

use crate::error::Coded;
use crate::process::{ProcessTable, WaitStatus, open_pidfd, send_signal};
use crate::runner::report::{Message, decode};
use crate::runner::{self, Job};
use crate::streams::stdio::ProcessEnds;

/// How long a runner may take. Mounting over a slow host is the longest part.
const RUNNER_TIME: Duration = Duration::from_secs(120);
/// How long the terminal may take once the runner is done.
const CONSOLE_TIME: Duration = Duration::from_secs(10);
/// Bytes of the longest report.
const LINE_MAX: u64 = 64 * 1024;
/// How many details of a failure are reported.
const DETAILS_MAX: usize = 8;

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The command cannot be found.
    #[error("{0}")]
    NotFound(String),
    /// The command cannot be executed.
    #[error("{0}")]
    NotExecutable(String),
    /// The container cannot be made as asked.
    #[error("cannot start the process: {0}")]
    Failed(String),
    /// The runner's reports are incomplete.
    #[error("cannot start the process: the runner ended with status {0}")]
    Silent(u32),
    /// The runner took too long.
    #[error("cannot start the process: no answer within {0:?}")]
    Timeout(Duration),
    /// The agent's part failed.
    #[error("cannot start the process: {0}")]
    System(&'static str, #[source] io::Error),
}

impl Coded for LaunchError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::NotExecutable(_) => Code::PERMISSION_DENIED,
            _ => Code::INTERNAL,
        }
    }

    fn command_error(&self) -> Option<Kind> {
        match self {
            Self::NotFound(_) => Some(Kind::NOT_FOUND),
            Self::NotExecutable(_) => Some(Kind::NOT_EXECUTABLE),
            _ => None,
        }
    }
}

/// The reading end of a runner's pipe.
pub struct Report(BufReader<pipe::Receiver>);

impl Report {
    fn open() -> io::Result<(Self, OwnedFd)> {
        // The runner must inherit the writing end. Only this thread starts programs, and it
        // does so before anything else runs.
        let (read, write) = nix::unistd::pipe2(OFlag::empty())?;
        nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
        crate::streams::stdio::set_nonblocking(&read)?;
        let reader = pipe::Receiver::from_owned_fd_unchecked(read)?;
        Ok((Self(BufReader::new(reader)), write))
    }

    /// The next message; `None` at the end.
    async fn next(&mut self) -> Option<Message> {
        let mut line = Vec::new();
        loop {
            line.clear();
            // The process that writes may be the container's in all but name.
            match (&mut self.0).take(LINE_MAX).read_until(b'\n', &mut line).await {
                Ok(1..) if line.ends_with(b"\n") => {}
                _ => return None,
            }
            if let Some(message) = decode(&line) {
                return Some(message);
            }
        }
    }

    /// Waits for the program to be executed, which closes the pipe, or for the reason why
    /// it could not be.
    pub async fn executed(mut self) -> Result<(), LaunchError> {
        let mut details = Vec::new();
        while let Some(message) = self.next().await {
            match message {
                Message::NotFound(text) => return Err(LaunchError::NotFound(text)),
                Message::NotExecutable(text) => return Err(LaunchError::NotExecutable(text)),
                Message::Failed(text) => return Err(LaunchError::Failed(text)),
                Message::Detail(text) if details.len() < DETAILS_MAX => details.push(text),
                Message::Detail(_) | Message::Done { .. } => {}
            }
        }
        if details.is_empty() { Ok(()) } else { Err(failure(details, None)) }
    }

    /// Waits for the runner to be done; returns the new process.
    async fn done(&mut self) -> Result<Option<i32>, LaunchError> {
        let mut details = Vec::new();
        while let Some(message) = self.next().await {
            match message {
                Message::Done { pid } => return Ok(Some(pid)),
                Message::NotFound(text) => return Err(LaunchError::NotFound(text)),
                Message::NotExecutable(text) => return Err(LaunchError::NotExecutable(text)),
                Message::Failed(text) => return Err(failure(details, Some(text))),
                Message::Detail(text) if details.len() < DETAILS_MAX => details.push(text),
                Message::Detail(_) => {}
            }
        }
        if details.is_empty() { Ok(None) } else { Err(failure(details, None)) }
    }
}

/// Messages of libcontainer that only say that something else failed.
const ECHOES: &[&str] = &[
    "failed to wait for init ready",
    "failed to run container process",
    "failed to initialize container process",
    "failed to run intermediate process",
    "failed to create container",
    "failed to remove cgroup manager",
    "failed to fork init process",
    "error in executing process",
];

/// The innermost cause comes first. Messages that only say that something failed are omitted, unless there are no
/// others.
fn failure(details: Vec<String>, last: Option<String>) -> LaunchError {
    let echo = |text: &String| ECHOES.iter().any(|echo| text.starts_with(echo));
    let all: Vec<String> = details.into_iter().chain(last).collect();
    let mut text: Vec<&String> = Vec::new();
    for part in all.iter().filter(|part| !echo(part)) {
        if !text.iter().any(|other| other.contains(part.as_str())) {
            text.push(part);
        }
    }
    if text.is_empty() {
        text = all.iter().collect();
    }
    LaunchError::Failed(text.iter().map(|part| part.as_str()).collect::<Vec<_>>().join("; "))
}

/// A process that a runner has made.
pub struct Launched {
    /// The process.
    pub pid: i32,
    /// Its terminal's master.
    pub master: Option<OwnedFd>,
    /// Reports of its last steps.
    pub report: Report,
}

/// Runs `job`, whose file is `file`, with `ends` as the new process's standard streams.
pub async fn launch(
    table: &ProcessTable,
    job: &Job,
    file: &Path,
    ends: ProcessEnds,
) -> Result<Launched, LaunchError> {
    let system = |what| move |error| LaunchError::System(what, error);
    let text = serde_json::to_vec(job).map_err(|error| LaunchError::System("the job", error.into()))?;
    std::fs::write(file, text).map_err(system("the job file"))?;
    let console = job.console_socket.as_deref().map(Console::listen).transpose();
    let console = console.map_err(system("the console socket"))?;
    let (mut report, write) = Report::open().map_err(system("the report pipe"))?;
    let (runner, ended) = spawn(table, file, &write, ends).map_err(system("the runner"))?;
    drop(write);

    let answer = tokio::time::timeout(RUNNER_TIME, report.done()).await;
    let pid = match answer {
        Ok(Ok(Some(pid))) => pid,
        Ok(Ok(None)) => {
            let status = tokio::time::timeout(CONSOLE_TIME, ended).await.ok().and_then(Result::ok);
            return Err(LaunchError::Silent(status.map_or(0, |WaitStatus(status)| status as u32)));
        }
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            abandon(runner);
            return Err(LaunchError::Timeout(RUNNER_TIME));
        }
    };
    let master = match console {
        None => None,
        Some(console) => {
            let master = tokio::time::timeout(CONSOLE_TIME, console.receive()).await;
            Some(master.map_err(|_| LaunchError::Timeout(CONSOLE_TIME))?.map_err(system("the terminal"))?)
        }
    };
    // The new process becomes the agent's child when the runner has ended.
    let _ = tokio::time::timeout(CONSOLE_TIME, ended).await;
    Ok(Launched { pid, master, report })
}

fn spawn(
    table: &ProcessTable,
    file: &Path,
    report: &OwnedFd,
    ends: ProcessEnds,
) -> io::Result<(i32, tokio::sync::oneshot::Receiver<WaitStatus>)> {
    let child = Command::new("/proc/self/exe")
        .arg0(runner::NAME)
        .arg(file)
        .arg(report.as_raw_fd().to_string())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(ends.stdin))
        .stdout(Stdio::from(ends.stdout))
        .stderr(Stdio::from(ends.stderr))
        .spawn()?;
    // The reaper waits for it; `Child` does not on drop.
    let pid = child.id() as i32;
    Ok((pid, table.add_runner(pid)))
}

/// Kills a process that is no longer needed. It is a child that has not been reaped, so the PID still belongs
/// to it.
pub fn abandon(pid: i32) {
    let killed = open_pidfd(pid).map(|handle| send_signal(&handle, libc::SIGKILL as u32));
    if !matches!(killed, Ok(Ok(()))) {
        log::warn!("cannot kill process {pid}, which could not be set up: {killed:?}");
    }
}

/// The socket to which libcontainer sends a terminal's master.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Listens at `path`, through a short name for its directory: a socket's path may have
    /// 107 bytes only.
    fn listen(path: &Path) -> io::Result<Self> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::other("the path has no directory"));
        };
        let directory = File::open(parent)?;
        let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        let listener = UnixListener::bind(short)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    async fn receive(&self) -> io::Result<OwnedFd> {
        let (stream, _) = self.listener.accept().await?;
        loop {
            stream.readable().await?;
            match stream.try_io(tokio::io::Interest::READABLE, || receive_fd(stream.as_raw_fd())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // The directory goes with the container in any case.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn receive_fd(socket: i32) -> io::Result<OwnedFd> {
    let mut bytes = [0; 256];
    let mut parts = [io::IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<UnixAddr>(socket, &mut parts, Some(&mut space), flags)?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            // SAFETY: the kernel has just made these descriptors for us.
            received.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    received.pop().ok_or_else(|| io::Error::other("no descriptor came with the message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let error = failure(
            vec!["mount: EINVAL".into(), "EINVAL".into()],
            Some("failed to create container: x".into()),
        );
        assert_eq!(error.to_string(), "cannot start the process: mount: EINVAL");
    }

    #[tokio::test]
    async fn an_end_without_words_is_success_after_done() {
        let (mut report, write) = Report::open().unwrap();
        let reporter = crate::runner::report::Reporter::new(write);
        reporter.send(&Message::Done { pid: 3 });
        assert_eq!(report.done().await.unwrap(), Some(3));
        drop(reporter);
        assert!(report.executed().await.is_ok());
    }

    #[tokio::test]
    async fn a_missing_command_is_told_apart() {
        let (mut report, write) = Report::open().unwrap();
        crate::runner::report::Reporter::new(write).send(&Message::NotFound("exec: \"x\": …".into()));
        assert_eq!(report.done().await.unwrap_err().command_error(), Some(Kind::NOT_FOUND));
    }
}
