//! Reports to the agent of a runner, and of the processes that it creates until they execute their program.
//!
//! Each report is one JSON value on a line, written at once so that lines of several processes do not mix.
//! The container's first process keeps the pipe open while it waits to be started. The kernel closes the pipe
//! when the program is executed, so end-of-file means success.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// The kernel writes this much to a pipe without mixing it with others.
const ATOMIC: usize = 4096;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Something went wrong; there may be more of it to come.
    Detail(String),
    /// The command cannot be found: status 127 to a shell.
    NotFound(String),
    /// The command cannot be executed: status 126 to a shell.
    NotExecutable(String),
    /// The runner has done its job.
    Done {
        /// The new process.
        pid: i32,
    },
    /// The runner has failed.
    Failed(String),
}

/// The writing end.
#[derive(Clone)]
pub struct Reporter(Arc<OwnedFd>);

impl Reporter {
    /// Writes to `fd`.
    pub fn new(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }

    /// Sends one message, cut to what fits into one write.
    pub fn send(&self, message: &Message) {
        let mut line = encode(message);
        if line.len() > ATOMIC {
            line = encode(&shorten(message));
        }
        // SAFETY: the buffer is as long as said. An agent that no longer reads is no reason
        // to stop.
        unsafe { libc::write(self.0.as_raw_fd(), line.as_ptr().cast(), line.len()) };
    }
}

fn encode(message: &Message) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// JSON may make six bytes of one.
fn shorten(message: &Message) -> Message {
    let cut = |text: &String| text.chars().take(ATOMIC / 8).collect::<String>() + " …";
    match message {
        Message::Detail(text) => Message::Detail(cut(text)),
        Message::NotFound(text) => Message::NotFound(cut(text)),
        Message::NotExecutable(text) => Message::NotExecutable(cut(text)),
        Message::Failed(text) => Message::Failed(cut(text)),
        Message::Done { pid } => Message::Done { pid: *pid },
    }
}

/// The error in lower case, as engines parse it to detect a missing file.
pub fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// Reads one line; `None` for what is not a message.
pub fn decode(line: &[u8]) -> Option<Message> {
    serde_json::from_slice(line).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn messages_arrive_whole() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let reporter = Reporter::new(write);
        reporter.send(&Message::Detail("\u{1}".repeat(10_000)));
        reporter.send(&Message::Done { pid: 7 });
        drop(reporter);
        let mut text = Vec::new();
        std::fs::File::from(read).read_to_end(&mut text).unwrap();
        let lines: Vec<_> = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        assert!(lines[0].len() < ATOMIC);
        assert!(matches!(decode(lines[0]), Some(Message::Detail(_))));
        assert_eq!(decode(lines[1]), Some(Message::Done { pid: 7 }));
        assert_eq!(decode(b"nonsense"), None);
    }
}
