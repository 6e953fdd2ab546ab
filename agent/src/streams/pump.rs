//! Copies data between a process's standard streams and the host's connections.
//!
//! Each direction has one bounded buffer and reads only when it is empty. So a slow reader slows down the
//! writer, and no more data is kept in memory.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use super::terminal::{Ended, Terminal};
use super::{Claim, Connection};

/// The size of one direction's buffer.
const BUFFER_SIZE: usize = 32 * 1024;
/// More than a terminal holds: the kernel has 8 KiB and a line discipline's 4 KiB.
const REST_MAX: usize = 64 * 1024;
/// How long an ended stream waits for the host to close its side.
const LINGER: Duration = Duration::from_secs(5);
/// After CloseStdin, data that is on its way may take this long between two reads.
const STDIN_DRAIN: Duration = Duration::from_millis(100);
/// CloseStdin may overtake the connection by this much.
const STDIN_CONNECT: Duration = Duration::from_secs(1);

/// How much a process has written to one of its streams.
#[derive(Default)]
pub struct OutputCount {
    taken: AtomicU64,
    /// The agent's end while the pump holds it.
    source: Mutex<Option<RawFd>>,
    /// Everything that the process wrote has been counted.
    settled: Notify,
}

impl OutputCount {
    /// Counts what is read from `source` from now on.
    pub fn of(source: &impl AsRawFd) -> Arc<Self> {
        let source = Mutex::new(Some(source.as_raw_fd()));
        Arc::new(Self { taken: AtomicU64::new(0), source, settled: Notify::new() })
    }

    fn add(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The pump is about to close its end.
    pub fn finish(&self) {
        *self.source.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
        self.settle();
    }

    /// The pump has counted all that the process, which has ended, wrote.
    fn settle(&self) {
        // Kept for one that begins to wait later.
        self.settled.notify_one();
    }

    /// Waits until all is counted that the process, which has ended, wrote to its terminal.
    pub async fn settled(&self) {
        self.settled.notified().await;
    }

    /// True when the pump has read everything.
    #[cfg(test)]
    fn finished(&self) -> bool {
        self.source.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).is_none()
    }

