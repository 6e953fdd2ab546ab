//! A VMM process and the socket that steers it.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{iter, thread};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use pouch_protocol::{AGENT_PORT, SHARE_TAG};
use pouch_vmm::config::{BlockConfig, FileSource, MAX_NETWORK_SLOTS, NetworkConfig, ShareConfig, VmConfig};
use pouch_vmm::control::{Answer, Command, ControlSocket, Message, Request};
use pouch_vmm::exit::ExitReason;
use pouch_vmm::jail::{JailedChild, Spawn, SpawnError};

use super::agent::printable;
use crate::config::{Config, ConfigError};
use crate::container::size::VmSize;

/// How long a VMM may take to end by itself before it is killed.
const END_GRACE: Duration = Duration::from_secs(5);
/// How long to wait for the last message of a VMM that is gone.
const LAST_WORD: Duration = Duration::from_secs(2);
/// It makes no sense to wait for the agent for less.
const LEAST_TRY: Duration = Duration::from_millis(100);
/// Where the host's kernel takes over the frames of an interface.
const VHOST_NET: &str = "/dev/vhost-net";

/// A disk for the VM.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The image file or block device.
    pub path: PathBuf,
    /// The name by which the guest finds it.
    pub serial: String,
    /// Without writing.
    pub read_only: bool,
}

/// What a VM is to be.
#[derive(Clone, Debug)]
pub struct VmDescription<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// vCPUs and memory.
    pub size: VmSize,
    /// The share tree.
    pub share: Option<&'a Path>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Where the VMM's log and the console go: an existing directory.
    pub directory: &'a Path,
    /// The directory of the cgroup in which the VMM starts.
    pub cgroup: Option<&'a File>,
}

