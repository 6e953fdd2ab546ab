//! A container in a running VM: its state, and the operations on it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use oci_spec::runtime::LinuxResources;
use pouch_protocol::agent::{ListProcessesResponse, WaitProcessResponse};
use serde_json::Value;

use super::{ContainerDir, State, StateError, Status, resources, stats};
use crate::failure::Failure;
use crate::sandbox::Sandbox;
use crate::sandbox::agent::AgentError;
use crate::sandbox::streams::{GuestStreams, Tokens};
use crate::streams::NullStreams;

/// A container that is created, with its VM.
pub struct Container {
    /// The container's directory.
    pub dir: ContainerDir,
    /// The VM that it is in.
    pub sandbox: Arc<Sandbox>,
    state: Mutex<State>,
    execs: AtomicU64,
    /// Its process has ended, or its state is unknown.
    over: AtomicBool,
    /// It was sent SIGKILL.
    killed: AtomicBool,
    /// The host proxy process of a pod's container; 0 if there is none.
    proxy: AtomicI32,
    /// The host proxy processes of `exec`, by the name of the process.
    exec_hosts: Mutex<BTreeMap<String, i32>>,
}

/// A process to start in a running container.
#[derive(Clone, Copy, Debug)]
pub struct ExecOptions<'a> {
    /// An OCI `process` object.
    pub process: &'a Value,
    /// A terminal instead of three streams.
    pub terminal: bool,
    /// The terminal's size: rows and columns.
    pub size: (u32, u32),
    /// Which of the streams are `/dev/null`.
    pub null: NullStreams,
    /// The cgroup below the container's in which it shall be; empty for that of its first process.
    pub cgroup: &'a str,
}

impl Container {
    /// A container that is created in a sandbox.
    pub fn new(dir: ContainerDir, sandbox: Arc<Sandbox>, state: State) -> Self {
        Container {
            dir,
            sandbox,
            state: Mutex::new(state),
            execs: AtomicU64::new(1),
            over: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            proxy: AtomicI32::new(0),
            exec_hosts: Mutex::default(),
        }
    }

