//! The VMM's binary: one process, one VM.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::{Context, bail};
use clap::Parser;
use event_manager::{EventOps, Events, MutEventSubscriber};
use pouch_vmm::builder::{self, Files};
use pouch_vmm::config::VmConfig;
use pouch_vmm::control::{ControlServer, ControlSocket, Message};
use pouch_vmm::devices::virtio::fs::{ShareRoot, files_kept};
use pouch_vmm::event_loop::EventLoop;
use pouch_vmm::exit::ExitReason;
use pouch_vmm::jail::seccomp::{self, ThreadKind};
use pouch_vmm::jail::{self, Spawn};
use pouch_vmm::vm::{ExitSignal, Vm};
use vmm_sys_util::epoll::EventSet;

/// Runs one virtual machine.
///
/// Usually started by pouch-vm, which puts it into namespaces of its own. Started by hand it
/// starts itself again in such namespaces and waits for the VM to end.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The VM's description, JSON: VmConfig in vmm/src/config.rs.
    #[arg(long, value_name = "FILE", required_unless_present = "config_fd")]
    config: Option<PathBuf>,
    /// A descriptor to read the description from; the process is already in its namespaces.
    #[arg(long, value_name = "FD", conflicts_with = "config", requires = "control_fd")]
    config_fd: Option<RawFd>,
    /// The descriptor of the control socket.
    #[arg(long, value_name = "FD")]
    control_fd: Option<RawFd>,
    /// Do not filter system calls. For debugging only.
    #[arg(long)]
    no_seccomp: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match (arguments.config_fd, arguments.control_fd, &arguments.config) {
        (Some(config), Some(control), _) => run_jailed(config, control, arguments.no_seccomp),
        (_, _, Some(config)) => run_by_hand(config, arguments.no_seccomp),
        _ => Err(anyhow::anyhow!("give --config")),
    };
    match result {
        // Statuses are small numbers.
        Ok(reason) => ExitCode::from(reason.status() as u8),
        Err(error) => {
            eprintln!("pouch-vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Takes over a descriptor that was inherited.
fn inherited(fd: RawFd, what: &str) -> anyhow::Result<OwnedFd> {
    // SAFETY: F_GETFD reads a flag of a number and touches no memory.
    if unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        bail!("the descriptor {fd} for {what} is not open");
    }
    // SAFETY: the descriptor is open, and the command line names each once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The VMM proper: in its namespaces, with everything that it needs as descriptors.
fn run_jailed(config_fd: RawFd, control_fd: RawFd, no_seccomp: bool) -> anyhow::Result<ExitReason> {
    let control = ControlSocket::from_fd(inherited(control_fd, "the control socket")?);
    let result = boot(inherited(config_fd, "the description")?, no_seccomp);
    let (vm, mut event_loop) = match result {
        Ok(built) => built,
        Err(error) => {
            let reason = ExitReason::InternalError { message: format!("{error:#}") };
            // The host learns of it from the exit status too.
            let _ = control.send(&Message::Exited(reason), &[]);
            return Err(error);
        }
    };
    control.set_nonblocking().context("the control socket cannot be used")?;
    let control = Arc::new(control);
    event_loop.add(Arc::new(Mutex::new(ControlServer::new(control.clone(), vm.clone()))));
    event_loop.add(Arc::new(Mutex::new(ExitEvents(vm.exit().clone()))));
    if !no_seccomp {
        ThreadKind::Main.enter();
    }
    vm.resume();
    let reason = loop {
        if let Some(reason) = vm.exit().reason() {
            break reason;
        }
        if let Err(error) = event_loop.turn() {
            break ExitReason::InternalError { message: error.to_string() };
        }
    };
    let _ = control.send(&Message::Exited(reason.clone()), &[]);
    // Not through the destructors: the vCPU threads still hold the VM.
    std::process::exit(reason.status());
}

/// Files in use are known beyond those that are kept, and each open file has a descriptor more.
const DESCRIPTORS_FOR_EACH_FILE: u64 = 8;

fn boot(config: OwnedFd, no_seccomp: bool) -> anyhow::Result<(Arc<Vm>, EventLoop)> {
    let mut text = String::new();
    File::from(config).read_to_string(&mut text).context("the VM description could not be read")?;
    let config = VmConfig::from_json(&text)?;
    let files = Files::open(&config)?;
    jail::replace_proc()?;
    let share = config.share.as_ref().map(|_| ShareRoot::new(config.memory_mib)).transpose();
    let share = share.context("/proc/self/fd could not be opened")?;
    let descriptors = DESCRIPTORS_FOR_EACH_FILE * files_kept(config.memory_mib) as u64;
    jail::confine(config.share.as_ref().map(|share| share.path.as_path()), descriptors)?;
    if no_seccomp {
        seccomp::disable();
    }
    let mut event_loop = EventLoop::new()?;
    let vm = builder::boot(&config, files, share, &mut event_loop)?;
    Ok((vm, event_loop))
}

/// Wakes the event loop when the VM has ended.
struct ExitEvents(Arc<ExitSignal>);

impl MutEventSubscriber for ExitEvents {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}

    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(Events::new_raw(self.0.as_raw_fd(), EventSet::IN)) {
            self.0.end(ExitReason::InternalError { message: error.to_string() });
        }
    }
}

/// Starts this binary again in namespaces of its own and reports how the VM ends.
fn run_by_hand(path: &PathBuf, no_seccomp: bool) -> anyhow::Result<ExitReason> {
    let config = File::open(path).with_context(|| format!("{} could not be opened", path.display()))?;
    let (ours, theirs) = ControlSocket::pair().context("a control socket could not be made")?;
    let config_fd = config.as_raw_fd().to_string();
    let control_fd = theirs.as_raw_fd().to_string();
    let mut arguments = vec!["--config-fd", &config_fd, "--control-fd", &control_fd];
    if no_seccomp {
        arguments.push("--no-seccomp");
    }
    let program = std::env::current_exe().context("the VMM's own binary could not be found")?;
    // What the description names by number is inherited too: the shell opened it for us.
    let inherited: Vec<RawFd> = (3..64).filter(|fd| *fd != ours.as_raw_fd() && is_open(*fd)).collect();
    let spawn = Spawn { program: &program, arguments: &arguments, files: &inherited, log: 2, cgroup: None };
    let child = spawn.spawn()?;
    drop((theirs, config));
    while let Some((message, _)) = ours.receive::<Message>()? {
        if let Message::Exited(reason) = message {
            eprintln!("pouch-vmm: {reason}");
            return Ok(reason);
        }
    }
    child.kill();
    bail!("the VMM ended without a word")
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD reads a flag of a number and touches no memory.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}
