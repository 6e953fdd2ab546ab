//! The standard streams of a process: its ends and the agent's ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use pouch_protocol::agent;
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use ttrpc::proto::Code;

use super::pump::{self, OutputCount};
use super::terminal::{Ended, Terminal};
use super::{Claim, StreamTable, TokenError};
use crate::error::{Coded, RequestError};

/// Why standard streams could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum StdioError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The kernel refused a pipe or a terminal.
    #[error("stdio: cannot set up {0}")]
    System(&'static str, #[source] io::Error),
}

impl Coded for StdioError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Token(error) => error.code(),
            Self::System(..) => Code::INTERNAL,
        }
    }
}

/// The process's ends, to be given to it and closed.
pub struct ProcessEnds {
    /// Standard input.
    pub stdin: OwnedFd,
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// The agent's side before the process exists.
pub struct PreparedStdio {
    streams: Streams,
    rows: u16,
    columns: u16,
}

enum Streams {
    Pipes { stdin: Option<(pipe::Sender, Claim)>, stdout: Output, stderr: Output },
    Terminal(Option<Claim>),
}

type Output = Option<(pipe::Receiver, Claim)>;

/// Sets the streams up as the request has them. The ends are /dev/null for a terminal:
/// the terminal itself is made inside the container.
pub fn prepare(
    request: &agent::Stdio,
    table: &StreamTable,
    owner: u32,
) -> Result<(PreparedStdio, ProcessEnds), StdioError> {
    let rows = size(request.rows, "stdio.rows")?;
    let columns = size(request.columns, "stdio.columns")?;
    check_tokens(request)?;
    if request.terminal {
        let claim = match request.terminal_token {
            0 => None,
            token => Some(table.claim("stdio.terminal_token", token)?),
        };
        let ends = ProcessEnds { stdin: null(true)?, stdout: null(false)?, stderr: null(false)? };
        return Ok((PreparedStdio { streams: Streams::Terminal(claim), rows, columns }, ends));
    }
    let (stdin, stdin_end) = input(table, request.stdin_token, owner)?;
    let (stdout, stdout_end) = output(table, "stdio.stdout_token", request.stdout_token, owner)?;
    let (stderr, stderr_end) = output(table, "stdio.stderr_token", request.stderr_token, owner)?;
    let ends = ProcessEnds { stdin: stdin_end, stdout: stdout_end, stderr: stderr_end };
    Ok((PreparedStdio { streams: Streams::Pipes { stdin, stdout, stderr }, rows, columns }, ends))
}

fn check_tokens(request: &agent::Stdio) -> Result<(), RequestError> {
    let pipes = [
        ("stdio.stdin_token", request.stdin_token),
        ("stdio.stdout_token", request.stdout_token),
        ("stdio.stderr_token", request.stderr_token),
    ];
    if request.terminal {
        if let Some((field, _)) = pipes.iter().find(|(_, token)| *token != 0) {
            return Err(RequestError::new(*field, "must be 0 for a terminal, which has one stream"));
        }
    } else if request.terminal_token != 0 {
        return Err(RequestError::new("stdio.terminal_token", "must be 0 without a terminal"));
    }
    Ok(())
}

/// A terminal's rows or columns as the kernel takes them.
pub fn size(value: u32, field: &str) -> Result<u16, RequestError> {
    u16::try_from(value).map_err(|_| RequestError::new(field, format!("{value} is more than 65535")))
}

fn null(read: bool) -> Result<OwnedFd, StdioError> {
    let file = File::options().read(read).write(!read).open("/dev/null");
    file.map(OwnedFd::from).map_err(|error| StdioError::System("/dev/null", error))
}

fn new_pipe(owner: u32, ours: fn(&(OwnedFd, OwnedFd)) -> &OwnedFd) -> Result<(OwnedFd, OwnedFd), StdioError> {
    let system = |error| StdioError::System("a pipe", error);
    let ends = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|error| system(error.into()))?;
    set_nonblocking(ours(&ends)).map_err(system)?;
    // The process may open its streams again through /proc/self/fd, as any user.
    if owner != 0 {
        nix::unistd::fchown(ends.0.as_fd(), Some(owner.into()), None)
            .map_err(|error| system(error.into()))?;
    }
    Ok(ends)
}

fn input(
    table: &StreamTable,
    token: u64,
    owner: u32,
) -> Result<(Option<(pipe::Sender, Claim)>, OwnedFd), StdioError> {
    if token == 0 {
        return Ok((None, null(true)?));
    }
    let claim = table.claim("stdio.stdin_token", token)?;
    let (theirs, ours) = new_pipe(owner, |ends| &ends.1)?;
    let sender = pipe::Sender::from_owned_fd_unchecked(ours);
    Ok((Some((sender.map_err(|error| StdioError::System("stdin", error))?, claim)), theirs))
}

fn output(
    table: &StreamTable,
    field: &'static str,
    token: u64,
    owner: u32,
) -> Result<(Output, OwnedFd), StdioError> {
    if token == 0 {
        return Ok((None, null(false)?));
    }
    let claim = table.claim(field, token)?;
    let (ours, theirs) = new_pipe(owner, |ends| &ends.0)?;
    let receiver = pipe::Receiver::from_owned_fd_unchecked(ours);
    Ok((Some((receiver.map_err(|error| StdioError::System("stdout", error))?, claim)), theirs))
}

