//! A VMM process and its control socket.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, PipeReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{iter, thread};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockType, UnixAddr, getsockname, getsockopt, sockopt};
use pouch_protocol::AGENT_PORT;
use pouch_vmm_api::config::{DiskConfig, NetworkConfig};
use pouch_vmm_api::control::{Answer, Command, ControlSocket, Message, Request};
use pouch_vmm_api::exit::ExitReason;
use pouch_vmm_api::spawn::{JailedChild, Spawn, SpawnError};

use super::vm_files::{Files, FilesError, VmDescription};
use super::vmm_log::VmmLog;
use crate::failure::printable;

/// Timeout of a VMM's response. It is long because the host may be overloaded; it is reached if the VMM is stopped or
/// taken over by its guest.
const ANSWER: Duration = Duration::from_secs(120);
/// How long a VMM may take to end by itself before it is killed.
const END_GRACE: Duration = Duration::from_secs(5);
/// How long to wait for the last message of a VMM that has ended.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);
/// The shortest time to wait for the agent.
const LEAST_TRY: Duration = Duration::from_millis(100);

/// A VM could not be started, or does not respond.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A file that it needs could not be opened.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The socket or the thread for its messages could not be created.
    #[error("control socket setup failed")]
    Messages(#[source] io::Error),
    /// The VMM's process could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The VM ended.
    #[error("the VM ended: {0}")]
    Ended(ExitReason),
    /// The VMM exited unexpectedly.
    #[error("the VMM exited unexpectedly; the last line of its log: {0}")]
    Gone(String),
    /// The VMM runs, but does not respond.
    #[error("the VMM did not respond within {} s; check whether it is stopped or the host is overloaded", .0.as_secs())]
    Silent(Duration),
    /// The VMM refuses.
    #[error("{0}")]
    Refused(String),
}

type Reply = Result<(Answer, Vec<OwnedFd>), VmError>;

/// A pending connection.
pub struct Connecting {
    answer: Receiver<Reply>,
    /// How long the VMM may take for its answer.
    limit: Duration,
}

struct Shared {
    pending: Mutex<HashMap<u64, Sender<Reply>>>,
    /// Set when the VMM is gone.
    ended: Mutex<Option<Option<ExitReason>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The longest time, of all threads of a process, that a thread was runnable but not running: the second field of
/// `/proc/PID/task/TID/schedstat`, in nanoseconds. A kernel without such statistics does not have the file.
fn waited_for_cpu(pid: i32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let waited = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse().ok()
    });
    Duration::from_nanos(waited.max().unwrap_or(0))
}

/// A running VMM.
pub struct Vm {
    child: JailedChild,
    socket: Arc<ControlSocket>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
    log: VmmLog,
    writable_disk: bool,
}

/// A VMM that was started, and that nobody listens to yet.
pub struct StartedVm {
    child: JailedChild,
    socket: ControlSocket,
    log: PipeReader,
    console: Option<PipeReader>,
    /// The directory of the files for log and console.
    directory: PathBuf,
    writable_disk: bool,
}

impl StartedVm {
    /// Starts a VMM, which boots its guest. Must be called while the process has one thread, and by a thread that
    /// lives as long as the VM.
    ///
    /// # Errors
    /// [`VmError`] names the file or the step.
    pub fn start(description: &VmDescription<'_>) -> Result<Self, VmError> {
        let files = Files::open(description)?;
        let (ours, theirs) = ControlSocket::pair().map_err(VmError::Messages)?;
        let config_fd = files.config.as_raw_fd().to_string();
        let control_fd = theirs.as_raw_fd().to_string();
        let (log, log_writer) = files.log;
        let mut inherited: Vec<BorrowedFd<'_>> = files.files.iter().map(AsFd::as_fd).collect();
        inherited.extend([files.config.as_fd(), theirs.as_fd()]);
        let spawn = Spawn {
            program: &files.vmm,
            arguments: &["--config-fd", &config_fd, "--control-fd", &control_fd],
            files: &inherited,
            log: log_writer.as_fd(),
            cgroup: description.cgroup.map(AsFd::as_fd),
        };
        let child = spawn.spawn()?;
        // The other ends are closed here, or the pipes would never end.
        Ok(StartedVm {
            child,
            socket: ours,
            log,
            console: files.console,
            directory: description.directory.to_owned(),
            writable_disk: description.disks.iter().any(|disk| !disk.read_only),
        })
    }

