//! The VMM's binary: one process, one VM.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;
use pouch_errors::chain;
use pouch_vmm::process::Start;
use pouch_vmm_api::control::{ControlSocket, Message};
use pouch_vmm_api::exit::ExitReason;
use pouch_vmm_api::inherited::Inherited;
use pouch_vmm_api::spawn::Spawn;

/// Runs one virtual machine.
///
/// pouch-vm normally starts this program, in new namespaces. With --config the program starts itself again in new
/// namespaces and waits until the VM ends.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The description of the VM, as JSON. The source has its fields (VmConfig in vmm/api/src/config.rs).
    #[arg(long, value_name = "FILE", required_unless_present = "config_fd")]
    config: Option<PathBuf>,
    /// File descriptor of the VM description, instead of --config. The process must already be in new namespaces.
    #[arg(long, value_name = "FD", conflicts_with = "config", requires = "control_fd")]
    config_fd: Option<RawFd>,
    /// File descriptor of the control socket.
    #[arg(long, value_name = "FD")]
    control_fd: Option<RawFd>,
    /// Do not install seccomp filters. For debugging only.
    #[arg(long)]
    no_seccomp: bool,
}

fn main() -> ExitCode {
    // SAFETY: this is the first thing that the process does.
    let inherited = unsafe { Inherited::take() };
    match inherited.context("/proc/self/fd could not be read").and_then(run) {
        // Statuses are small numbers. Not through destructors: threads still use what these would free.
        Ok(reason) => std::process::exit(reason.status()),
        Err(error) => {
            eprintln!("pouch-vmm: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(inherited: Inherited) -> anyhow::Result<ExitReason> {
    let arguments = Arguments::parse();
    match (arguments.config_fd, arguments.control_fd, &arguments.config) {
        (Some(config), Some(control), _) => {
            let start = Start { inherited, config, control, filter: !arguments.no_seccomp };
            start.run(|_| ()).map_err(|error| anyhow::anyhow!("{}", chain(&error)))
        }
        (_, _, Some(config)) => run_by_hand(inherited, config, arguments.no_seccomp),
        _ => bail!("give --config"),
    }
}

/// Starts this binary again in namespaces of its own and reports how the VM ends.
fn run_by_hand(inherited: Inherited, path: &Path, no_seccomp: bool) -> anyhow::Result<ExitReason> {
    let config = File::open(path).with_context(|| format!("{} could not be opened", path.display()))?;
    let (ours, theirs) = ControlSocket::pair().context("a control socket could not be created")?;
    let config_fd = config.as_raw_fd().to_string();
    let control_fd = theirs.as_raw_fd().to_string();
    let mut arguments = vec!["--config-fd", &config_fd, "--control-fd", &control_fd];
    if no_seccomp {
        arguments.push("--no-seccomp");
    }
    let program = std::env::current_exe().context("the VMM's own binary could not be found")?;
    // What the description names by number is inherited too: the shell opened it for us.
    let files: Vec<BorrowedFd<'_>> = inherited.iter().chain([config.as_fd(), theirs.as_fd()]).collect();
    let log = io::stderr();
    let spawn =
        Spawn { program: &program, arguments: &arguments, files: &files, log: log.as_fd(), cgroup: None };
    let child = spawn.spawn()?;
    drop((theirs, config, inherited));
    while let Some((message, _)) = ours.receive::<Message>()? {
        if let Message::Exited(reason) = message {
            eprintln!("pouch-vmm: {reason}");
            return Ok(reason);
        }
    }
    child.kill();
    bail!("the VMM exited unexpectedly")
}