/// Makes reads and writes of our end return instead of waiting; the process's end is
/// another open file and stays as it is.
pub fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The agent's side of a running process.
pub struct ProcessStdio {
    stdin_close: Arc<Notify>,
    stdout: Option<Arc<OutputCount>>,
    stderr: Option<Arc<OutputCount>>,
    terminal: Mutex<Option<std::sync::Weak<Terminal>>>,
    ended: Arc<Ended>,
    pumps: Mutex<Vec<AbortHandle>>,
}

impl PreparedStdio {
    /// Whether the process gets a terminal.
    pub fn is_terminal(&self) -> bool {
        matches!(self.streams, Streams::Terminal(_))
    }

    /// Starts to carry the streams. `master` is the terminal's, if there is one.
    pub fn start(self, master: Option<OwnedFd>) -> Result<ProcessStdio, StdioError> {
        let mut stdio = ProcessStdio::none();
        let mut pumps = Vec::new();
        match self.streams {
            Streams::Pipes { stdin, stdout, stderr } => {
                if let Some((sink, claim)) = stdin {
                    let close = stdio.stdin_close.clone();
                    pumps.push(tokio::spawn(pump::input(sink, close, claim)).abort_handle());
                }
                stdio.stdout = start_output(stdout, &mut pumps);
                stdio.stderr = start_output(stderr, &mut pumps);
            }
            Streams::Terminal(claim) => {
                let master = master.ok_or_else(|| {
                    StdioError::System("the terminal", io::Error::other("the container sent none"))
                })?;
                let terminal = Arc::new(
                    Terminal::new(master).map_err(|error| StdioError::System("the terminal", error))?,
                );
                if self.rows != 0 || self.columns != 0 {
                    terminal
                        .resize(self.rows, self.columns)
                        .map_err(|error| StdioError::System("the terminal's size", error))?;
                }
                stdio.terminal = Mutex::new(Some(Arc::downgrade(&terminal)));
                stdio.stdout = Some(start_terminal(terminal, stdio.ended.clone(), claim, &mut pumps));
            }
        }
        stdio.pumps = Mutex::new(pumps);
        Ok(stdio)
    }

    /// Fills in the size that the spec gives where the request gives none.
    pub fn default_size(&mut self, rows: u64, columns: u64) {
        if self.rows == 0 && self.columns == 0 {
            self.rows = rows.try_into().unwrap_or(0);
            self.columns = columns.try_into().unwrap_or(0);
        }
    }
}

fn start_output(output: Output, pumps: &mut Vec<AbortHandle>) -> Option<Arc<OutputCount>> {
    let (source, claim) = output?;
    let count = OutputCount::of(&source);
    pumps.push(tokio::spawn(pump::output(source, count.clone(), claim)).abort_handle());
    Some(count)
}

fn start_terminal(
    terminal: Arc<Terminal>,
    ended: Arc<Ended>,
    claim: Option<Claim>,
    pumps: &mut Vec<AbortHandle>,
) -> Arc<OutputCount> {
    let count = OutputCount::of(&*terminal);
    let task = match claim {
        Some(claim) => tokio::spawn(pump::terminal(terminal, count.clone(), ended, claim)),
        None => tokio::spawn(pump::discard_terminal(terminal, count.clone(), ended)),
    };
    pumps.push(task.abort_handle());
    count
}

impl ProcessStdio {
    /// Streams to /dev/null.
    pub fn none() -> Self {
        Self {
            stdin_close: Arc::new(Notify::new()),
            stdout: None,
            stderr: None,
            terminal: Mutex::new(None),
            ended: Arc::default(),
            pumps: Mutex::new(Vec::new()),
        }
    }

    /// Closes the process's stdin after pending data has arrived.
    pub fn close_stdin(&self) {
        self.stdin_close.notify_one();
    }

    /// Resizes the terminal.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let terminal = self.terminal.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match terminal.as_ref().map(std::sync::Weak::upgrade) {
            None => Err(io::Error::other("the process has no terminal")),
            // The terminal has hung up: there is nothing left to resize.
            Some(None) => Ok(()),
            Some(Some(terminal)) => terminal.resize(rows, columns),
        }
    }

    /// Records that the process has ended: its terminal ends when no process has it open.
    pub fn process_ended(&self) {
        self.ended.set();
    }

    /// True if the streams are a terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).is_some()
    }

    /// Bytes written to stdout, or to the terminal, and to stderr.
    pub fn written(&self) -> (u64, u64) {
        let total = |count: &Option<Arc<OutputCount>>| count.as_ref().map_or(0, |count| count.total());
        (total(&self.stdout), total(&self.stderr))
    }

    /// Waits until all is counted that the process, which has ended, wrote to its terminal.
    pub async fn output_settled(&self) {
        if let Some(count) = &self.stdout {
            count.settled().await;
        }
    }

    /// Drops the streams, whatever is in them.
    pub fn stop(&self) {
        for pump in self.pumps.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).drain(..) {
            pump.abort();
        }
        for count in [&self.stdout, &self.stderr].into_iter().flatten() {
            count.finish();
        }
    }
}

impl Drop for ProcessStdio {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Gives a terminal's inner side to the user that the process runs as.
pub fn chown_terminal(master: &OwnedFd, owner: u32) -> io::Result<()> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a new descriptor or -1.
    let peer = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    if peer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above just made this descriptor, and nobody else has it.
    let peer = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(peer) };
    Ok(nix::unistd::fchown(&peer, Some(owner.into()), None)?)
}
