//! The output of a VMM: its log, and its guest's console. The VMM writes to a pipe and this process writes
//! the file, so that a VMM that its guest has taken over cannot fill the host's disk.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// Bytes of a VMM's log that are kept. A VMM that behaves writes less (`vmm/src/log.rs`).
const MAX_LOG: u64 = 16 << 20;
/// Bytes of a guest's console that are kept.
const MAX_CONSOLE: u64 = 16 << 20;
/// Bytes in which the last line is looked for.
const TAIL: usize = 64 * 1024;

/// The VMM's log in a container's directory.
pub fn log_path(directory: &Path) -> PathBuf {
    directory.join("vmm.log")
}

/// The end of the VMM's log, for an error that has no other explanation.
pub fn log_tail(path: &Path) -> Option<String> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(TAIL as u64).read_to_end(&mut text).ok()?;
    last_line(&text)
}

fn last_line(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
}

/// The log of a VMM that runs.
pub struct VmmLog {
    /// Open for reading too.
    file: File,
    /// Disconnected when the VMM's output is completely in the file.
    complete: Mutex<Receiver<()>>,
}

impl VmmLog {
    /// Writes what comes out of `log` into a file of `directory`, and what comes out of `console` into another,
    /// until the VMM has ended.
    ///
    /// # Errors
    /// If a file or a thread cannot be created.
    pub fn start(directory: &Path, log: PipeReader, console: Option<PipeReader>) -> io::Result<Self> {
        let file = open(&log_path(directory))?;
        let (sender, complete) = mpsc::channel();
        start_copy("vmm log", log, file.try_clone()?, MAX_LOG, move || drop(sender))?;
        if let Some(console) = console {
            start_copy("console", console, open(&directory.join("console.log"))?, MAX_CONSOLE, || ())?;
        }
        Ok(VmmLog { file, complete: Mutex::new(complete) })
    }

    /// Waits until the log of a VMM that is ending is complete, at most for `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let complete = self.complete.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // It ends with an error in any case.
        let _ = complete.recv_timeout(timeout);
    }

    /// Its end.
    pub fn tail(&self) -> Option<String> {
        let mut text = vec![0; TAIL];
        let length = self.file.read_at(&mut text, 0).ok()?;
        last_line(&text[..length])
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).append(true).mode(0o600).open(path)
}

fn start_copy(
    name: &str,
    from: PipeReader,
    to: File,
    limit: u64,
    done: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let copy = move || {
        copy(from, to, limit);
        done();
    };
    thread::Builder::new().name(name.to_owned()).stack_size(128 * 1024).spawn(copy).map(drop)
}

/// Copies at most `limit` bytes and a note that there was more. The rest is read and discarded, so that the writer
/// does not block.
fn copy(mut from: impl Read, mut to: impl Write, limit: u64) {
    let mut left = limit;
    let mut buffer = [0; 4096];
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let kept = count.min(usize::try_from(left).unwrap_or(usize::MAX));
        // A disk that is full must not end the VM.
        let _ = buffer.get(..kept).map(|bytes| to.write_all(bytes));
        if left > 0 && kept < count {
            let _ = to.write_all(b"\n(the rest was dropped)\n");
        }
        left -= kept as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_without_end_is_cut_and_its_writer_goes_on() {
        let text = "x".repeat(10_000);
        let mut kept = Vec::new();
        let mut from = text.as_bytes();
        copy(&mut from, &mut kept, 5000);
        assert!(from.is_empty());
        assert_eq!(String::from_utf8(kept).unwrap(), "x".repeat(5000) + "\n(the rest was dropped)\n");
    }

    #[test]
    fn a_log_ends_with_its_last_line() {
        let folder = tempfile::tempdir().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let log = VmmLog::start(folder.path(), reader, None).unwrap();
        writer.write_all(b"first\nlast \xff\n\n").unwrap();
        drop(writer);
        log.wait(Duration::from_secs(60));
        assert_eq!(log.tail().unwrap(), "last \u{fffd}");
    }
}
