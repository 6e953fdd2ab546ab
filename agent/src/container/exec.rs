//! ExecProcess.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pouch_protocol::agent::ExecProcessRequest;
use pouch_protocol::agent::command_error::Kind;
use ttrpc::proto::Code;

use super::launch::{self, LaunchError, Launched};
use super::{Container, LookupError, Paths, Runtime, State, check_id, spec};
use crate::error::{Coded, RequestError};
use crate::process::Process;
use crate::procfs::unified_cgroup;
use crate::runner::{Job, Task, enter};
use crate::streams::stdio::{self, PreparedStdio, StdioError};

/// Why a process could not be started in a container.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// There is no such container, its state is another, or the process exists.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The standard streams cannot be set up.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The process cannot be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The agent's part failed.
    #[error("cannot set up the process: {0}")]
    System(&'static str, #[source] io::Error),
}

impl Coded for ExecError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Lookup(error) => error.code(),
            Self::Stdio(error) => error.code(),
            Self::Launch(error) => error.code(),
            Self::System(..) => Code::INTERNAL,
        }
    }

    fn command_error(&self) -> Option<Kind> {
        match self {
            Self::Launch(error) => error.command_error(),
            _ => None,
        }
    }
}

/// Names for the files of each exec; ids may be too long for one.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Starts a process; returns its pid. It has executed its program by then.
pub async fn exec(
    runtime: &Arc<Runtime>,
    container: Arc<Container>,
    request: ExecProcessRequest,
) -> Result<i32, ExecError> {
    check_id("exec_id", &request.exec_id)?;
    let mut process = spec::parse_process(&request.process)?;
    spec::check_process(&process, "process.")?;
    if process.terminal().unwrap_or(false) != request.stdio.terminal {
        return Err(RequestError::new("stdio.terminal", "differs from process.terminal").into());
    }
    let _turn = container.turn.lock().await;
    container.require(&[State::Running], "running")?;
    container.check_new_exec(&request.exec_id)?;
    let sub_cgroup = match request.cgroup.trim_matches('/') {
        "" if request.cgroup.is_empty() => sub_cgroup(&container),
        asked => asked_cgroup(&container, asked)?,
    };
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(container.for_exec.oom_score_adj);
    }
    let user = container.for_exec.mapped(process.user().uid());
    let (mut prepared, ends) = stdio::prepare(&request.stdio, &runtime.streams, user)?;
    if let Some(size) = process.console_size() {
        prepared.default_size(size.height(), size.width());
    }
    let files = Files::new(&container.paths.bundle());
    let target = enter::Target {
        init: container.init.pid,
        cgroup: container.cgroup.directory().join(sub_cgroup.unwrap_or_default()),
        personality: container.for_exec.personality,
    };
    let job = Job {
        name: container.paths.name.clone(),
        bundle: container.paths.bundle(),
        state: Paths::STATE.into(),
        console_socket: prepared.is_terminal().then(|| files.console.clone()),
        process,
        seccomp: container.for_exec.seccomp.clone(),
        task: Task::Exec(target),
    };
    let starting = runtime.processes.starting();
    let launched = launch::launch(&runtime.processes, &job, &files.job, ends).await?;
    let pid = launched.pid;
    let process = register(&container, &request.exec_id, prepared, launched, user);
    let process = process.inspect_err(|_| launch::abandon(pid))?;
    container.add_exec(process.clone());
    runtime.adopt(process);
    drop(starting);
    Ok(pid)
}

fn register(
    container: &Container,
    exec_id: &str,
    prepared: PreparedStdio,
    launched: Launched,
    user: u32,
) -> Result<Arc<Process>, ExecError> {
    if let Some(master) = &launched.master {
        stdio::chown_terminal(master, user).map_err(|error| ExecError::System("its terminal", error))?;
    }
    let stdio = prepared.start(launched.master)?;
    let process = Process::new(&container.id, exec_id, launched.pid, stdio);
    Ok(Arc::new(process.map_err(|error| ExecError::System("its handle", error))?))
}

/// The files of one exec, removed when it has started or failed.
struct Files {
    job: std::path::PathBuf,
    console: std::path::PathBuf,
}

impl Files {
    fn new(bundle: &Path) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = |kind: &str| bundle.join(format!("exec-{number}.{kind}"));
        Self { job: file("job"), console: file("console") }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // Missing if writing it was what failed. The socket of a terminal removes itself.
        let _ = fs::remove_file(&self.job);
    }
}

/// The cgroup that the request names, below the container's.
fn asked_cgroup(container: &Container, asked: &str) -> Result<Option<String>, RequestError> {
    let path = Path::new(asked);
    if !path.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
        return Err(RequestError::new(
            "cgroup",
            format!("{asked:?} is not a path below the container's cgroup"),
        ));
    }
    if !container.cgroup.directory().join(path).is_dir() {
        return Err(RequestError::new(
            "cgroup",
            format!("the container has no cgroup {asked:?} below its own"),
        ));
    }
    Ok(Some(asked.to_owned()).filter(|asked| !asked.is_empty()))
}

/// An init system like systemd moves to a cgroup below the container's and enables controllers. After that
/// the kernel allows no processes in the container's own cgroup. So processes of exec go to the cgroup of the
/// init process.
fn sub_cgroup(container: &Container) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", container.init.pid)).ok()?;
    let path = Path::new(unified_cgroup(&text)?);
    let below = path.strip_prefix(container.cgroup.hierarchy_path()).ok()?;
    below.to_str().filter(|below| !below.is_empty()).map(str::to_owned)
}
