//! One run of a program: input, output, and a time limit.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::{HANG, TICK, runtime};

/// A program about to be run.
pub struct Invocation {
    command: Command,
    input: Vec<u8>,
    to_files: bool,
    limit: Duration,
}

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Its exit status, or 128 and the signal's number.
    pub status: i32,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    line: String,
}

impl Invocation {
    /// The runtime with these arguments.
    pub fn new<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        Self::of(&runtime(), arguments)
    }

    /// Any program with these arguments.
    pub fn of<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Self {
        let mut command = Command::new(program);
        command.args(arguments);
        Invocation { command, input: Vec::new(), to_files: false, limit: HANG }
    }

    /// Gives it `input` and then the end of its standard input.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Lets it run in `folder`.
    pub fn current_dir(mut self, folder: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Takes what it says in files instead of pipes: something that it leaves behind may go on
    /// holding them.
    pub fn leaves_something_behind(mut self) -> Self {
        self.to_files = true;
        self
    }

    /// Lets it take longer than [`HANG`].
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Gives the command away, for a test that handles its streams itself.
    pub fn into_command(self) -> Command {
        self.command
    }

    fn line(&self) -> String {
        format!("{:?}", self.command)
    }

    /// Runs it to its end.
    pub fn run(mut self) -> Output {
        if self.to_files {
            return self.run_with_files();
        }
        let line = self.line();
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        let (mut stdin, input) = (child.stdin.take(), self.input);
        thread::spawn(move || {
            // Whoever does not read all of it has its reasons.
            let _ = stdin.take().map(|mut stdin| stdin.write_all(&input));
        });
        let stdout = read_all(child.stdout.take());
        let stderr = read_all(child.stderr.take());
        let status = wait(&mut child, &line, self.limit);
        let take = |from: Receiver<Vec<u8>>, name: &str| {
            from.recv_timeout(HANG / 5)
                .unwrap_or_else(|_| panic!("{line} has ended, but something still holds its {name} open"))
        };
        let (stdout, stderr) = (take(stdout, "stdout"), take(stderr, "stderr"));
        Output { status: code(status), stdout, stderr, line }
    }

    fn run_with_files(mut self) -> Output {
        let line = self.line();
        let file = || tempfile::tempfile().unwrap_or_else(|error| panic!("a temporary file: {error}"));
        let (mut stdin, stdout, stderr) = (file(), file(), file());
        stdin.write_all(&self.input).and_then(|()| stdin.rewind()).unwrap_or_else(|e| panic!("{line}: {e}"));
        let clone = |file: &File| Stdio::from(file.try_clone().unwrap_or_else(|e| panic!("{line}: {e}")));
        self.command.stdin(Stdio::from(stdin)).stdout(clone(&stdout)).stderr(clone(&stderr));
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{line}: {error}"));
        let status = wait(&mut child, &line, self.limit);
        let read = |mut file: File| {
            let mut bytes = Vec::new();
            file.rewind()
                .and_then(|()| file.read_to_end(&mut bytes))
                .unwrap_or_else(|e| panic!("{line}: {e}"));
            bytes
        };
        Output { status: code(status), stdout: read(stdout), stderr: read(stderr), line }
    }
}

impl Output {
    /// Its standard output, without the white space at the end, if it succeeded.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert_eq!(self.status, 0, "{self}");
        self.text()
    }

    /// Its standard output, without the white space at the end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }

    /// Its standard error, without the white space at the end.
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim_end().to_owned()
    }

    /// Checks that it failed with `status` and nothing on its standard output.
    #[track_caller]
    pub fn fails(&self, status: i32) -> &Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// Checks that it failed, and that the error names each of `words` (in any case).
    #[track_caller]
    pub fn fails_naming(&self, words: &[&str]) {
        assert_ne!(self.status, 0, "it should have failed: {self}");
        let errors = self.errors();
        for word in words {
            assert!(errors.to_lowercase().contains(&word.to_lowercase()), "no {word:?} in the error: {self}");
        }
        assert!(!errors.contains("panicked at"), "{self}");
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} ended with {}", self.line, self.status)?;
        for (name, text) in [("stdout", self.text()), ("stderr", self.errors())] {
            let shown: String = text.chars().take(4000).collect();
            writeln!(f, "--- its {name} ({} bytes):\n{shown}", text.len())?;
        }
        Ok(())
    }
}

/// The status of a process as a shell gives it.
pub fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(127))
}

fn read_all(stream: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.map(|mut stream| stream.read_to_end(&mut bytes));
        let _ = sender.send(bytes);
    });
    receiver
}

/// Waits for a child; kills it and panics if it hangs.
pub fn wait(child: &mut Child, line: &str, limit: Duration) -> ExitStatus {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().unwrap_or_else(|error| panic!("{line}: {error}")) {
            return status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{line} hangs: it ran for {limit:?}");
        }
        thread::sleep(TICK);
    }
}
