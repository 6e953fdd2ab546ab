//! The commands that pouch-vm starts itself with. They have their own parser, because setting up the parser
//! of the whole command line takes 2 % of a container's start.

use clap::{Parser, Subcommand};
use pouch_vmm_api::inherited::Inherited;

use super::exec;
use crate::cgroup::{oom, oom_reporter};
use crate::host::{launch, proxy};
use crate::logging::{Log, LogFormat};
use pouch_errors::chain;

/// What they are called.
const NAMES: [&str; 5] = [
    launch::HOST_COMMAND,
    proxy::COMMAND,
    oom_reporter::REPORT_COMMAND,
    oom::VICTIM_COMMAND,
    exec::HOST_COMMAND,
];

#[derive(Parser)]
#[command(name = "pouch-vm", disable_help_flag = true, disable_help_subcommand = true)]
struct Internal {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    SandboxHost {
        launch_fd: i32,
        report_fd: i32,
        /// Shown in lists of processes.
        id: String,
    },
    ContainerHost {
        task_fd: i32,
        report_fd: i32,
        /// Shown in lists of processes.
        id: String,
    },
    OomReport {
        cgroup: String,
    },
    OomVictim,
    ExecHost {
        host_fd: i32,
        report_fd: i32,
    },
}

/// Runs the command that the first argument names, if it is one of them; returns its exit status.
pub fn main() -> Option<u8> {
    let first = std::env::args_os().nth(1)?;
    if !NAMES.iter().any(|name| first == *name) {
        return None;
    }
    // SAFETY: this is what the process does first.
    let mut inherited = match unsafe { Inherited::take() } {
        Ok(inherited) => inherited,
        Err(error) => {
            let text = format!("/proc/self/fd could not be read: {error}");
            Log::new(None, LogFormat::Text).error(&text);
            return Some(1);
        }
    };
    let inherited = &mut inherited;
    Some(match Internal::try_parse() {
        // Statuses are from 0 to 255.
        Ok(Internal { command: Command::SandboxHost { launch_fd, report_fd, .. } }) => {
            launch::host_main(inherited, launch_fd, report_fd, || ()) as u8
        }
        Ok(Internal { command: Command::ContainerHost { task_fd, report_fd, .. } }) => {
            proxy::main(inherited, task_fd, report_fd) as u8
        }
        Ok(Internal { command: Command::OomReport { cgroup } }) => oom_reporter::report_main(&cgroup) as u8,
        Ok(Internal { command: Command::OomVictim }) => oom::victim_main() as u8,
        Ok(Internal { command: Command::ExecHost { host_fd, report_fd } }) => {
            exec::exec_host(inherited, host_fd, report_fd).unwrap_or_else(|error| {
                Log::new(None, LogFormat::Text).error(&chain(&error));
                error.status()
            })
        }
        Err(error) => {
            // Only pouch-vm uses these commands.
            let _ = error.print();
            1
        }
    })
}