    /// The bytes read so far and those still in the pipe.
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

/// Copies output of the process to the host, until one of them ends.
pub async fn output(source: pipe::Receiver, count: Arc<OutputCount>, mut claim: Claim) {
    let mut source = source;
    let finish = Finish(count.clone());
    let Some(mut connection) = claim.connection().await else { return };
    let copied = copy(&mut source, &mut connection, |bytes| count.add(bytes)).await;
    drop(finish);
    drop(source);
    match copied {
        Ok(()) => linger(connection).await,
        // Dropping the source gives the process EPIPE, as a closed pipe would.
        Err(error) => log::debug!("an output stream failed: {error}"),
    }
}

/// Copies data of the host to the process's stdin, until one of them ends or `close` is set; data already
/// sent still arrives.
pub async fn input(mut sink: pipe::Sender, close: Arc<Notify>, mut claim: Claim) {
    let (connection, mut closing) = tokio::select! {
        biased;
        connection = claim.connection() => (connection, false),
        () = close.notified() => {
            (tokio::time::timeout(STDIN_CONNECT, claim.connection()).await.ok().flatten(), true)
        }
    };
    let Some(mut connection) = connection else { return };
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        // Only waiting for data may be cut short: what has been read must be written.
        let read = if closing {
            tokio::time::timeout(STDIN_DRAIN, connection.read(&mut buffer)).await.unwrap_or(Ok(0))
        } else {
            tokio::select! {
                biased;
                read = connection.read(&mut buffer) => read,
                () = close.notified() => {
                    closing = true;
                    continue;
                }
            }
        };
        match read {
            Ok(0) => return,
            Ok(read) => {
                if let Err(error) = sink.write_all(&buffer[..read]).await {
                    return log::debug!("stdin takes no more: {error}");
                }
            }
            Err(error) => return log::debug!("an input stream failed: {error}"),
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

/// Shuts down this direction and gives the host time to read everything before the connection is closed.
async fn linger(mut connection: Connection) {
    if connection.shutdown().await.is_ok() {
        let mut rest = [0; 64];
        let _ = tokio::time::timeout(LINGER, async {
            while matches!(connection.read(&mut rest).await, Ok(1..)) {}
        })
        .await;
    }
}

/// Copies both directions of a terminal. Ends when the terminal hangs up, or when the host's connection fails;
/// dropping the master then hangs up the terminal.
pub async fn terminal(terminal: Arc<Terminal>, count: Arc<OutputCount>, ended: Arc<Ended>, mut claim: Claim) {
    let _finish = Finish(count.clone());
    let Some(connection) = claim.connection().await else { return };
    let (from_host, mut to_host) = tokio::io::split(connection);
    let result = {
        let output = terminal_output(&terminal, &mut to_host, &count, &ended);
        let input = terminal_input(&terminal, from_host);
        tokio::pin!(output, input);
        tokio::select! {
            result = &mut output => result,
            // The host sends nothing more, but may still listen.
            () = &mut input => output.await,
        }
    };
    match result {
        Ok(()) => {
            let _ = to_host.shutdown().await;
        }
        Err(error) => log::debug!("a terminal stream failed: {error}"),
    }
}

async fn terminal_output(
    terminal: &Terminal,
    to_host: &mut WriteHalf<Connection>,
    count: &OutputCount,
    ended: &Ended,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_SIZE];
    // Whether the process lives, as far as has been looked.
    let mut lives = true;
    loop {
        let read = tokio::select! {
            read = terminal.read(&mut buffer, ended) => Some(read?),
            () = ended.wait(), if lives => None,
        };
        let Some(read) = read else {
            lives = false;
            to_host.write_all(&take_rest(terminal, count)).await?;
            continue;
        };
        if read == 0 {
            return to_host.flush().await;
        }
        count.add(read);
        let rest = {
            let write = to_host.write_all(&buffer[..read]);
            tokio::pin!(write);
            // If the host does not read, the remaining output is still counted, so that the end of the process can be
            // reported.
            tokio::select! {
                written = &mut write => { written?; None }
                () = ended.wait(), if lives => {
                    lives = false;
                    let rest = take_rest(terminal, count);
                    write.await?;
                    Some(rest)
                }
            }
        };
        if let Some(rest) = rest {
            to_host.write_all(&rest).await?;
        }
    }
}

/// Reads the remaining output of the terminal when its process has ended. Other processes may continue to write.
fn take_rest(terminal: &Terminal, count: &OutputCount) -> Vec<u8> {
    let mut rest = vec![0; REST_MAX];
    let mut length = 0;
    while length < REST_MAX {
        match terminal.read_now(&mut rest[length..]) {
            0 => break,
            read => length += read,
        }
    }
    rest.truncate(length);
    count.add(length);
    count.settle();
    rest
}

async fn terminal_input(terminal: &Terminal, mut from_host: ReadHalf<Connection>) {
    let mut buffer = vec![0; BUFFER_SIZE];
    while let Ok(read @ 1..) = from_host.read(&mut buffer).await {
        if let Err(error) = terminal.write_all(&buffer[..read]).await {
            return log::debug!("a terminal takes no more input: {error}");
        }
    }
}

/// Reads a terminal without a client, so that its processes do not block.
pub async fn discard_terminal(terminal: Arc<Terminal>, count: Arc<OutputCount>, ended: Arc<Ended>) {
    let _finish = Finish(count.clone());
    let mut buffer = vec![0; 4096];
    loop {
        tokio::select! {
            read = terminal.read(&mut buffer, &ended) => match read {
                Ok(read @ 1..) => count.add(read),
                _ => return,
            },
            () = ended.wait() => break,
        }
    }
    take_rest(&terminal, &count);
    while let Ok(read @ 1..) = terminal.read(&mut buffer, &ended).await {
        count.add(read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streams::StreamTable;
    use std::io::Write;
    use std::os::fd::OwnedFd;
    use tokio::io::DuplexStream;

    /// A pipe with the agent's end in its nonblocking form.
    fn new_pipe(ours_reads: bool) -> (OwnedFd, OwnedFd) {
        let (read, write) = nix::unistd::pipe().unwrap();
        let (ours, theirs) = if ours_reads { (read, write) } else { (write, read) };
        crate::streams::stdio::set_nonblocking(&ours).unwrap();
        (ours, theirs)
    }

    /// A claim, and the host's end of its connection, which buffers `size` bytes.
    async fn connected(table: &StreamTable, token: u64, size: usize) -> (Claim, DuplexStream) {
        let claim = table.claim("token", token).unwrap();
        let (mut host, agent) = tokio::io::duplex(size);
        let table = table.clone();
        tokio::spawn(async move { table.take(Box::new(agent)).await });
        host.write_all(&token.to_le_bytes()).await.unwrap();
        (claim, host)
    }

    fn writer(fd: OwnedFd) -> std::fs::File {
        std::fs::File::from(fd)
    }

    #[tokio::test]
    async fn output_arrives_whole_and_is_counted() {
        let (ours, theirs) = new_pipe(true);
        let source = pipe::Receiver::from_owned_fd_unchecked(ours).unwrap();
        let count = OutputCount::of(&source);
        let (claim, mut host) = connected(&StreamTable::new(), 1, 16).await;
        let data: Vec<u8> = (0..300_000_u32).map(|i| i as u8).collect();
        let expected = data.clone();
        let process = std::thread::spawn(move || writer(theirs).write_all(&data).unwrap());
        tokio::spawn(output(source, count.clone(), claim));
        let mut got = Vec::new();
        host.read_to_end(&mut got).await.unwrap();
        process.join().unwrap();
        tokio::task::yield_now().await;
        assert!(got == expected && count.total() == 300_000 && count.finished());
    }

    #[tokio::test]
    async fn a_slow_host_holds_the_process_up() {
        let (ours, theirs) = new_pipe(true);
        let source = pipe::Receiver::from_owned_fd_unchecked(ours).unwrap();
        let count = OutputCount::of(&source);
        let (claim, host) = connected(&StreamTable::new(), 2, 16).await;
        tokio::spawn(output(source, count.clone(), claim));
        crate::streams::stdio::set_nonblocking(&theirs).unwrap();
        let mut process = writer(theirs);
        let mut written = 0;
        for _ in 0..100 {
            written += process.write(&[0; 4096]).unwrap_or(0);
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        assert!(written <= 65_536 + BUFFER_SIZE, "{written} bytes were taken");
        assert_eq!(count.total(), written as u64, "what stands in the pipe counts");
        drop(host);
        // The agent notices at its next write, and closes the pipe.
        for _ in 0..1000 {
            if count.finished() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(process.write(&[0]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn input_ends_with_the_hosts_half() {
        let (ours, theirs) = new_pipe(false);
        let sink = pipe::Sender::from_owned_fd_unchecked(ours).unwrap();
        let (claim, mut host) = connected(&StreamTable::new(), 3, 1024).await;
        tokio::spawn(input(sink, Arc::new(Notify::new()), claim));
        let process = std::thread::spawn(move || {
            let mut got = Vec::new();
            std::io::Read::read_to_end(&mut std::fs::File::from(theirs), &mut got).map(|_| got)
        });
        host.write_all(&[b'x'; 100_000]).await.unwrap();
        host.shutdown().await.unwrap();
        assert_eq!(
            tokio::task::spawn_blocking(|| process.join()).await.unwrap().unwrap().unwrap().len(),
            100_000
        );
    }

    #[tokio::test]
    async fn closing_stdin_lets_what_is_under_way_arrive() {
        let (ours, theirs) = new_pipe(false);
        let sink = pipe::Sender::from_owned_fd_unchecked(ours).unwrap();
        let close = Arc::new(Notify::new());
        let (claim, mut host) = connected(&StreamTable::new(), 4, 1024).await;
        host.write_all(b"last words").await.unwrap();
        close.notify_one();
        input(sink, close, claim).await;
        let mut got = String::new();
        std::io::Read::read_to_string(&mut std::fs::File::from(theirs), &mut got).unwrap();
        assert_eq!(got, "last words");
    }

    #[tokio::test]
    async fn what_a_terminal_holds_at_the_end_is_counted_before_a_slow_host_takes_it() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let master = Arc::new(Terminal::new(pty.master).unwrap());
        let count = OutputCount::of(&*master);
        let (claim, mut host) = connected(&StreamTable::new(), 6, 16).await;
        let ended = Arc::new(Ended::default());
        tokio::spawn(terminal(master, count.clone(), ended.clone(), claim));
        crate::streams::stdio::set_nonblocking(&pty.slave).unwrap();
        let mut process = std::fs::File::from(pty.slave);
        let mut written = 0;
        // Until nothing fits in any more, wherever it stands.
        let mut full = 0;
        while full < 20 {
            match process.write(&[b'x'; 512]) {
                Ok(count) => (written, full) = (written + count, 0),
                Err(_) => full += 1,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(process);
        ended.set();
        tokio::time::timeout(Duration::from_secs(60), count.settled()).await.unwrap();
        assert_eq!(count.total(), written as u64);
        let mut got = Vec::new();
        host.read_to_end(&mut got).await.unwrap();
        assert_eq!(got.len(), written);
    }

    #[tokio::test]
    async fn a_terminal_carries_both_ways_and_ends_at_the_hangup() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let master = Arc::new(Terminal::new(pty.master).unwrap());
        master.resize(12, 34).unwrap();
        let count = OutputCount::of(&*master);
        let (claim, mut host) = connected(&StreamTable::new(), 5, 1024).await;
        let ended = Arc::new(Ended::default());
        let task = tokio::spawn(terminal(master, count.clone(), ended.clone(), claim));
        host.write_all(b"in\n").await.unwrap();
        let mut process = std::fs::File::from(pty.slave);
        let mut line = [0; 3];
        let mut reader = process.try_clone().unwrap();
        let line = tokio::task::spawn_blocking(move || {
            std::io::Read::read_exact(&mut reader, &mut line).map(|()| line)
        });
        assert_eq!(&line.await.unwrap().unwrap(), b"in\n");
        process.write_all(b"out\n").unwrap();
        let name = nix::unistd::ttyname(&process).unwrap();
        drop(process);
        // Closed for a while, and opened again.
        tokio::time::sleep(Duration::from_millis(30)).await;
        let mut process = std::fs::File::options().write(true).open(name).unwrap();
        process.write_all(b"more\n").unwrap();
        ended.set();
        drop(process);
        let mut got = String::new();
        host.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "in\r\nout\r\nmore\r\n", "the echo, and the output with the terminal's line ends");
        drop(host);
        task.await.unwrap();
        assert_eq!(count.total(), 15);
    }
}
