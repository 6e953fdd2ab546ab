//! The host's ends of a process's standard streams.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::terminal::{self, TerminalError};
use super::uri::NamedError;
use super::{NullStreams, is_null};

/// Where the standard streams of a process lead on this host.
#[derive(Debug)]
pub enum Ends {
    /// stdin, stdout and stderr; none for a stream that is `/dev/null`.
    Streams {
        /// Where its input comes from.
        stdin: Option<File>,
        /// Where its output goes.
        stdout: Option<File>,
        /// Where its messages go.
        stderr: Option<File>,
    },
    /// A terminal, for all three.
    Terminal {
        /// Where its input comes from, if from anywhere.
        input: Option<File>,
        /// Where its output goes, if anywhere.
        output: Option<File>,
        /// The host's terminal, if input and output are one: it has a size.
        console: Option<File>,
    },
}

impl Ends {
    /// Which of the streams are `/dev/null`: of a terminal, those for its input and its output.
    pub fn null(&self) -> NullStreams {
        match self {
            Ends::Streams { stdin, stdout, stderr } => {
                NullStreams { stdin: stdin.is_none(), stdout: stdout.is_none(), stderr: stderr.is_none() }
            }
            Ends::Terminal { input, output, console: _ } => {
                NullStreams { stdin: input.is_none(), stdout: output.is_none(), stderr: false }
            }
        }
    }

    /// The same ends, with the null device open where a stream is `/dev/null`.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn with_null_devices(self) -> io::Result<Self> {
        let Ends::Streams { stdin, stdout, stderr } = self else { return Ok(self) };
        let null = || File::options().read(true).write(true).open("/dev/null");
        let open = |end: Option<File>| end.map_or_else(null, Ok).map(Some);
        Ok(Ends::Streams { stdin: open(stdin)?, stdout: open(stdout)?, stderr: open(stderr)? })
    }

    /// The ends that there are: of stdin, stdout and stderr, or of the input and the output of a terminal.
    pub fn into_files(self) -> Vec<File> {
        let ends = match self {
            Ends::Streams { stdin, stdout, stderr } => [stdin, stdout, stderr],
            Ends::Terminal { input, output, console: _ } => [input, output, None],
        };
        ends.into_iter().flatten().collect()
    }

    /// Whether the process has a terminal.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Ends::Terminal { .. })
    }

    /// The host's terminal, if the process has one and it is a terminal on the host too.
    pub fn console(&self) -> Option<&File> {
        match self {
            Ends::Streams { .. } => None,
            Ends::Terminal { console, .. } => console.as_ref(),
        }
    }

    fn of_console(name: &'static str, console: File) -> Result<Self, EndsError> {
        let copy = || own(name, console.as_fd()).map(Some);
        Ok(Ends::Terminal { input: copy()?, output: copy()?, console: Some(console) })
    }

    /// The size of the terminal as (rows, columns); zeros without one.
    pub fn size(&self) -> (u32, u32) {
        self.console().and_then(|console| terminal::size(console.as_fd())).unwrap_or((0, 0))
    }
}

/// The host's ends could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum EndsError {
    /// The terminal.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// A stream of this process.
    #[error("{name} of this process cannot be used")]
    Own {
        /// The stream.
        name: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// A stream that the engine names.
    #[error(transparent)]
    Named(#[from] NamedError),
    /// A console socket, and no terminal.
    #[error("--console-socket is given, but process.terminal does not ask for a terminal")]
    NotWanted,
}

/// A place that the streams of a process can lead to.
pub trait StreamSource {
    /// Opens the host's ends: of a terminal, or of three streams.
    ///
    /// # Errors
    /// [`EndsError`] names the stream.
    fn open(&self, terminal: bool) -> Result<Ends, EndsError>;
}

/// The streams of this process, or the terminal that its standard input is.
pub struct Inherited;

impl StreamSource for Inherited {
    fn open(&self, terminal: bool) -> Result<Ends, EndsError> {
        if terminal {
            let stdin = io::stdin();
            if !nix::unistd::isatty(stdin.as_fd()).unwrap_or(false) {
                return Err(TerminalError::NoTerminal.into());
            }
            return Ends::of_console("stdin", own("stdin", stdin.as_fd())?);
        }
        let unless_null = |name, fd| if is_null(fd) { Ok(None) } else { own(name, fd).map(Some) };
        Ok(Ends::Streams {
            stdin: unless_null("stdin", io::stdin().as_fd())?,
            stdout: unless_null("stdout", io::stdout().as_fd())?,
            stderr: unless_null("stderr", io::stderr().as_fd())?,
        })
    }
}

fn own(name: &'static str, fd: BorrowedFd<'_>) -> Result<File, EndsError> {
    fd.try_clone_to_owned().map(File::from).map_err(|source| EndsError::Own { name, source })
}

/// The streams of this process, which are not terminals even if the process has one in the guest.
pub struct Piped;

impl StreamSource for Piped {
    fn open(&self, terminal: bool) -> Result<Ends, EndsError> {
        match Inherited.open(false)? {
            Ends::Streams { stdin, stdout, .. } if terminal => {
                Ok(Ends::Terminal { input: stdin, output: stdout, console: None })
            }
            ends => Ok(ends),
        }
    }
}

/// A new terminal, whose master is sent to an engine through a UNIX socket.
pub struct ConsoleSocket<'a>(pub &'a Path);

impl StreamSource for ConsoleSocket<'_> {
    fn open(&self, terminal: bool) -> Result<Ends, EndsError> {
        if !terminal {
            return Err(EndsError::NotWanted);
        }
        Ends::of_console("the terminal", terminal::send_console(self.0)?)
    }
}

/// The source for a command line that may name a console socket.
pub fn of_command_line(console_socket: Option<&Path>) -> Box<dyn StreamSource + '_> {
    match console_socket {
        Some(path) => Box::new(ConsoleSocket(path)),
        None => Box::new(Inherited),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_without_an_end_is_null() {
        let file = || Some(tempfile::tempfile().unwrap());
        let ends = Ends::Streams { stdin: None, stdout: file(), stderr: file() };
        assert_eq!(ends.null(), NullStreams { stdin: true, ..NullStreams::default() });
        assert!(!ends.is_terminal() && ends.console().is_none());
        assert_eq!(ends.size(), (0, 0));
        assert_eq!(ends.with_null_devices().unwrap().null(), NullStreams::default());
    }

    #[test]
    fn a_console_socket_without_a_terminal_is_refused() {
        let error = of_command_line(Some(Path::new("/no/socket"))).open(false).unwrap_err();
        assert!(error.to_string().starts_with("--console-socket is given"), "{error}");
        let error = of_command_line(Some(Path::new("/no/socket"))).open(true).unwrap_err();
        assert!(error.to_string().contains("/no/socket"), "{error}");
    }
}
