//! The agent's end of a pseudo-terminal, for the event loop.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, Notify};

/// The longest poll interval for a terminal that no process has open.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Whether the process that a terminal was made for has ended.
#[derive(Default)]
pub struct Ended {
    flag: AtomicBool,
    notify: Notify,
}

impl Ended {
    /// It has.
    pub fn set(&self) {
        self.flag.store(true, Ordering::Relaxed);
        self.notify.notify_waiters();
    }

    /// Waits until it has.
    pub async fn wait(&self) {
        loop {
            let notified = self.notify.notified();
            tokio::pin!(notified);
            // Before the flag is read, so that no end is missed.
            notified.as_mut().enable();
            if self.flag.load(Ordering::Relaxed) {
                return;
            }
            notified.await;
        }
    }

    /// Waits for a while, or until it has; says whether it has.
    async fn within(&self, time: Duration) -> bool {
        let notified = self.notify.notified();
        if !self.flag.load(Ordering::Relaxed) {
            let _ = tokio::time::timeout(time, notified).await;
        }
        self.flag.load(Ordering::Relaxed)
    }
}

/// The agent's end of a pseudo-terminal. The event loop watches a descriptor of its own for
/// each direction.
pub struct Terminal {
    master: OwnedFd,
    reader: Mutex<AsyncFd<OwnedFd>>,
    writer: AsyncFd<OwnedFd>,
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned and stays the same until the AsyncFd is dropped.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

impl Terminal {
    /// Takes the master side over.
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        super::stdio::set_nonblocking(&master)?;
        let reader = Mutex::new(register(master.try_clone()?)?);
        let writer = register(master.try_clone()?)?;
        Ok(Self { master, reader, writer })
    }

    /// Sets the size in characters.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads one winsize from a valid reference.
        match unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Reads what the terminal's processes write; 0 is the end.
    ///
    /// While no process has the terminal open, the kernel says EIO. That is not the end as
    /// long as the first process lives: systemd closes its console and opens it again.
    pub async fn read(&self, buffer: &mut [u8], ended: &Ended) -> io::Result<usize> {
        let mut pause = Duration::from_millis(2);
        let mut last = false;
        let mut reader = self.reader.lock().await;
        loop {
            match read_some(&reader, buffer).await {
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {
                    if last {
                        return Ok(0);
                    }
                    // What was written just before the end is still to be read.
                    last = ended.within(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                    // The event loop treats a hang-up as final; a new registration clears it.
                    *reader = register(self.master.try_clone()?)?;
                }
                result => return result,
            }
        }
    }

    /// Reads the data that is in the terminal now. If a process has ended, this is all of its output, because the kernel
    /// passes on everything before it reports that there is no data.
    pub fn read_now(&self, buffer: &mut [u8]) -> usize {
        loop {
            match nix::unistd::read(&self.master, buffer) {
                Err(nix::Error::EINTR) => {}
                result => return result.unwrap_or(0),
            }
        }
    }

    /// Writes as if it were typed.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.writer.writable().await?;
            let hung_up = ready.ready().is_write_closed();
            match ready.try_io(|fd| nix::unistd::write(fd.get_ref(), bytes).map_err(io::Error::from)) {
                Ok(Ok(written)) => bytes = &bytes[written..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                // After a hang-up the event loop no longer reports when there is room.
                Err(_would_block) if hung_up => tokio::time::sleep(PAUSE_MAX).await,
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

async fn read_some(reader: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = reader.readable().await?;
        match ready.try_io(|fd| nix::unistd::read(fd.get_ref(), buffer).map_err(io::Error::from)) {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

impl AsRawFd for Terminal {
    fn as_raw_fd(&self) -> RawFd {
        self.master.as_raw_fd()
    }
}
