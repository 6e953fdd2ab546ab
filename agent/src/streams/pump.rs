//! Copies between a process's standard streams and the host's connections.
//!
//! Each direction has one buffer of bounded size and reads only when that is empty, so a
//! slow reader slows the writer down and nothing is kept in memory.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use super::{Claim, Connection};

/// The size of one direction's buffer.
const BUFFER_SIZE: usize = 32 * 1024;
/// How long an ended stream waits for the host to close its side.
const LINGER: Duration = Duration::from_secs(5);
/// After CloseStdin, data that is on its way may take this long between two reads.
const STDIN_DRAIN: Duration = Duration::from_millis(100);

/// How much a process has written to one of its streams.
#[derive(Default)]
pub struct OutputCount {
    taken: AtomicU64,
    /// The agent's end while the pump holds it.
    source: Mutex<Option<RawFd>>,
}

impl OutputCount {
    /// Counts what is read from `source` from now on.
    pub fn of(source: &impl AsRawFd) -> Arc<Self> {
        Arc::new(Self { taken: AtomicU64::new(0), source: Mutex::new(Some(source.as_raw_fd())) })
    }

    fn add(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The pump is about to close its end.
    pub fn finish(&self) {
        *self.source.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
    }

    /// True when the pump has read to the end.
    pub fn finished(&self) -> bool {
        self.source.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).is_none()
    }

    /// The bytes taken so far and those that stand in the pipe.
    pub fn total(&self) -> u64 {
        let source = self.source.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut waiting: libc::c_int = 0;
        if let Some(fd) = *source {
            // SAFETY: FIONREAD stores one int. The pump holds the descriptor open until it
            // has taken it out of `source`, whose lock is held here.
            if unsafe { libc::ioctl(fd, libc::FIONREAD, &mut waiting) } != 0 {
                waiting = 0;
            }
        }
        self.taken.load(Ordering::Relaxed) + waiting.max(0) as u64
    }
}

/// Marks the count finished whichever way the pump ends, aborting included. It is declared
/// after the source, so that it is dropped first.
struct Finish(Arc<OutputCount>);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// Carries what the process writes to the host, until the end of either.
pub async fn output(source: pipe::Receiver, count: Arc<OutputCount>, mut claim: Claim) {
    let mut source = source;
    let _finish = Finish(count.clone());
    let Some(mut connection) = claim.connection().await else { return };
    let copied = copy(&mut source, &mut connection, |bytes| count.add(bytes)).await;
    match copied {
        Ok(()) => linger(connection).await,
        // Dropping the source gives the process EPIPE, as a closed pipe would.
        Err(error) => log::debug!("an output stream broke: {error}"),
    }
}

/// Carries what the host sends to the process's stdin, until the end of either or until
/// `close` says that it is over.
pub async fn input(mut sink: pipe::Sender, close: Arc<Notify>, mut claim: Claim) {
    let connection = tokio::select! {
        connection = claim.connection() => connection,
        () = close.notified() => None,
    };
    let Some(mut connection) = connection else { return };
    let closed = tokio::select! {
        result = copy(&mut connection, &mut sink, |_| ()) => {
            if let Err(error) = result {
                log::debug!("an input stream broke: {error}");
            }
            false
        }
        () = close.notified() => true,
    };
    if closed {
        drain(&mut connection, &mut sink).await;
    }
}

/// What the host sent before it asked to close stdin may still be on its way.
async fn drain(connection: &mut Connection, sink: &mut pipe::Sender) {
    let mut buffer = vec![0; BUFFER_SIZE];
    while let Ok(Ok(read)) = tokio::time::timeout(STDIN_DRAIN, connection.read(&mut buffer)).await {
        if read == 0 || sink.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Copies until the source ends. Only what has been read is reported to `count`.
async fn copy<R, W>(source: &mut R, sink: &mut W, count: impl Fn(usize)) -> io::Result<()>
where
    R: AsyncRead + Unpin + ?Sized,
    W: AsyncWrite + Unpin + ?Sized,
{
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let read = source.read(&mut buffer).await?;
        if read == 0 {
            return sink.flush().await;
        }
        count(read);
        sink.write_all(&buffer[..read]).await?;
    }
}

/// Ends our direction and gives the host time to read to the end before the connection goes.
async fn linger(mut connection: Connection) {
    if connection.shutdown().await.is_ok() {
        let mut rest = [0; 64];
        let _ = tokio::time::timeout(LINGER, async {
            while matches!(connection.read(&mut rest).await, Ok(1..)) {}
        })
        .await;
    }
}

/// The agent's end of a pseudo-terminal.
pub struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    /// Takes the master side over.
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        super::stdio::set_nonblocking(&master)?;
        // SAFETY: the descriptor is owned and stays the same until the AsyncFd is dropped.
        Ok(Self(unsafe { AsyncFd::register(master) }?))
    }

    /// Sets the size in characters.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads one winsize from a valid reference.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCSWINSZ, &size) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| nix::unistd::read(fd.get_ref(), buffer).map_err(io::Error::from)) {
                // The last process has closed its side: the end, as for a hung-up line.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| nix::unistd::write(fd.get_ref(), bytes).map_err(io::Error::from)) {
                Ok(Ok(written)) => bytes = &bytes[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

impl AsRawFd for Terminal {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Carries both directions of a terminal. Ends when the terminal hangs up, or when the
/// host's connection breaks; then dropping the master hangs the terminal up.
pub async fn terminal(terminal: Arc<Terminal>, count: Arc<OutputCount>, mut claim: Claim) {
    let _finish = Finish(count.clone());
    let Some(connection) = claim.connection().await else { return };
    let (from_host, mut to_host) = tokio::io::split(connection);
    let ended = {
        let output = terminal_output(&terminal, &mut to_host, &count);
        let input = terminal_input(&terminal, from_host);
        tokio::pin!(output, input);
        tokio::select! {
            ended = &mut output => ended,
            // The host sends nothing more, but may still listen.
            () = &mut input => output.await,
        }
    };
    match ended {
        Ok(()) => {
            let _ = to_host.shutdown().await;
        }
        Err(error) => log::debug!("a terminal stream broke: {error}"),
    }
}

async fn terminal_output(
    terminal: &Terminal,
    to_host: &mut WriteHalf<Connection>,
    count: &OutputCount,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        let read = terminal.read(&mut buffer).await?;
        if read == 0 {
            return to_host.flush().await;
        }
        count.add(read);
        to_host.write_all(&buffer[..read]).await?;
    }
}

async fn terminal_input(terminal: &Terminal, mut from_host: ReadHalf<Connection>) {
    let mut buffer = vec![0; BUFFER_SIZE];
    while let Ok(read @ 1..) = from_host.read(&mut buffer).await {
        if let Err(error) = terminal.write_all(&buffer[..read]).await {
            return log::debug!("a terminal takes no more input: {error}");
        }
    }
}

/// Reads a terminal that nobody watches, so that its processes are not held up.
pub async fn discard_terminal(terminal: Arc<Terminal>, count: Arc<OutputCount>) {
    let _finish = Finish(count.clone());
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = terminal.read(&mut buffer).await {
        count.add(read);
    }
}
