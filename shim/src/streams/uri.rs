//! Streams that an engine names by a path or a URI: FIFOs, files, and programs that log (containerd's `pkg/cio`).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{Ends, EndsError, StreamSource};

/// The first descriptor of a logging program that is its own: the output of the process. 4 is its error output, and 5
/// is closed by the program when it is ready (containerd, `runtime/v2/logging`).
const LOGGER_FD: i32 = 3;

/// The streams of a process, as an engine names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The FIFO of standard input; empty for none.
    pub stdin: String,
    /// Where standard output goes; empty for nowhere.
    pub stdout: String,
    /// Where standard error goes; empty for nowhere. Unused with a terminal.
    pub stderr: String,
    /// The container, which a logging program is told of.
    pub container: String,
    /// The engine's namespace, which a logging program is told of.
    pub namespace: String,
}

/// A stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum NamedError {
    /// The URI is malformed, or its kind is unknown.
    #[error("{name} {uri:?}: {problem}")]
    Uri {
        /// The stream.
        name: &'static str,
        /// What the engine named.
        uri: String,
        /// The problem.
        problem: &'static str,
    },
    /// It cannot be opened.
    #[error("{name} {path} cannot be opened")]
    Open {
        /// The stream.
        name: &'static str,
        /// Its path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The logging program cannot be started.
    #[error("the logging program {path} cannot be started")]
    Logger {
        /// The program.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The streams of a process, opened, and what must stay open as long as the process exists.
pub struct Opened {
    /// What the process reads and writes.
    pub ends: Ends,
    /// What must stay open.
    pub kept: Kept,
}

/// The other ends of FIFOs. With these open, a client can detach and attach again, and the process gets neither an end
/// of input nor an error.
#[derive(Default)]
pub struct Kept {
    stdin: Option<File>,
    /// They are only kept.
    _readers: Vec<File>,
    logger: Option<Child>,
}

impl Kept {
    /// Lets the process have an end of input once the engine's client has closed the FIFO.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }
}

impl Drop for Kept {
    /// A logging program ends when it has read everything. It is not waited for here: whoever reaps this process's
    /// children does so.
    fn drop(&mut self) {
        if let Some(mut logger) = self.logger.take() {
            std::thread::spawn(move || drop(logger.wait()));
        }
    }
}

/// A kind of target that a URI names.
enum Target<'a> {
    None,
    Fifo(&'a Path),
    File(&'a Path),
    Logger(&'a str),
}

fn target<'a>(name: &'static str, uri: &'a str) -> Result<Target<'a>, NamedError> {
    let wrong = |problem| NamedError::Uri { name, uri: uri.to_owned(), problem };
    let (scheme, rest) = uri.split_once("://").unwrap_or(("fifo", uri));
    match scheme {
        _ if uri.is_empty() => Ok(Target::None),
        _ if !rest.starts_with('/') => Err(wrong("its path is not absolute")),
        "fifo" => Ok(Target::Fifo(Path::new(rest))),
        "file" => Ok(Target::File(Path::new(rest))),
        "binary" => Ok(Target::Logger(rest)),
        _ => Err(wrong("only fifo, file and binary are supported")),
    }
}

/// Both ends of a FIFO. Opened for both first, because a FIFO that nobody has open would block or fail.
fn open_fifo(name: &'static str, path: &Path) -> Result<(File, File), NamedError> {
    let error = |source| NamedError::Open { name, path: path.to_owned(), source };
    if !fs::metadata(path).map_err(error)?.file_type().is_fifo() {
        return Err(error(io::Error::other("it is not a FIFO")));
    }
    let _both = File::options().read(true).write(true).open(path).map_err(error)?;
    let reader = File::open(path).map_err(error)?;
    let writer = File::options().write(true).open(path).map_err(error)?;
    Ok((reader, writer))
}

impl Named {
    /// Opens the streams: of a terminal, or three.
    ///
    /// # Errors
    /// [`NamedError`] names the stream.
    pub fn open(&self, terminal: bool) -> Result<Opened, NamedError> {
        let mut kept = Kept::default();
        let stdin = match target("stdin", &self.stdin)? {
            Target::None => None,
            Target::Fifo(path) => {
                let (reader, writer) = open_fifo("stdin", path)?;
                kept.stdin = Some(writer);
                Some(reader)
            }
            _ => {
                let uri = self.stdin.clone();
                return Err(NamedError::Uri { name: "stdin", uri, problem: "only a FIFO is supported" });
            }
        };
        if let Target::Logger(uri) = target("stdout", &self.stdout)? {
            let (stdout, stderr) = self.start_logger(uri, &mut kept)?;
            return Ok(Opened { ends: ends(terminal, stdin, Some(stdout), Some(stderr)), kept });
        }
        let stdout = output("stdout", &self.stdout, &mut kept)?;
        let stderr = if terminal { None } else { output("stderr", &self.stderr, &mut kept)? };
        Ok(Opened { ends: ends(terminal, stdin, stdout, stderr), kept })
    }

    /// Starts the program of `binary://PATH?NAME=VALUE&…`; returns what it reads from.
    fn start_logger(&self, uri: &str, kept: &mut Kept) -> Result<(File, File), NamedError> {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let path = Path::new(path);
        let error = |source| NamedError::Logger { path: path.to_owned(), source };
        let pipe = || io::pipe().map_err(error);
        let (stdout, stdout_writer): (PipeReader, PipeWriter) = pipe()?;
        let (stderr, stderr_writer) = pipe()?;
        let (mut ready, ready_writer) = pipe()?;
        let inherited = [stdout.as_raw_fd(), stderr.as_raw_fd(), ready_writer.as_raw_fd()];
        let mut command = Command::new(path);
        for argument in query.split('&').filter(|argument| !argument.is_empty()) {
            let (name, value) = argument.split_once('=').unwrap_or((argument, ""));
            command.arg(OsStr::from_bytes(name.as_bytes()));
            if !value.is_empty() {
                command.arg(OsStr::from_bytes(value.as_bytes()));
            }
        }
        command
            .env_clear()
            .env("CONTAINER_ID", &self.container)
            .env("CONTAINER_NAMESPACE", &self.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: the calls may be made between fork and exec, and touch no memory.
        unsafe { command.pre_exec(move || place(inherited)) };
        let child = command.spawn().map_err(error)?;
        drop((stdout, stderr, ready_writer));
        kept.logger = Some(child);
        // It closes the pipe when it is ready, or ends.
        let _ = ready.read(&mut [0]);
        Ok((File::from(OwnedFd::from(stdout_writer)), File::from(OwnedFd::from(stderr_writer))))
    }
}

/// Gives descriptors the numbers from [`LOGGER_FD`] on, between fork and exec.
fn place(fds: [i32; 3]) -> io::Result<()> {
    // Out of the way first, so that none is overwritten before it was moved.
    let mut away = [0; 3];
    for (away, fd) in away.iter_mut().zip(fds) {
        // SAFETY: the call takes numbers only.
        *away = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 10) };
        if *away < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    for (number, fd) in (LOGGER_FD..).zip(away) {
        // SAFETY: the call takes numbers only.
        if unsafe { libc::dup2(fd, number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn output(name: &'static str, uri: &str, kept: &mut Kept) -> Result<Option<File>, NamedError> {
    match target(name, uri)? {
        Target::None => Ok(None),
        Target::Fifo(path) => {
            let (reader, writer) = open_fifo(name, path)?;
            kept._readers.push(reader);
            Ok(Some(writer))
        }
        Target::File(path) => {
            let error = |source| NamedError::Open { name, path: path.to_owned(), source };
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(error)?;
            }
            File::options().create(true).append(true).open(path).map_err(error).map(Some)
        }
        Target::Logger(_) => Err(NamedError::Uri {
            name,
            uri: uri.to_owned(),
            problem: "a logging program takes standard error together with standard output",
        }),
    }
}

fn ends(terminal: bool, stdin: Option<File>, stdout: Option<File>, stderr: Option<File>) -> Ends {
    if terminal {
        Ends::Terminal { input: stdin, output: stdout, console: None }
    } else {
        Ends::Streams { stdin, stdout, stderr }
    }
}

impl StreamSource for Named {
    fn open(&self, terminal: bool) -> Result<Ends, EndsError> {
        Ok(Named::open(self, terminal)?.ends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    fn fifo(path: &Path) -> String {
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path.display().to_string()
    }

    fn written(file: File, text: &str) {
        let mut file = file;
        file.write_all(text.as_bytes()).unwrap();
    }

    #[test]
    fn a_fifo_outlives_its_clients() {
        let folder = tempfile::tempdir().unwrap();
        let stdin = fifo(&folder.path().join("in"));
        let stdout = format!("fifo://{}", fifo(&folder.path().join("out")));
        let named = Named { stdin: stdin.clone(), stdout: stdout.clone(), ..Named::default() };
        let Opened { ends, mut kept } = named.open(false).unwrap();
        let Ends::Streams { stdin: Some(mut input), stdout: Some(output), stderr: None } = ends else {
            panic!("{ends:?}")
        };
        // One client comes and goes, and then another.
        for word in ["one", "two"] {
            written(File::options().write(true).open(&stdin).unwrap(), word);
            let mut got = [0; 3];
            input.read_exact(&mut got).unwrap();
            assert_eq!(got, word.as_bytes());
        }
        written(output.try_clone().unwrap(), "lost without a reader");
        kept.close_stdin();
        assert_eq!(input.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_file_is_appended_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/log");
        let named = Named { stdout: format!("file://{}", path.display()), ..Named::default() };
        for _ in 0..2 {
            let Ends::Streams { stdout: Some(file), .. } = named.open(false).unwrap().ends else { panic!() };
            written(file, "line\n");
        }
        assert_eq!(fs::read_to_string(path).unwrap(), "line\nline\n");
    }

    #[test]
    fn a_program_gets_the_output_and_is_told_whose_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (program, log) = (folder.path().join("logger"), folder.path().join("log"));
        let script = format!(
            "#!/bin/sh\nexec 5>&-\n{{ echo $CONTAINER_NAMESPACE $CONTAINER_ID \"$@\"; cat <&3; cat <&4; }} >{0}.new\n\
             mv {0}.new {0}\n",
            log.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let uri = format!("binary://{}?--tag=x&-v", program.display());
        let named = Named {
            stdout: uri.clone(),
            stderr: uri,
            container: "c".to_owned(),
            namespace: "n".to_owned(),
            ..Named::default()
        };
        let opened = named.open(false).unwrap();
        let Ends::Streams { stdout: Some(stdout), stderr: Some(stderr), .. } = opened.ends else { panic!() };
        written(stdout, "out\n");
        written(stderr, "err\n");
        let begun = std::time::Instant::now();
        while !log.exists() {
            assert!(begun.elapsed().as_secs() < 60, "it writes no log");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(fs::read_to_string(&log).unwrap(), "n c --tag x -v\nout\nerr\n");
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let error = |stdin: &str, stdout: &str| {
            let named = Named { stdin: stdin.to_owned(), stdout: stdout.to_owned(), ..Named::default() };
            pouch_errors::chain(&named.open(false).map(drop).unwrap_err())
        };
        assert!(error("/no/such/fifo", "").contains("stdin /no/such/fifo cannot be opened"));
        assert!(error("", "/etc/passwd").contains("stdout /etc/passwd cannot be opened: it is not a FIFO"));
        assert!(error("", "relative").contains("not absolute"));
        assert!(error("", "http://x/").contains("stdout \"http://x/\""));
        assert!(error("file:///x", "").contains("only a FIFO is supported"));
        assert!(error("", "binary:///no/such/program").contains("/no/such/program cannot be started"));
    }
}
