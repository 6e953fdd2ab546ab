//! Hooks: programs on the host that run at certain points of a container's life (OCI runtime specification,
//! config.md, "POSIX-platform Hooks"). `startContainer` hooks run in the container and are run by the agent.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;
use oci_spec::runtime::{Hook, Hooks};

use super::{State, Status};

/// How many bytes of a failed hook's standard error are included in the error.
const MAX_OUTPUT: u64 = 1024;

/// A point of a container's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// During `create`, before `createRuntime`; deprecated, and what Docker uses.
    Prestart,
    /// During `create`.
    CreateRuntime,
    /// During `create`, in the namespaces that the container has on the host.
    CreateContainer,
    /// After `start`.
    Poststart,
    /// After `delete`.
    Poststop,
}

impl Point {
    /// The name of its member of `hooks`.
    pub fn name(self) -> &'static str {
        match self {
            Point::Prestart => "prestart",
            Point::CreateRuntime => "createRuntime",
            Point::CreateContainer => "createContainer",
            Point::Poststart => "poststart",
            Point::Poststop => "poststop",
        }
    }

    /// The container's status at that point.
    fn status(self) -> Status {
        match self {
            Point::Prestart | Point::CreateRuntime | Point::CreateContainer => Status::Creating,
            Point::Poststart => Status::Running,
            Point::Poststop => Status::Stopped,
        }
    }

    fn of(self, hooks: &Hooks) -> &[Hook] {
        // It is deprecated, but in use.
        #[allow(deprecated)]
        let list = match self {
            Point::Prestart => hooks.prestart(),
            Point::CreateRuntime => hooks.create_runtime(),
            Point::CreateContainer => hooks.create_container(),
            Point::Poststart => hooks.poststart(),
            Point::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }
}

/// A hook failed.
#[derive(Debug, thiserror::Error)]
#[error("hooks.{point}[{index}]: {path}")]
pub struct HookError {
    point: &'static str,
    index: usize,
    path: PathBuf,
    source: Problem,
}

/// What went wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It could not be started.
    #[error("it could not be executed")]
    Execute(#[source] io::Error),
    /// It ended with a status other than 0, or by a signal.
    #[error("it ended with {status}{output}")]
    Status {
        /// How it ended.
        status: String,
        /// The end of its standard error, after a colon.
        output: String,
    },
    /// It took too long, and was killed.
    #[error("it was killed after {0} s, its timeout")]
    TimedOut(u64),
}

/// What is wrong with the hooks of a specification, as (field, problem).
pub fn check(hooks: &Hooks) -> Option<(String, &'static str)> {
    use Point::{CreateContainer, CreateRuntime, Poststart, Poststop, Prestart};
    let points = [Prestart, CreateRuntime, CreateContainer, Poststart, Poststop];
    let ours = points.map(|point| (point.name(), point.of(hooks)));
    let guests = [("startContainer", hooks.start_container().as_deref().unwrap_or_default())];
    for (name, list) in ours.into_iter().chain(guests) {
        for (index, hook) in list.iter().enumerate() {
            let field = |member| format!("hooks.{name}[{index}].{member}");
            if !hook.path().is_absolute() {
                return Some((field("path"), "is not absolute"));
            }
            if hook.timeout().is_some_and(|seconds| seconds <= 0) {
                return Some((field("timeout"), "is not greater than zero"));
            }
        }
    }
    None
}

/// The points of `create`, in their order.
pub const OF_CREATE: [Point; 3] = [Point::Prestart, Point::CreateRuntime, Point::CreateContainer];

/// Whether the container is only created when hooks have done their work.
pub fn awaited(hooks: Option<&Hooks>) -> bool {
    hooks.is_some_and(|hooks| OF_CREATE.iter().any(|point| !point.of(hooks).is_empty()))
}

/// Runs the hooks of `point` one after the other; the first that fails ends that.
///
/// # Errors
/// [`HookError`] names the hook.
pub fn run(point: Point, state: &State) -> Result<(), HookError> {
    each(point, state).collect()
}

