//! `check`: whether this host can run containers. That `/dev/kvm` opens proves nothing, so a
//! guest is booted.

use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use pouch_protocol::AGENT_PORT;

use super::{CliError, Outcome, print};
use crate::config::Config;
use crate::container::size::VmSize;
use crate::errors::chain;
use crate::sandbox::agent::Agent;
use crate::sandbox::vm::{Vm, VmDescription, VmError, log_tail};

/// MiB of memory of the guest that is booted.
const MEMORY_MIB: u32 = 128;

#[derive(Args)]
pub struct Check {
    /// Print nothing: the exit status tells.
    #[arg(short, long)]
    quiet: bool,
}

impl Check {
    pub fn run(&self, load_config: &dyn Fn() -> Result<Config, CliError>) -> Outcome {
        let config = load_config()?;
        let start = Instant::now();
        let folder = Folder::new()?;
        match boot(&config, &folder.0) {
            Ok(kernel) => {
                let ms = start.elapsed().as_millis();
                if !self.quiet {
                    print(&format!(
                        "This host can run containers: a guest with Linux {kernel} answered after {ms} ms.\n"
                    ));
                }
                Ok(0)
            }
            Err(error) => {
                let mut text = format!("This host cannot run containers: {}.\n", chain(&error));
                if let Some(line) = log_tail(&folder.0.join("vmm.log")) {
                    text.push_str(&format!("The VMM's last words: {line}\n"));
                }
                if !self.quiet {
                    eprint!("{text}");
                }
                Ok(1)
            }
        }
    }
}

/// Boots a guest until its agent answers; returns its kernel's release.
fn boot(config: &Config, directory: &Path) -> Result<String, CheckError> {
    let description = VmDescription {
        config,
        size: VmSize { vcpus: 1, memory_mib: MEMORY_MIB },
        share: None,
        disks: Vec::new(),
        directory,
    };
    let vm = Vm::start(&description, |_| ())?;
    let timeout = Duration::from_secs(config.boot_timeout_seconds.into());
    let answer = vm
        .connect(AGENT_PORT, timeout)
        .map_err(CheckError::from)
        .and_then(|stream| Ok(Agent::new(stream)?.check()?));
    vm.end();
    let kernel = answer?.kernel_release;
    Ok(kernel.chars().filter(|c| !c.is_control()).take(64).collect())
}

#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Agent(#[from] crate::sandbox::agent::AgentError),
}

/// A directory for the VMM's log, gone in the end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Result<Self, CliError> {
        let path = std::env::temp_dir().join(format!("pouch-vm-check-{}", std::process::id()));
        std::fs::create_dir(&path)
            .map_err(|error| CliError::Other(format!("{} could not be made: {error}", path.display())))?;
        Ok(Folder(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is a log in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
