//! `check`: whether this host can run containers. It boots a guest, because being able to open `/dev/kvm` is
//! not enough.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use pouch_vmm_api::control::{Answer, Command};
use serde::Serialize;

use super::{CliError, Outcome, print};
use crate::config::Config;
use crate::sandbox::VmSize;
use crate::sandbox::agent::Agent;
use crate::sandbox::vm::{StartedVm, Vm, VmError};
use crate::sandbox::vm_files::VmDescription;
use crate::sandbox::vmm_log::{log_path, log_tail};
use pouch_errors::chain;

/// MiB of memory of the guest that is booted.
const MEMORY_MIB: u32 = 256;

#[derive(Args)]
pub struct Check {
    /// Print nothing; only set the exit status.
    #[arg(short, long)]
    quiet: bool,
    /// Output format; json also has the duration of each part of the boot.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// What is known of a guest that answered.
#[derive(Serialize)]
struct Booted {
    /// The release of its kernel.
    kernel: String,
    /// Milliseconds from the start of the VMM to the agent's answer.
    answer_ms: f64,
    /// Milliseconds from the guest kernel's first look at its clock to the agent's first.
    guest_kernel_ms: f64,
    /// Milliseconds from then until the agent was ready.
    agent_ms: f64,
    /// Guest memory that the host has pages for.
    guest_memory_bytes: u64,
}

impl Check {
    pub fn run(&self, load_config: &dyn Fn() -> Result<Config, CliError>) -> Outcome {
        let config = load_config()?;
        let folder = Folder::new()?;
        match boot(&config, &folder.0) {
            Ok(booted) => {
                if !self.quiet {
                    print(&self.format.success(&booted));
                }
                Ok(0)
            }
            Err(error) => {
                let mut text = format!("This host cannot run containers: {}.\n", chain(&error));
                if let Some(line) = log_tail(&log_path(&folder.0)) {
                    text.push_str(&format!("Last line of the VMM's log: {line}\n"));
                }
                if !self.quiet {
                    eprint!("{text}");
                }
                Ok(1)
            }
        }
    }
}

impl Format {
    fn success(self, booted: &Booted) -> String {
        match self {
            Format::Text => format!(
                "This host can run containers: a guest with Linux {} answered after {:.0} ms.\n",
                booted.kernel, booted.answer_ms
            ),
            // A structure of numbers and a string always has a JSON form.
            Format::Json => serde_json::to_string(booted).unwrap_or_default() + "\n",
        }
    }
}

/// Boots a guest until its agent answers.
fn boot(config: &Config, directory: &Path) -> Result<Booted, CheckError> {
    let description = VmDescription {
        config,
        size: VmSize { vcpus: 1, memory_mib: MEMORY_MIB },
        share: None,
        disks: Vec::new(),
        disk_slots: 0,
        directory,
        cgroup: None,
    };
    let start = Instant::now();
    let vm = StartedVm::start(&description)?.attend(|_| ())?;
    let booted = until_answer(&vm, config, start);
    vm.end();
    booted
}

fn until_answer(vm: &Vm, config: &Config, start: Instant) -> Result<Booted, CheckError> {
    let ms = |nanoseconds: u64| nanoseconds as f64 / 1e6;
    let timeout = Duration::from_secs(config.boot_timeout_seconds.into());
    let answer = Agent::new(vm.connect_to_agent(timeout)?)?.check()?;
    let answer_ms = start.elapsed().as_secs_f64() * 1e3;
    let guest_memory_bytes = match vm.ask(Command::Metrics)? {
        (Answer::Metrics(metrics), _) => metrics.memory_resident_bytes,
        (other, _) => return Err(VmError::Refused(format!("the VMM answered {other:?}")).into()),
    };
    Ok(Booted {
        kernel: answer.kernel_release.chars().filter(|c| !c.is_control()).take(64).collect(),
        answer_ms,
        guest_kernel_ms: ms(answer.started_nanoseconds),
        agent_ms: ms(answer.ready_nanoseconds.saturating_sub(answer.started_nanoseconds)),
        guest_memory_bytes,
    })
}

#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Agent(#[from] crate::sandbox::agent::AgentError),
}

/// A temporary directory for the VMM's log.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Result<Self, CliError> {
        let path = std::env::temp_dir().join(format!("pouch-vm-check-{}", std::process::id()));
        std::fs::create_dir(&path)
            .map_err(|error| CliError::Other(format!("{} could not be created: {error}", path.display())))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // If it fails, a log remains in the directory for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