/// Runs all hooks of `point`, and calls `warn` for those that fail.
pub fn run_all(point: Point, state: &State, warn: impl FnMut(HookError)) {
    each(point, state).filter_map(Result::err).for_each(warn);
}

fn each(point: Point, state: &State) -> impl Iterator<Item = Result<(), HookError>> {
    let input = State { status: point.status(), ..state.clone() }.to_oci().to_string();
    let hooks = state.hooks.as_ref().map(|hooks| point.of(hooks)).unwrap_or_default();
    hooks.iter().enumerate().map(move |(index, hook)| {
        let namespace = (point == Point::CreateContainer).then(|| network_namespace(state)).transpose();
        namespace
            .map_err(Problem::Execute)
            .and_then(|namespace| execute(hook, &input, namespace))
            .map_err(|source| HookError { point: point.name(), index, path: hook.path().clone(), source })
    })
}

/// The network namespace that the container has on the host: the one of its host process.
fn network_namespace(state: &State) -> io::Result<File> {
    let pid = state.host.map_or(0, |host| host.pid);
    File::open(format!("/proc/{pid}/ns/net"))
}

/// Runs one hook to its end.
fn execute(hook: &Hook, input: &str, namespace: Option<File>) -> Result<(), Problem> {
    let mut errors = memory_file("hook-errors").map_err(Problem::Execute)?;
    let mut child = start(hook, input, namespace, &errors).map_err(Problem::Execute)?;
    // Checked to be positive.
    let limit = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok());
    match wait(&mut child, limit).map_err(Problem::Execute)? {
        None => Err(Problem::TimedOut(limit.unwrap_or_default())),
        Some(status) if status.success() => Ok(()),
        Some(status) => {
            let status = match status.signal() {
                Some(signal) => format!("signal {signal}"),
                None => format!("status {}", status.code().unwrap_or(-1)),
            };
            Err(Problem::Status { status, output: last_words(&mut errors) })
        }
    }
}

/// A file without a name. Unlike a pipe it takes any amount of data and never blocks: neither if a hook does not read
/// its input, nor if a process that a hook left behind keeps it open.
fn memory_file(name: &str) -> io::Result<File> {
    let name = std::ffi::CString::new(name)?;
    Ok(File::from(memfd_create(name.as_c_str(), MFdFlags::MFD_CLOEXEC)?))
}

