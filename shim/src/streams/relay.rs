//! Copies bytes between a descriptor of the host and a stream of the guest.
//!
//! Each direction has a thread with blocking reads and writes. The descriptors are shared with other
//! processes, so they must not be made non-blocking, and regular files cannot be polled. Data that cannot be
//! written is not buffered, so a slow reader slows down the container and uses no memory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Ends;

/// Bytes moved at a time.
const CHUNK: usize = 32 * 1024;
/// Bytes written to a terminal at a time, to detect whether a slow reader reads.
const TERMINAL_CHUNK: usize = 512;
/// The most that a pipe may hold without a privilege (pipe(7)).
const PIPE_MAX: u64 = 1 << 20;
/// How often to check whether a reader reads.
const LOOK: Duration = Duration::from_millis(500);
/// How long the reader of a killed process may read nothing before the remaining output is discarded. Docker
/// waits for ten seconds.
pub const STALL: Duration = Duration::from_secs(4);
/// Stack of a relay's thread: the chunk is on the heap.
const STACK: usize = 64 * 1024;

mod requests {
    //! ioctl_tty(2), pipe(7).
    #![allow(missing_docs)]
    nix::ioctl_read_bad!(bytes_in_pipe, libc::FIONREAD, libc::c_int);
}

#[derive(Default)]
struct Progress {
    bytes: u64,
    ended: bool,
    /// Where the bytes go, until it is closed.
    target: Option<Arc<File>>,
}

impl Progress {
    /// Bytes that were passed on but not yet read, if the kernel reports them.
    fn waiting(&self) -> u64 {
        let mut waiting = 0;
        let Some(target) = &self.target else { return 0 };
        // SAFETY: the request stores one int in a live one, and the descriptor is open.
        let told = unsafe { requests::bytes_in_pipe(target.as_raw_fd(), &raw mut waiting) };
        told.ok().and_then(|_| u64::try_from(waiting).ok()).unwrap_or(0)
    }

    /// Enlarges the pipe for the remaining output up to `bytes`, so that nothing waits for its reader, which can
    /// read it later.
    fn make_room(&self, bytes: u64) {
        let Some(target) = &self.target else { return };
        // Not all pages of a pipe are full.
        let wanted = 2 * (self.waiting() + bytes.saturating_sub(self.bytes)).min(PIPE_MAX);
        let room = wanted.next_power_of_two().min(PIPE_MAX) as libc::c_int;
        // Fails if it is not a pipe.
        if fcntl(target, FcntlArg::F_GETPIPE_SZ).is_ok_and(|now| now < room) {
            let _ = fcntl(target, FcntlArg::F_SETPIPE_SZ(room));
        }
    }
}

/// The progress of an output.
#[derive(Clone, Default)]
pub struct OutputRelay(Arc<(Mutex<Progress>, Condvar)>);

impl OutputRelay {
    /// An output without data.
    fn ended() -> Self {
        let relay = OutputRelay::default();
        relay.advance(|progress| progress.ended = true);
        relay
    }

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

    /// Waits until `bytes` bytes were passed on, or no more can come, or the reader has read nothing for the time that
    /// `patience` returns, which is called repeatedly. If it returns none, there is no limit. `bytes` comes from the
    /// guest and is not trusted.
    pub fn finish(&self, bytes: u64, mut patience: impl FnMut() -> Option<Duration>) {
        let mut last = None;
        let mut since = Instant::now();
        while !self.wait_for(bytes, LOOK) {
            let now = {
                let progress = self.lock();
                progress.make_room(bytes);
                (progress.bytes, progress.waiting())
            };
            if last != Some(now) {
                (last, since) = (Some(now), Instant::now());
            }
            if patience().is_some_and(|patience| since.elapsed() >= patience) {
                return;
            }
        }
    }
}