    /// The container's name.
    pub fn id(&self) -> &str {
        self.dir.id().as_str()
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the container's process has ended, or that the agent cannot be asked any more.
    pub fn set_over(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Whether the container's process has ended, as far as is known; the status changes later, when its output was
    /// passed on.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Whether the container's process was sent SIGKILL. Then a reader that does not read its output is not waited for.
    pub fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// The container's status.
    pub fn status(&self) -> Status {
        self.lock_state().status
    }

    /// Records the process that stands for the container on the host, if that is not the sandbox host process.
    pub fn set_proxy(&self, pid: Option<i32>) {
        self.proxy.store(pid.unwrap_or(0), Ordering::Relaxed);
    }

    /// The process that stands for the container on the host, if that is not the sandbox host process.
    pub fn proxy(&self) -> Option<i32> {
        Some(self.proxy.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    /// Records the host proxy process of a process of `exec`; none when it has ended.
    pub fn set_exec_host(&self, exec_id: &str, pid: Option<i32>) {
        let mut hosts = self.exec_hosts.lock().unwrap_or_else(PoisonError::into_inner);
        match pid {
            Some(pid) => drop(hosts.insert(exec_id.to_owned(), pid)),
            None => drop(hosts.remove(exec_id)),
        }
    }

    /// The host proxy processes of `exec`.
    pub fn exec_hosts(&self) -> Vec<i32> {
        let hosts = self.exec_hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.values().copied().collect()
    }

    /// Writes the state file.
    ///
    /// # Errors
    /// [`StateError`] if it cannot be written.
    pub fn save(&self) -> Result<(), StateError> {
        self.dir.save(&self.lock_state())
    }

    /// Notes that the container has stopped: its exit status, and why its VM ended, if not because of that.
    ///
    /// # Errors
    /// [`StateError`] if it cannot be written.
    pub fn stopped(&self, exit_status: Option<i32>, vm_end: Option<String>) -> Result<(), StateError> {
        let mut state = self.lock_state();
        (state.status, state.exit_status, state.vm_end) = (Status::Stopped, exit_status, vm_end);
        self.dir.note(&state)
    }

    /// Changes the status from one to another by `action`, exclusively.
    fn transition(
        &self,
        from: Status,
        to: Status,
        action: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut state = self.lock_state();
        if state.status != from {
            let text = format!("container {} is {}, and must be {from} for this", state.id, state.status);
            return Err(Failure::new(text));
        }
        action()?;
        state.status = to;
        self.dir.note(&state).map_err(Failure::of)
    }

    /// Notes that the hooks of `create` have run.
    ///
    /// # Errors
    /// The container is created already.
    pub fn hooks_done(&self) -> Result<(), Failure> {
        self.transition(Status::Creating, Status::Created, || Ok(()))
    }

    /// Starts the container's process, after `prepare`.
    ///
    /// # Errors
    /// The container is not in status *created*, `prepare` fails, or the process cannot be started.
    pub fn start(&self, prepare: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        self.transition(Status::Created, Status::Running, || {
            prepare()?;
            Ok(self.sandbox.agent.start(self.id())?)
        })
    }

    /// Notes that a container without a process of its own runs, after `prepare`.
    ///
    /// # Errors
    /// It is not in status *created*, or `prepare` fails.
    pub fn start_without_process(
        &self,
        prepare: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.transition(Status::Created, Status::Running, prepare)
    }

    /// Freezes all processes.
    ///
    /// # Errors
    /// The container does not run, or the agent refuses.
    pub fn pause(&self) -> Result<(), Failure> {
        self.transition(Status::Running, Status::Paused, || Ok(self.sandbox.agent.pause(self.id())?))
    }

    /// Resumes all processes.
    ///
    /// # Errors
    /// The container is not paused, or the agent refuses.
    pub fn resume(&self) -> Result<(), Failure> {
        self.transition(Status::Paused, Status::Running, || Ok(self.sandbox.agent.resume(self.id())?))
    }

    /// Sends a signal to a process of `exec`, to the container's own if `exec_id` is empty, or to all.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn signal(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), AgentError> {
        if exec_id.is_empty() && signal == libc::SIGKILL as u32 {
            self.killed.store(true, Ordering::Release);
        }
        self.sandbox.agent.signal(self.id(), exec_id, signal, all)
    }

    /// Tells the size of the terminal of a process of `exec`, or of the container's own if `exec_id` is empty.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn resize(&self, exec_id: &str, rows: u32, columns: u32) -> Result<(), AgentError> {
        self.sandbox.agent.resize(self.id(), exec_id, rows, columns)
    }

    /// Waits for the end of a process of `exec`, or of the container's own if `exec_id` is empty.
    ///
    /// # Errors
    /// [`AgentError`] if there is no such process, or the VM is gone.
    pub fn wait(&self, exec_id: &str) -> Result<WaitProcessResponse, AgentError> {
        self.sandbox.agent.wait(self.id(), exec_id)
    }

    /// The container's processes in the guest.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn processes(&self) -> Result<ListProcessesResponse, AgentError> {
        self.sandbox.agent.processes(self.id())
    }

    /// The container's counters in runc's form, and how often the guest's out-of-memory killer killed a process.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn stats(&self) -> Result<(Value, u64), AgentError> {
        let stats = self.sandbox.agent.stats(self.id())?;
        Ok((stats::to_json(self.id(), &stats), stats.oom_kills))
    }

    /// Updates limits in the guest. Limits that are not given are kept.
    ///
    /// # Errors
    /// Names a limit that is refused.
    pub fn update(&self, resources: Value) -> Result<(), Failure> {
        let resources: LinuxResources = serde_json::from_value(resources)
            .map_err(|error| Failure::new(format!("linux.resources cannot be read: {error}")))?;
        let guest = serde_json::to_vec(&resources::of_guest(&resources)).map_err(Failure::of)?;
        Ok(self.sandbox.agent.update(self.id(), guest)?)
    }

    /// Starts a further process; returns its name and its streams.
    ///
    /// # Errors
    /// The container does not run, or the process cannot be started.
    pub fn exec(&self, options: &ExecOptions<'_>) -> Result<(String, GuestStreams), Failure> {
        let status = self.status();
        if status != Status::Running {
            return Err(Failure::new(format!(
                "container {} is {status}, so no process can be started in it",
                self.id()
            )));
        }
        let exec_id = format!("exec-{}", self.execs.fetch_add(1, Ordering::Relaxed));
        let process = options.process.to_string().into_bytes();
        let streams = Tokens::new(options.terminal, options.size, options.null)
            .and_then(|tokens| {
                self.sandbox.exec(self.id(), &exec_id, process, tokens.stdio(), options.cgroup)?;
                // A process without streams would be unknown to the caller.
                tokens.connect(&self.sandbox.vm).inspect_err(|_| {
                    let _ = self.signal(&exec_id, libc::SIGKILL as u32, false);
                })
            })
            .map_err(|error| error.failure())?;
        Ok((exec_id, streams))
    }
}