fn start(hook: &Hook, input: &str, namespace: Option<File>, errors: &File) -> io::Result<Child> {
    let mut stdin = memory_file("container-state")?;
    stdin.write_all(input.as_bytes())?;
    stdin.seek(SeekFrom::Start(0))?;
    let mut command = Command::new(hook.path());
    // The specification's first argument is the hook's own name, as execve(2) has it.
    let arguments = hook.args().as_deref().unwrap_or_default();
    if let Some((name, rest)) = arguments.split_first() {
        command.arg0(name).args(rest);
    }
    let variables = hook.env().as_deref().unwrap_or_default();
    command
        .env_clear()
        .envs(variables.iter().filter_map(|variable| variable.split_once('=')))
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(errors.try_clone()?)
        .process_group(0);
    let namespace_fd = namespace.as_ref().map(AsRawFd::as_raw_fd);
    // SAFETY: the function makes system calls only, as is allowed between fork and exec.
    unsafe {
        command.pre_exec(move || {
            // This process may keep signals from its threads.
            SigSet::empty().thread_set_mask()?;
            // The hook is killed with this process.
            set_pdeathsig(Signal::SIGKILL)?;
            if let Some(fd) = namespace_fd {
                // The descriptor is open: `namespace` lives until after the fork.
                setns(std::os::fd::BorrowedFd::borrow_raw(fd), CloneFlags::CLONE_NEWNET)?;
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Waits for the hook; none if it had to be killed after `limit` seconds.
fn wait(child: &mut Child, limit: Option<u64>) -> io::Result<Option<ExitStatus>> {
    let Some(seconds) = limit else { return child.wait().map(Some) };
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            // The process group has its PID. It may have ended already.
            let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The end of what the hook wrote to standard error, after a colon.
fn last_words(errors: &mut File) -> String {
    let length = errors.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = Vec::new();
    let read = errors
        .seek(SeekFrom::Start(length.saturating_sub(MAX_OUTPUT)))
        .and_then(|_| errors.take(MAX_OUTPUT).read_to_end(&mut bytes));
    match (read, String::from_utf8_lossy(&bytes).trim()) {
        (Err(_), _) | (_, "") => String::new(),
        (_, text) => format!(": {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::path::Path;

    fn state(folder: &Path, hooks: serde_json::Value) -> State {
        serde_json::from_value(json!({
            "id": "a", "status": "created", "host": {"pid": std::process::id(), "start_time": 0}, "vmm": null,
            "bundle": folder, "rootfs": folder, "created": "", "owner": "root", "annotations": {"k": "v"},
            "cgroup": null, "exitStatus": null, "vmEnd": null, "hooks": hooks,
        }))
        .unwrap()
    }

    fn shell(script: &str) -> serde_json::Value {
        json!({"path": "/bin/sh", "args": ["hook", "-c", script, "argument"], "env": ["A=b"]})
    }

    fn message(error: &HookError) -> String {
        pouch_errors::chain(error)
    }

    #[test]
    fn a_hook_gets_state_arguments_and_environment() {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("cd {}; cat > state; echo \"$0 $A $HOME\" > rest", folder.path().display());
        let state = state(folder.path(), json!({"createRuntime": [shell(&script)]}));
        run(Point::Prestart, &state).unwrap();
        run(Point::CreateRuntime, &state).unwrap();
        let text = std::fs::read_to_string(folder.path().join("state")).unwrap();
        let told: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&told["id"], &told["status"]), (&json!("a"), &json!("creating")));
        assert_eq!((&told["pid"], &told["annotations"]["k"]), (&json!(std::process::id()), &json!("v")));
        assert_eq!(std::fs::read_to_string(folder.path().join("rest")).unwrap(), "argument b \n");
    }

    #[test]
    fn failures_name_the_hook_and_tell_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let hooks = json!({"prestart": [shell("true"), shell("echo no network >&2; exit 3"), shell("true")]});
        let error = message(&run(Point::Prestart, &state(folder.path(), hooks)).unwrap_err());
        assert_eq!(error, "hooks.prestart[1]: /bin/sh: it ended with status 3: no network");
        let missing = json!({"poststop": [{"path": "/no/such"}, shell("kill $$")]});
        let mut errors = Vec::new();
        run_all(Point::Poststop, &state(folder.path(), missing), |error| errors.push(message(&error)));
        assert!(errors[0].starts_with("hooks.poststop[0]: /no/such: it could not be executed"), "{errors:?}");
        assert_eq!(errors[1], "hooks.poststop[1]: /bin/sh: it ended with signal 15");
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut hook = shell("sleep 1000; true");
        hook["timeout"] = json!(1);
        let error = run(Point::Poststart, &state(folder.path(), json!({"poststart": [hook]}))).unwrap_err();
        assert!(message(&error).ends_with("it was killed after 1 s, its timeout"));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let check = |hooks| check(&serde_json::from_value(hooks).unwrap());
        let absolute = check(json!({"createRuntime": [{"path": "/a"}, {"path": "a"}]}));
        assert_eq!(absolute, Some(("hooks.createRuntime[1].path".to_owned(), "is not absolute")));
        let timeout = check(json!({"startContainer": [{"path": "/a", "timeout": 0}]}));
        assert_eq!(timeout, Some(("hooks.startContainer[0].timeout".to_owned(), "is not greater than zero")));
        assert_eq!(check(json!({"poststop": [{"path": "/a", "timeout": 1}]})), None);
    }
}
