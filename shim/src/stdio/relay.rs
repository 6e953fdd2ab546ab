//! Moves bytes between a descriptor of the host and a stream of the guest.
//!
//! A thread for each direction, with reads and writes that block: the descriptors are shared with
//! other processes, so they must not be made non-blocking, and files cannot be polled. What does
//! not fit stays where it is, so that a slow reader slows the container and costs no memory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes moved at a time.
const CHUNK: usize = 32 * 1024;
/// Stack of a relay's thread: the chunk is on the heap.
const STACK: usize = 64 * 1024;

#[derive(Default)]
struct Progress {
    bytes: u64,
    ended: bool,
}

/// How far an output has come.
#[derive(Clone, Default)]
pub struct OutputRelay(Arc<(Mutex<Progress>, Condvar)>);

impl OutputRelay {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn advance(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.0.1.notify_all();
    }

    /// Waits until `bytes` bytes were passed on, or no more can come, but no longer than `timeout`; returns
    /// whether that is so now.
    pub fn wait_for(&self, bytes: u64, timeout: Duration) -> bool {
        let waits = |progress: &mut Progress| progress.bytes < bytes && !progress.ended;
        let result = self.0.1.wait_timeout_while(self.lock(), timeout, waits);
        !result.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// Relays between the streams of a process in the guest and this process's standard streams, or a
/// terminal. Returns the outputs: stdout and stderr, or the terminal's.
///
/// # Errors
/// A stream is missing, or a thread could not be started.
pub fn start_relays(streams: Vec<UnixStream>, terminal: Option<File>) -> io::Result<Vec<OutputRelay>> {
    let mut streams = streams.into_iter();
    let mut next = || streams.next().ok_or(io::Error::other("a stream is missing"));
    if let Some(terminal) = terminal {
        let stream = next()?;
        relay_input(terminal.try_clone()?, stream.try_clone()?, "stdin")?;
        return Ok(vec![relay_output(stream, terminal, "terminal")?]);
    }
    let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from);
    relay_input(own(io::stdin().as_fd())?, next()?, "stdin")?;
    let stdout = relay_output(next()?, own(io::stdout().as_fd())?, "stdout")?;
    let stderr = relay_output(next()?, own(io::stderr().as_fd())?, "stderr")?;
    Ok(vec![stdout, stderr])
}

/// Passes what the guest writes on to `target`. When `target` takes no more, as a pipe whose
/// reader is gone, the guest's process learns of it.
///
/// # Errors
/// What starting a thread says.
fn relay_output(mut stream: UnixStream, mut target: File, name: &str) -> io::Result<OutputRelay> {
    let relay = OutputRelay::default();
    let progress = relay.clone();
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(move || {
        let mut chunk = vec![0; CHUNK];
        loop {
            let count = match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            if write_all(&mut target, &chunk[..count]).is_err() {
                break;
            }
            progress.advance(|progress| progress.bytes += count as u64);
        }
        // The other end may be gone already.
        let _ = stream.shutdown(Shutdown::Both);
        progress.advance(|progress| progress.ended = true);
    })?;
    Ok(relay)
}

/// Passes what comes from `source` on to the guest, up to its end, then ends the guest's stdin.
///
/// # Errors
/// What starting a thread says.
fn relay_input(mut source: File, mut stream: UnixStream, name: &str) -> io::Result<()> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(move || {
        let mut chunk = vec![0; CHUNK];
        while let Ok(count) = read_some(&mut source, &mut chunk) {
            if count == 0 || stream.write_all(&chunk[..count]).is_err() {
                break;
            }
        }
        let _ = stream.shutdown(Shutdown::Write);
    })?;
    Ok(())
}

/// Reads, waiting if the descriptor was made non-blocking by someone else.
fn read_some(source: &mut File, chunk: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(source, PollFlags::POLLIN),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Writes everything, waiting if the descriptor was made non-blocking by someone else.
fn write_all(target: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match target.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(target, PollFlags::POLLOUT),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait(file: &File, flags: PollFlags) {
    // An error shows itself at the next read or write.
    let _ = poll(&mut [PollFd::new(file.as_fd(), flags)], PollTimeout::NONE);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    /// No test takes as long.
    const HANG: Duration = Duration::from_secs(60);

    #[test]
    fn output_arrives_and_is_counted() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let relay = relay_output(host, File::from(OwnedFd::from(writer)), "t").unwrap();
        guest.write_all(b"hello").unwrap();
        assert!(relay.wait_for(5, HANG));
        let mut got = [0; 5];
        reader.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        drop(guest);
        assert!(relay.wait_for(100, HANG));
    }

    #[test]
    fn a_closed_reader_ends_the_guests_stream() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let relay = relay_output(host, File::from(OwnedFd::from(writer)), "t").unwrap();
        guest.write_all(b"x").unwrap();
        assert!(relay.wait_for(1, HANG));
        assert!(guest.write_all(b"x").is_err());
    }

    #[test]
    fn the_end_of_input_is_passed_on() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        relay_input(File::from(OwnedFd::from(reader)), host, "t").unwrap();
        writer.write_all(b"typed").unwrap();
        drop(writer);
        let mut got = String::new();
        guest.read_to_string(&mut got).unwrap();
        assert_eq!(got, "typed");
    }
}
