//! The command line of the OCI runtime: a file for each operation, with runc's flags.

mod check;
mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod exec_process;
mod features;
mod forward;
mod internal;
mod kill;
mod list;
mod metrics;
#[macro_use]
mod operations;
mod pause;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, ValueEnum};

use crate::config::Config;
use crate::container::lookup::find;
use crate::container::state::DEFAULT_ROOT;
use crate::container::{ContainerDir, ContainerId, State};
use crate::failure::Failure;
use crate::host::client::{ClientError, HostAddress, HostClient};
use crate::host::lifecycle::LifecycleError;
use crate::logging::{Log, LogFormat};
pub use internal::main as internal_main;
use pouch_errors::chain;

/// What `--version` says after the program's name: runc's form, which engines parse.
const VERSION: &str =
    concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: ", crate::container::state::oci_version!());

/// Runs OCI containers, each in its own small virtual machine.
#[derive(Parser)]
#[command(name = "pouch-vm", version = VERSION, disable_help_subcommand = true, disable_version_flag = true,
          after_help = "Configuration file (optional): /etc/pouch-vm/config.toml, or the file that the environment variable \
                        POUCH_VM_CONFIG names")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every operation.
#[derive(Args)]
#[command(next_help_heading = "Options of every operation")]
struct Global {
    /// Directory for the state of containers.
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_ROOT)]
    root: PathBuf,
    /// Also write errors and warnings to this file.
    #[arg(long, global = true, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Format of the log file.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Ignored; errors are always shown in full.
    #[arg(long, global = true)]
    debug: bool,
    /// Ignored, like --debug.
    #[arg(long, global = true, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Let systemd create the cgroup; linux.cgroupsPath must be SLICE:PREFIX:NAME.
    #[arg(long, global = true)]
    systemd_cgroup: bool,
    /// How to create the cgroup; `systemd` is the same as --systemd-cgroup.
    #[arg(long, global = true, value_name = "MANAGER")]
    cgroup_manager: Option<CgroupManager>,
    /// auto or false; true is an error, because pouch-vm needs root.
    #[arg(
        long,
        global = true,
        value_name = "VALUE",
        num_args = 0..=1,
        default_value = "auto",
        default_missing_value = "true",
        value_parser = parse_rootless
    )]
    rootless: String,
    /// Ignored: pouch-vm does not use CRIU.
    #[arg(long, global = true, value_name = "PATH")]
    criu: Option<PathBuf>,
    /// Print the version.
    #[arg(short, short_alias = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// The managers of crun's command line.
#[derive(Clone, Copy, ValueEnum)]
enum CgroupManager {
    /// As a directory in the cgroup hierarchy.
    Cgroupfs,
    /// As a scope of systemd.
    Systemd,
}

fn parse_rootless(text: &str) -> Result<String, String> {
    match text {
        "auto" | "false" => Ok(text.to_owned()),
        "true" => Err("rootless containers are not supported; run pouch-vm as root".to_owned()),
        _ => Err("must be auto, true or false".to_owned()),
    }
}

operations! {
    Create(create::Create) = "create": "Create a container, without starting its process";
    Start(start::Start) = "start": "Start the process of a created container";
    State(state::PrintState) = "state": "Print the state of a container as JSON";
    Kill(kill::Kill) = "kill": "Send a signal to a container's process";
    Delete(delete::Delete) = "delete": "Remove a stopped container";
    Run(run::Run) = "run": "Create and start a container, and wait until its process ends";
    Exec(exec::Exec) = "exec": "Start a process in a running container";
    List(list::List) = "list": "List containers";
    Ps(ps::Ps) = "ps": "List the processes of a container";
    Pause(pause::Pause) = "pause": "Freeze all processes of a container";
    Resume(pause::Resume) = "resume": "Resume the processes of a paused container";
    Update(update::Update) = "update": "Change the limits of a running container";
    Events(events::Events) = "events": "Print resource usage and out-of-memory events of a container";
    Metrics(metrics::Metrics) = "metrics": "Print metrics of all containers for Prometheus, or serve them";
    Checkpoint(checkpoint::Unavailable) = "checkpoint": "Checkpoint a running container (not supported yet)";
    Restore(checkpoint::Unavailable) = "restore": "Restore a container from a checkpoint (not supported yet)";
    Spec(spec::Spec) = "spec": "Write an example specification to config.json";
    Features(features::Features) = "features": "Print the supported features as JSON";
    Check(check::Check) = "check": "Check whether this host can run containers, by booting a guest";
}