/// A VM could not be started, or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// A file that it needs cannot be opened.
    #[error("{what} {path} cannot be opened{hint}")]
    Open {
        /// What the file is.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the user can do.
        hint: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The configuration does not say where the files are.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A socket or file for the VMM could not be made.
    #[error("a descriptor for the VMM could not be made")]
    Descriptor(#[source] io::Error),
    /// The VMM's process could not be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The VM ended.
    #[error("the VM ended: {0}")]
    Ended(ExitReason),
    /// The VMM ended without a word.
    #[error("the VMM ended without a word; the last line of its log: {0}")]
    Gone(String),
    /// The VMM refuses.
    #[error("{0}")]
    Refused(String),
}

type Reply = Result<(Answer, Vec<OwnedFd>), VmError>;

/// A connection on its way.
pub struct Connecting(Receiver<Reply>);

struct Shared {
    pending: Mutex<HashMap<u64, Sender<Reply>>>,
    /// Set when the VMM is gone.
    ended: Mutex<Option<Option<ExitReason>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long the thread of a process that had to wait most was ready to run and had no processor: the second
/// field of `/proc/PID/task/TID/schedstat`, in nanoseconds. A kernel without such statistics has no such file.
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
    log: PathBuf,
    vhost_net: bool,
}

impl Vm {
    /// Starts a VMM, which boots its guest. `ended` is called when the VM has ended, with the
    /// reason if the VMM gave one. Must be called while the process has one thread, and by a
    /// thread that lives as long as the VM.
    ///
    /// # Errors
    /// [`VmError`] names the file or the step.
    pub fn start(
        description: &VmDescription<'_>,
        ended: impl FnOnce(Option<ExitReason>) + Send + 'static,
    ) -> Result<Self, VmError> {
        let files = Files::open(description)?;
        let (ours, theirs) = ControlSocket::pair().map_err(VmError::Descriptor)?;
        let log = description.directory.join("vmm.log");
        let log_file = open_log(&log).map_err(VmError::Descriptor)?;
        let config_file = memfd_with(&files.config).map_err(VmError::Descriptor)?;
        let config_fd = config_file.as_raw_fd().to_string();
        let control_fd = theirs.as_raw_fd().to_string();
        let mut inherited: Vec<RawFd> = files.files.iter().map(AsRawFd::as_raw_fd).collect();
        inherited.extend([config_file.as_raw_fd(), theirs.as_raw_fd()]);
        let spawn = Spawn {
            program: &files.vmm,
            arguments: &["--config-fd", &config_fd, "--control-fd", &control_fd],
            files: &inherited,
            log: log_file.as_raw_fd(),
            cgroup: description.cgroup.map(AsRawFd::as_raw_fd),
        };
        let child = spawn.spawn()?;
        let socket = Arc::new(ours);
        let shared = Arc::new(Shared { pending: Mutex::default(), ended: Mutex::new(None) });
        let (reader, reader_shared) = (socket.clone(), shared.clone());
        thread::Builder::new()
            .name("vmm".to_owned())
            .stack_size(256 * 1024)
            .spawn(move || ended(read_messages(&reader, &reader_shared)))
            .map_err(VmError::Descriptor)?;
        Ok(Vm {
            child,
            socket,
            shared,
            next_id: AtomicU64::new(1),
            log,
            vhost_net: description.config.vhost_net,
        })
    }

    /// The VMM's process.
    pub fn pid(&self) -> i32 {
        self.child.pid
    }

    /// Asks the VMM and waits for its answer.
    ///
    /// # Errors
    /// [`VmError`] if it refuses or is gone.
    pub fn ask(&self, command: Command) -> Result<(Answer, Vec<OwnedFd>), VmError> {
        self.ask_with(command, &[])
    }

    /// Gives the VM a network interface over a tap device; returns the number of its virtio device.
    ///
    /// # Errors
    /// [`VmError`] if the VMM refuses or is gone.
    pub fn plug_network(&self, tap: &File, config: NetworkConfig) -> Result<u32, VmError> {
        // Without it the VMM moves the frames, which always works.
        let open = || OpenOptions::new().read(true).write(true).open(VHOST_NET).ok();
        let vhost = self.vhost_net.then(open).flatten();
        let fds: Vec<BorrowedFd<'_>> = iter::once(tap).chain(&vhost).map(AsFd::as_fd).collect();
        match self.ask_with(Command::PlugNetwork(config), &fds)? {
            (Answer::Plugged { device }, _) => Ok(device),
            (other, _) => Err(VmError::Refused(format!("the VMM answered {other:?}"))),
        }
    }

    fn ask_with(&self, command: Command, fds: &[BorrowedFd<'_>]) -> Reply {
        let asked = self.send(command, fds)?;
        self.answer(&asked)
    }

    /// Sends a command; its answer comes by itself.
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

    fn answer(&self, asked: &Receiver<Reply>) -> Reply {
        asked.recv().unwrap_or_else(|_| Err(self.end_error()))
    }

    /// Why the VM is gone.
    fn end_error(&self) -> VmError {
        // The last message may still be on its way.
        for _ in 0..(LAST_WORD.as_millis() / 10) {
            match &*lock(&self.shared.ended) {
                Some(Some(reason)) => return VmError::Ended(reason.clone()),
                Some(None) => break,
                None => {}
            }
            thread::sleep(Duration::from_millis(10));
        }
        // The log goes with the container's directory.
        VmError::Gone(log_tail(&self.log).map_or("(none)".to_owned(), |line| printable(&line)))
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
        self.send(Command::Connect { port, timeout_ms }, &[]).map(Connecting)
    }

    /// The connection that was asked for.
    ///
    /// # Errors
    /// As for [`connect`](Self::connect).
    pub fn connected(&self, asked: Connecting) -> Result<UnixStream, VmError> {
        match self.answer(&asked.0)? {
            (Answer::Connected, fds) => match fds.into_iter().next() {
                Some(fd) => Ok(UnixStream::from(fd)),
                None => Err(VmError::Refused("the VMM sent no socket with its answer".to_owned())),
            },
            (other, _) => Err(VmError::Refused(format!("the VMM answered {other:?}"))),
        }
    }

    /// Connects to the agent, which the guest starts when it has booted. The time in which the host's processors
    /// had something else to do does not count against `limit`: a host on which many guests start at once is slow
    /// and not broken.
    ///
    /// # Errors
    /// [`VmError`] if nothing listens there in time, or the VM ends.
    pub fn connect_to_agent(&self, limit: Duration) -> Result<UnixStream, VmError> {
        let begun = Instant::now();
        let mut left = limit;
        loop {
            match self.connect(AGENT_PORT, left) {
                Err(VmError::Refused(text)) => {
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
        // Whoever waits goes on to end the VMM if it is still there.
        let _ = poll(&mut [PollFd::new(self.child.pidfd.as_fd(), PollFlags::POLLIN)], timeout);
    }

    /// Ends the VM: asks the VMM, and kills it if it does not end soon.
    pub fn end(&self) {
        // It may be gone already.
        let _ = self.socket.send(&Request { id: 0, command: Command::Stop }, &[]);
        self.wait(END_GRACE);
        self.child.kill();
    }
}

/// Hands answers to those who wait; returns the reason of the VM's end.
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
            // What is no message is not from a VMM in its right mind.
            Err(_) => break None,
        }
    };
    *lock(&shared.ended) = Some(reason.clone());
    // Whoever waits finds its sender gone.
    lock(&shared.pending).clear();
    reason
}

fn reply(shared: &Shared, id: u64, reply: Reply) {
    if let Some(sender) = lock(&shared.pending).remove(&id) {
        // The asker may have given up.
        let _ = sender.send(reply);
    }
}

/// Opens what every VM needs, to find out early that it cannot be.
///
/// # Errors
/// [`VmError`] names the file.
pub fn preflight(config: &Config, directory: &Path) -> Result<(), VmError> {
    let size = VmSize { vcpus: 1, memory_mib: 0 };
    Files::open(&VmDescription { config, size, share: None, disks: Vec::new(), directory, cgroup: None })
        .map(drop)
}

/// Everything that the VMM gets as descriptors, and the description that names them.
struct Files {
    vmm: PathBuf,
    config: String,
    files: Vec<File>,
}

impl Files {
    fn open(description: &VmDescription<'_>) -> Result<Self, VmError> {
        let config = description.config;
        let parts = config.installation()?;
        let mut files = Vec::new();
        let open_file = |what, path: &Path, write: bool, hint| {
            OpenOptions::new().read(true).write(write).open(path).map_err(|source| VmError::Open {
                what,
                path: path.to_owned(),
                hint,
                source,
            })
        };
        let mut open = |what, path: &Path, write: bool, hint| {
            let file = open_file(what, path, write, hint)?;
            let source = FileSource::Fd(file.as_raw_fd());
            files.push(file);
            Ok::<_, VmError>(source)
        };
        let reinstall = "; is pouch-vm fully installed?";
        // Executed by its name: this tells early that it is there.
        drop(open_file("the VMM", &parts.vmm, false, reinstall)?);
        let kvm = open(
            "the KVM device",
            &config.kvm,
            true,
            "; load the module kvm_intel or kvm_amd, and see `pouch-vm check`",
        )?;
        let kernel = open("the guest kernel", &parts.kernel, false, reinstall)?;
        let root = open("the guest root", &parts.guest_root, false, reinstall)?;
        let console = if config.console {
            let path = description.directory.join("console.log");
            let file = open_log(&path).map_err(VmError::Descriptor)?;
            drop(file);
            Some(open("the console log", &path, true, "")?)
        } else {
            None
        };
        let mut blocks = Vec::new();
        for disk in &description.disks {
            let file = open("the disk", &disk.path, !disk.read_only, "")?;
            blocks.push(BlockConfig { file, serial: disk.serial.clone(), read_only: disk.read_only });
        }
        let vm = VmConfig {
            vcpus: description.size.vcpus,
            memory_mib: description.size.memory_mib,
            kernel,
            root,
            kernel_arguments: config.kernel_arguments.clone(),
            console,
            kvm,
            share: description
                .share
                .map(|path| ShareConfig { path: path.to_owned(), tag: SHARE_TAG.to_owned() }),
            blocks,
            network_slots: MAX_NETWORK_SLOTS,
            vsock_cid: 3,
        };
        let config = serde_json::to_string(&vm).map_err(|error| VmError::Descriptor(error.into()))?;
        Ok(Files { vmm: parts.vmm, config, files })
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// A file in memory with this content, at its start.
fn memfd_with(content: &str) -> io::Result<File> {
    let fd = nix::sys::memfd::memfd_create(c"pouch-vm-config", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(content.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// The end of the VMM's log, for an error that has no other explanation.
pub fn log_tail(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(64 * 1024).read_to_string(&mut text).ok()?;
    text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned)
}
