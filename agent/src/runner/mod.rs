//! The runner: the agent's binary, executed for one task that needs `clone`.
//!
//! It is single-threaded and short-lived. Its standard streams are those of the container's process, so it
//! writes nothing to them. It reports to the agent through a pipe ([`report`]).

pub mod capabilities;
mod directory;
pub mod enter;
mod executor;
pub mod ids;
mod limits;
pub mod lookup;
mod mounts;
mod program;
pub mod report;
mod scheduling;
mod seccomp;
mod terminal;
mod trace;

use std::ffi::OsString;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::{LinuxSeccomp, PosixRlimitType, Process};
use serde::{Deserialize, Serialize};

use executor::GuestExecutor;
use program::Program;
use report::{Message, Reporter};

/// The name (`argv[0]`) that the agent starts a runner with.
pub const NAME: &str = "pouch-runner";

/// What a runner is to do. It travels as a file in the container's directory.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// The container's name in the guest.
    pub name: String,
    /// The directory with its config.json.
    pub bundle: PathBuf,
    /// The directory of libcontainer's own state.
    pub state: PathBuf,
    /// Where the terminal's master goes, for a process with a terminal.
    pub console_socket: Option<PathBuf>,
    /// The process as the host wants it.
    pub process: Process,
    /// Its filter.
    pub seccomp: Option<LinuxSeccomp>,
    /// Create or exec.
    pub task: Task,
}

/// The kinds of job.
#[derive(Debug, Serialize, Deserialize)]
pub enum Task {
    /// Make the container and its first process, which then waits to be started.
    Create {
        /// Bring its loopback interface up.
        loopback: bool,
        /// What the container cannot write.
        readonly_paths: Vec<String>,
        /// Other containers see the process, and must not access it while it holds resources of the guest.
        hidden: bool,
    },
    /// Start a further process.
    Exec(enter::Target),
}

/// Why a runner could not do its job.
#[derive(Debug, thiserror::Error)]
enum RunnerError {
    #[error("the job file cannot be read")]
    JobFile(#[source] std::io::Error),
    #[error("the job file is malformed")]
    Job(#[from] serde_json::Error),
    #[error(transparent)]
    Container(#[from] LibcontainerError),
    #[error("libcontainer returned no process")]
    NoProcess,
    #[error("{0} cannot be set up for the process")]
    Enter(&'static str, #[source] std::io::Error),
    #[error("the ids of a user namespace cannot be written")]
    Ids(#[source] std::io::Error),
    #[error("process.rlimits {0}: the kernel refused it")]
    Limit(PosixRlimitType, #[source] std::io::Error),
    #[error("the network namespace's loopback interface cannot be brought up")]
    Loopback(#[source] std::io::Error),
}

/// Runs one job: `pouch-runner JOB-FILE REPORT-FD`.
pub fn main(mut args: impl Iterator<Item = OsString>) -> i32 {
    let file = args.next().map(PathBuf::from);
    let fd = args.next().and_then(|fd| fd.to_str()?.parse::<RawFd>().ok());
    let (Some(file), Some(fd)) = (file, fd) else { return 2 };
    // SAFETY: the agent opened this descriptor for us and says so in the arguments; nothing
    // else in this process knows of it.
    let reporter = Reporter::new(unsafe { OwnedFd::from_raw_fd(fd) });
    trace::start(reporter.clone());
    let for_panics = reporter.clone();
    std::panic::set_hook(Box::new(move |info| for_panics.send(&Message::Detail(format!("panic: {info}")))));
    match run(&file, reporter.clone()) {
        Ok(pid) => {
            reporter.send(&Message::Done { pid });
            0
        }
        Err(error) => {
            reporter.send(&Message::Failed(pouch_errors::chain(&error)));
            1
        }
    }
}

fn run(file: &Path, reporter: Reporter) -> Result<i32, RunnerError> {
    let job: Job = serde_json::from_slice(&fs::read(file).map_err(RunnerError::JobFile)?)?;
    // The agent's own protection from the out-of-memory killer is not its children's.
    let score = job.process.oom_score_adj().unwrap_or(0);
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        return Err(RunnerError::Container(LibcontainerError::OtherIO(error)));
    }
    let program = Program { process: job.process, seccomp: job.seccomp };
    let (loopback, readonly_paths, hidden) = match job.task {
        Task::Exec(target) => return enter::run(&target, program, job.console_socket, reporter),
        Task::Create { loopback, readonly_paths, hidden } => (loopback, readonly_paths, hidden),
    };
    if hidden {
        // Until the container's program is executed (prctl(2), PR_SET_DUMPABLE).
        nix::sys::prctl::set_dumpable(false)
            .map_err(|error| RunnerError::Enter("this process", error.into()))?;
    }
    let limits = program.process.rlimits().clone().unwrap_or_default();
    ids::provide(&job.bundle).map_err(RunnerError::Ids)?;
    let container = ContainerBuilder::new(job.name, SyscallType::default())
        .with_root_path(&job.state)?
        .with_console_socket(job.console_socket)
        .with_executor(GuestExecutor { program, readonly_paths, reporter })
        .as_init(&job.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    let pid = container.pid().ok_or(RunnerError::NoProcess)?.as_raw();
    limits::set(pid, &limits).map_err(|(kind, error)| RunnerError::Limit(kind, error))?;
    if loopback {
        loopback_up(pid).map_err(RunnerError::Loopback)?;
    }
    Ok(pid)
}

/// Enters the network namespace of a process for good, and sets its loopback up. It is the
/// last thing that this runner does.
fn loopback_up(pid: i32) -> std::io::Result<()> {
    let namespace = fs::File::open(format!("/proc/{pid}/ns/net"))?;
    nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
    crate::network::loopback::up()
}