/// Relays between the streams of a process in the guest and the host's ends. `streams` has none for those that are
/// `/dev/null`. Returns the outputs: stdout and stderr, or the terminal's.
///
/// # Errors
/// A stream is missing, or a thread could not be started.
pub fn start_relays(streams: Vec<UnixStream>, ends: Ends) -> io::Result<Vec<OutputRelay>> {
    let mut streams = streams.into_iter();
    let mut next = || streams.next().ok_or(io::Error::other("a stream is missing"));
    let (stdin, stdout, stderr) = match ends {
        Ends::Terminal { input, output, console: _ } => {
            let stream = next()?;
            if let Some(input) = input {
                relay_input(input, stream.try_clone()?, "stdin")?;
            }
            // Someone must read, so that the process does not wait.
            let output = output.map_or_else(|| File::options().write(true).open("/dev/null"), Ok)?;
            return Ok(vec![relay_output(stream, output, "terminal")?]);
        }
        Ends::Streams { stdin, stdout, stderr } => (stdin, stdout, stderr),
    };
    if let Some(stdin) = stdin {
        relay_input(stdin, next()?, "stdin")?;
    }
    let mut output = |end: Option<File>, name| match end {
        Some(end) => relay_output(next()?, end, name),
        None => Ok(OutputRelay::ended()),
    };
    Ok(vec![output(stdout, "stdout")?, output(stderr, "stderr")?])
}

/// Passes output of the guest on to `target`. If `target` fails, such as a pipe without a reader, the process in the
/// guest gets the error.
///
/// # Errors
/// If a thread cannot be started.
fn relay_output(mut stream: UnixStream, target: File, name: &str) -> io::Result<OutputRelay> {
    let relay = OutputRelay::default();
    let piece = if nix::unistd::isatty(&target).unwrap_or(false) { TERMINAL_CHUNK } else { CHUNK };
    let target = Arc::new(target);
    relay.lock().target = Some(target.clone());
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
            let written = chunk[..count].chunks(piece).try_for_each(|piece| {
                write_all(&target, piece)?;
                progress.advance(|progress| progress.bytes += piece.len() as u64);
                Ok::<_, io::Error>(())
            });
            if written.is_err() {
                break;
            }
        }
        drop(target);
        progress.lock().target = None;
        // The other end may be gone already.
        let _ = stream.shutdown(Shutdown::Both);
        progress.advance(|progress| progress.ended = true);
    })?;
    Ok(relay)
}

/// Passes input from `source` on to the guest until its end, then closes the guest's stdin.
///
/// # Errors
/// If a thread cannot be started.
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
fn write_all(mut target: &File, mut bytes: &[u8]) -> io::Result<()> {
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
    // The next read or write returns the error.
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
    fn a_pipe_gets_room_for_the_rest() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let relay = relay_output(host, File::from(OwnedFd::from(writer)), "t").unwrap();
        let data = vec![b'x'; 300_000];
        let expected = data.clone();
        thread::spawn(move || guest.write_all(&data).unwrap());
        relay.finish(300_000, || None);
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert!(got == expected, "{} bytes", got.len());
    }

    /// A pipe that holds a page, whose size nobody can change: a socket.
    #[test]
    fn a_reader_that_takes_something_now_and_then_is_waited_for() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let relay = relay_output(host, File::from(OwnedFd::from(writer)), "t").unwrap();
        let total = 2_000_000;
        thread::spawn(move || guest.write_all(&vec![b'x'; total]).unwrap());
        let taken = thread::spawn(move || {
            let mut taken = 0;
            while taken < total {
                thread::sleep(Duration::from_millis(200));
                taken += reader.read(&mut vec![0; 200_000]).unwrap();
            }
            // From here on nothing is taken.
            (reader, taken)
        });
        relay.finish(total as u64, || Some(Duration::from_secs(2)));
        assert_eq!(taken.join().unwrap().1, total);
    }

    #[test]
    fn a_reader_that_takes_nothing_is_given_up() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let (_reader, writer) = UnixStream::pair().unwrap();
        let relay = relay_output(host, File::from(OwnedFd::from(writer)), "t").unwrap();
        thread::spawn(move || guest.write_all(&vec![b'x'; 2_000_000]));
        let mut asked = 0;
        relay.finish(2_000_000, || {
            asked += 1;
            (asked > 2).then_some(Duration::ZERO)
        });
        assert_eq!(asked, 3);
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