/// An operation failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    /// With a status of its own.
    #[error("{}", .0.message)]
    Failure(Failure),
    /// The host process refuses or cannot be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A container could not be created or started.
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl CliError {
    fn status(&self) -> u8 {
        match self {
            CliError::Failure(failure) => failure.status,
            CliError::Client(error) => error.status(),
            CliError::Lifecycle(error) => error.status(),
            CliError::Other(_) => 1,
        }
    }
}

impl From<Failure> for CliError {
    fn from(failure: Failure) -> Self {
        CliError::Failure(failure)
    }
}

/// An error of a lower layer, with its causes.
fn other(error: impl std::error::Error + 'static) -> CliError {
    CliError::Other(chain(&error))
}

type Outcome = Result<u8, CliError>;

impl Global {
    /// Whether systemd is to make the cgroup.
    fn uses_systemd(&self) -> bool {
        self.systemd_cgroup || matches!(self.cgroup_manager, Some(CgroupManager::Systemd))
    }

    fn log(&self) -> Log {
        Log::new(self.log.clone(), self.log_format)
    }

    fn dir(&self, id: &str) -> Result<ContainerDir, CliError> {
        let id: ContainerId = id.parse().map_err(other)?;
        find(&self.root, &id).map_err(other)
    }

    /// The directory of a container that the command line may start and remove: one that is not in a pod.
    fn own_dir(&self, id: &str) -> Result<ContainerDir, CliError> {
        let dir = self.dir(id)?;
        match dir.pod().and_then(std::path::Path::file_name) {
            None => Ok(dir),
            Some(pod) => Err(CliError::Other(format!(
                "container {id} is in the pod {}; start and remove it with the engine that created it",
                pod.display()
            ))),
        }
    }

    fn load(&self, id: &str) -> Result<(ContainerDir, State), CliError> {
        let dir = self.dir(id)?;
        let state = dir.load().map_err(other)?;
        Ok((dir, state))
    }

    /// The directory of a container that has a host process.
    fn live(&self, id: &str) -> Result<ContainerDir, CliError> {
        let (dir, state) = self.load(id)?;
        if state.status == crate::container::Status::Stopped {
            return Err(CliError::Other(format!("container {id} is stopped")));
        }
        Ok(dir)
    }

    /// A connection to the host process of a container that has one.
    fn host(&self, id: &str) -> Result<HostClient, CliError> {
        Ok(HostAddress::of(&self.live(id)?).connect()?)
    }
}

/// Runs the command line's operation; returns the exit status.
pub fn main() -> u8 {
    if let Some(status) = internal::main() {
        return status;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Also prints help and version, which are no errors.
            let _ = error.print();
            return u8::from(error.use_stderr());
        }
    };
    let global = cli.global;
    let log = global.log();
    let result = match cli.command {
        Command::Create(command) => command.run(&global),
        Command::Start(command) => command.run(&global),
        Command::State(command) => command.run(&global),
        Command::Kill(command) => command.run(&global),
        Command::Delete(command) => command.run(&global),
        Command::Run(command) => command.run(&global),
        Command::Exec(command) => command.run(&global),
        Command::List(command) => command.run(&global),
        Command::Ps(command) => command.run(&global),
        Command::Pause(command) => command.run(&global),
        Command::Resume(command) => command.run(&global),
        Command::Update(command) => command.run(&global),
        Command::Events(command) => command.run(&global),
        Command::Metrics(command) => command.run(&global),
        Command::Checkpoint(command) => command.run("checkpoint"),
        Command::Restore(command) => command.run("restore"),
        Command::Spec(command) => command.run(),
        Command::Features(command) => command.run(),
        Command::Check(command) => command.run(&load_config),
    };
    result.unwrap_or_else(|error| {
        log.error(&chain(&error));
        error.status()
    })
}

fn load_config() -> Result<Config, CliError> {
    Config::load().map_err(other)
}

/// Writes to standard output and ignores errors, such as a closed pipe.
fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Writes a process number where the engine asked for it.
fn write_pid_file(path: Option<&PathBuf>, pid: u32) -> Result<(), CliError> {
    let Some(path) = path else { return Ok(()) };
    std::fs::write(path, pid.to_string()).map_err(|error| {
        CliError::Other(format!("the pid file {} could not be written: {error}", path.display()))
    })
}