    /// The VMM's process.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Listens to the VMM, in threads that the calling thread starts. `ended` is called when the VM has ended, with
    /// the reason if the VMM gave one.
    ///
    /// # Errors
    /// [`VmError::Messages`] if a file or a thread cannot be created; the VMM is gone then.
    pub fn attend(self, ended: impl FnOnce(Option<ExitReason>) + Send + 'static) -> Result<Vm, VmError> {
        let socket = Arc::new(self.socket);
        let shared = Arc::new(Shared { pending: Mutex::default(), ended: Mutex::new(None) });
        let (reader, reader_shared) = (socket.clone(), shared.clone());
        let started = VmmLog::start(&self.directory, self.log, self.console).and_then(|log| {
            let listen = move || ended(read_messages(&reader, &reader_shared));
            thread::Builder::new().name("vmm".to_owned()).stack_size(256 * 1024).spawn(listen)?;
            Ok(log)
        });
        match started {
            Ok(log) => Ok(Vm {
                child: self.child,
                socket,
                shared,
                next_id: AtomicU64::new(1),
                log,
                writable_disk: self.writable_disk,
            }),
            Err(error) => {
                self.child.kill();
                Err(VmError::Messages(error))
            }
        }
    }
}

impl Vm {
    /// The VMM's process.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Whether the guest can write to a disk that it has had from its boot.
    pub fn has_writable_disk(&self) -> bool {
        self.writable_disk
    }

    /// Asks the VMM and waits for its answer.
    ///
    /// # Errors
    /// [`VmError`] if it refuses or is gone.
    pub fn ask(&self, command: Command) -> Result<(Answer, Vec<OwnedFd>), VmError> {
        self.ask_with(command, &[])
    }

    /// Gives the VM a network interface over a tap device; returns the number of its virtio device. With `vhost`, the
    /// host's kernel moves the frames.
    ///
    /// # Errors
    /// [`VmError`] if the VMM refuses or is gone.
    pub fn plug_network(
        &self,
        tap: &File,
        vhost: Option<&File>,
        config: NetworkConfig,
    ) -> Result<u32, VmError> {
        let fds: Vec<BorrowedFd<'_>> = iter::once(tap).chain(vhost).map(AsFd::as_fd).collect();
        match self.ask_with(Command::PlugNetwork(config), &fds)? {
            (Answer::Plugged { device }, _) => Ok(device),
            (other, _) => Err(VmError::Refused(format!("the VMM answered {other:?}"))),
        }
    }

    /// Gives the VM a disk; returns the number of its virtio device.
    ///
    /// # Errors
    /// [`VmError`] if the VMM refuses or is gone.
    pub fn plug_disk(&self, file: &File, config: DiskConfig) -> Result<u32, VmError> {
        match self.ask_with(Command::PlugDisk(config), &[file.as_fd()])? {
            (Answer::Plugged { device }, _) => Ok(device),
            (other, _) => Err(VmError::Refused(format!("the VMM answered {other:?}"))),
        }
    }

    /// Takes a disk away, and waits until the VMM has closed it.
    ///
    /// # Errors
    /// [`VmError`] if the VMM refuses or is gone.
    pub fn unplug_disk(&self, device: u32) -> Result<(), VmError> {
        match self.ask(Command::UnplugDisk { device })? {
            (Answer::Unplugged, _) => Ok(()),
            (other, _) => Err(VmError::Refused(format!("the VMM answered {other:?}"))),
        }
    }

    fn ask_with(&self, command: Command, fds: &[BorrowedFd<'_>]) -> Reply {
        let asked = self.send(command, fds)?;
        self.answer(&asked, ANSWER)
    }

    /// Sends a command without waiting for its answer.
    fn send(&self, command: Command, fds: &[BorrowedFd<'_>]) -> Result<Receiver<Reply>, VmError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        lock(&self.shared.pending).insert(id, sender);
        // The reader looks at the pending requests after it noted the end: either it sees this
        // one, or this sees the end.
        if lock(&self.shared.ended).is_some() || self.socket.send(&Request { id, command }, fds).is_err() {
            lock(&self.shared.pending).remove(&id);
            return Err(self.end_error());
        }
        Ok(receiver)
    }

    fn answer(&self, asked: &Receiver<Reply>, limit: Duration) -> Reply {
        match asked.recv_timeout(limit) {
            Ok(reply) => reply,
            Err(RecvTimeoutError::Timeout) => Err(VmError::Silent(limit)),
            Err(RecvTimeoutError::Disconnected) => Err(self.end_error()),
        }
    }

    /// Why the VM has ended.
    fn end_error(&self) -> VmError {
        // The last message may still be on its way.
        for _ in 0..(EXIT_TIMEOUT.as_millis() / 10) {
            match &*lock(&self.shared.ended) {
                Some(Some(reason)) => return VmError::Ended(reason.clone()),
                Some(None) => break,
                None => {}
            }
            thread::sleep(Duration::from_millis(10));
        }
        // The log is removed with the container's directory.
        self.log.wait(EXIT_TIMEOUT);
        VmError::Gone(self.log.tail().map_or("(none)".to_owned(), |line| printable(&line)))
    }

    /// Connects to a vsock port of the guest.
    ///
    /// # Errors
    /// [`VmError`] if nothing listens there within `timeout`.
    pub fn connect(&self, port: u32, timeout: Duration) -> Result<UnixStream, VmError> {
        self.connected(self.ask_for_connection(port, timeout)?)
    }

    /// Asks for a connection as [`connect`](Self::connect) makes it, and does not wait for it.
    ///
    /// # Errors
    /// [`VmError`] if the VMM cannot be asked.
    pub fn ask_for_connection(&self, port: u32, timeout: Duration) -> Result<Connecting, VmError> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let answer = self.send(Command::Connect { port, timeout_ms }, &[])?;
        Ok(Connecting { answer, limit: timeout + ANSWER })
    }

    /// The connection that was asked for.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub fn connected(&self, asked: Connecting) -> Result<UnixStream, VmError> {
        match self.answer(&asked.answer, asked.limit)? {
            (Answer::Connected, fds) => match fds.into_iter().next() {
                Some(fd) if is_stream(&fd) => Ok(UnixStream::from(fd)),
                Some(_) => Err(VmError::Refused("the VMM sent a descriptor that is not a socket".to_owned())),
                None => Err(VmError::Refused("the VMM sent no socket with its response".to_owned())),
            },
            (other, _) => Err(VmError::Refused(format!("the VMM answered {other:?}"))),
        }
    }

    /// Connects to the agent, which the guest starts when it has booted. Time in which the host's CPUs were busy with
    /// other processes does not count against `limit`, because a host may start many guests at once.
    ///
    /// # Errors
    /// [`VmError`] if nothing listens there in time, or the VM ends.
    pub fn connect_to_agent(&self, limit: Duration) -> Result<UnixStream, VmError> {
        let begun = Instant::now();
        let mut left = limit;
        loop {
            let asked = Instant::now();
            match self.connect(AGENT_PORT, left) {
                // A VMM answers so when the time is over. One that was taken over may do so at once, for ever.
                Err(VmError::Refused(text)) if asked.elapsed() > left / 2 => {
                    left = (limit + waited_for_cpu(self.child.pid)).saturating_sub(begun.elapsed());
                    if left < LEAST_TRY {
                        return Err(VmError::Refused(text));
                    }
                }
                other => return other,
            }
        }
    }

    /// Waits until the VMM has ended, at most for `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
        // The caller then ends the VMM if it still runs.
        let _ = poll(&mut [PollFd::new(self.child.pidfd.as_fd(), PollFlags::POLLIN)], timeout);
    }

    /// Ends the VM: asks the VMM, and kills it if it does not end soon.
    pub fn end(&self) {
        // It may be gone already.
        let _ = self.socket.send(&Request { id: 0, command: Command::Stop }, &[]);
        self.wait(END_GRACE);
        self.child.kill();
        self.log.wait(EXIT_TIMEOUT);
    }
}

/// Whether a descriptor that a VMM sent is a stream socket. Another file could block a reader forever, or have side
/// effects when written to.
fn is_stream(fd: &OwnedFd) -> bool {
    // No other file than a socket has a type of socket.
    getsockopt(fd, sockopt::SockType) == Ok(SockType::Stream)
        && getsockname::<UnixAddr>(fd.as_raw_fd()).is_ok()
}

/// Passes answers to the waiting callers; returns the reason of the VM's end.
fn read_messages(socket: &ControlSocket, shared: &Shared) -> Option<ExitReason> {
    let reason = loop {
        match socket.receive::<Message>() {
            Ok(Some((Message::Answer { id, answer }, fds))) => reply(shared, id, Ok((answer, fds))),
            Ok(Some((Message::Failed { id, error }, _))) => {
                reply(shared, id, Err(VmError::Refused(printable(&error))))
            }
            Ok(Some((Message::Exited(reason), _))) => break Some(reason.map_text(printable)),
            Ok(None) => break None,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A VMM that sends malformed messages may have been taken over.
            Err(_) => break None,
        }
    };
    *lock(&shared.ended) = Some(reason.clone());
    // Waiting callers find the channel closed.
    lock(&shared.pending).clear();
    reason
}

fn reply(shared: &Shared, id: u64, reply: Reply) {
    if let Some(sender) = lock(&shared.pending).remove(&id) {
        // The caller may have timed out.
        let _ = sender.send(reply);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn only_a_stream_socket_is_taken_from_a_vmm() {
        assert!(is_stream(&UnixStream::pair().unwrap().0.into()));
        let others: [OwnedFd; 5] = [
            UnixDatagram::pair().unwrap().0.into(),
            UdpSocket::bind("127.0.0.1:0").unwrap().into(),
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().into(),
            File::open("/dev/null").unwrap().into(),
            io::pipe().unwrap().0.into(),
        ];
        assert!(!others.iter().any(is_stream));
    }
}
