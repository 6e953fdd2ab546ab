//! A running sandbox, as the handlers of requests use it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use oci_spec::runtime::LinuxResources;
use pouch_protocol::STREAM_PORT;
use pouch_protocol::agent::Stdio;

use super::agent::{Agent, AgentError, random_bytes};
use super::exec_queue::ExecQueue;
use super::protocol::{ExecRequest, Failure};
use super::vm::{Connecting, Vm, VmError};
use crate::cgroup::Cgroup;
use crate::container::size::VmSize;
use crate::container::{ContainerDir, State, StateError, Status, resources, size};
use crate::network::WireError;
use crate::network::wiring::Wiring;
use crate::stdio::NullStreams;

/// How long the agent may take to accept a stream.
const STREAM_TIMEOUT: Duration = Duration::from_secs(60);

/// A VM with its container.
pub struct Sandbox {
    /// The container's directory.
    pub dir: ContainerDir,
    /// The VM.
    pub vm: Vm,
    /// The agent in it.
    pub agent: Agent,
    /// The VM's description.
    pub size: VmSize,
    state: Mutex<State>,
    /// Held while limits change, so that updates do not overlap.
    updating: Mutex<()>,
    /// The network of the guest, for a retried start.
    wiring: Mutex<Wiring>,
    execs: AtomicU64,
    exec_queue: ExecQueue,
    /// Its process has ended, or its state is unknown.
    over: AtomicBool,
    /// The host proxy processes of `exec`, by the name of the process.
    exec_hosts: Mutex<BTreeMap<String, i32>>,
}

/// A stream could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The VM does not connect it.
    #[error("a standard stream could not be connected to the guest")]
    Connect(#[source] VmError),
    /// It broke at once.
    #[error("a standard stream was closed while it was connected")]
    Token(#[source] std::io::Error),
    /// The host has no random numbers.
    #[error("the host's random number generator failed")]
    Random,
    /// The agent refuses.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl StreamError {
    /// The failure for the user.
    pub fn failure(&self) -> Failure {
        match self {
            StreamError::Agent(error) => error.failure(),
            other => Failure::new(pouch_errors::chain(other)),
        }
    }
}

/// The streams of a process: stdin, stdout and stderr, or a terminal alone.
pub type Streams = Vec<UnixStream>;

/// Random names for the streams of a process.
pub struct Tokens(Stdio);

impl Tokens {
    /// Names for a terminal of the given size, or for those of the three streams that are not /dev/null.
    ///
    /// # Errors
    /// [`StreamError::Random`] if the host has no random numbers.
    pub fn new(terminal: bool, size: (u32, u32), null: NullStreams) -> Result<Self, StreamError> {
        let mut stdio = Stdio::new();
        stdio.terminal = terminal;
        (stdio.rows, stdio.columns) = size;
        if terminal {
            stdio.terminal_token = token()?;
        } else {
            let token = |null: bool| if null { Ok(0) } else { token() };
            stdio.stdin_token = token(null.stdin)?;
            stdio.stdout_token = token(null.stdout)?;
            stdio.stderr_token = token(null.stderr)?;
        }
        Ok(Tokens(stdio))
    }

    /// What the agent is told.
    pub fn stdio(&self) -> Stdio {
        self.0.clone()
    }

    /// Connects the streams, after the agent was told.
    ///
    /// # Errors
    /// [`StreamError`] if one cannot be connected.
    pub fn connect(&self, vm: &Vm) -> Result<Streams, StreamError> {
        let tokens: &[u64] = if self.0.terminal {
            &[self.0.terminal_token]
        } else {
            &[self.0.stdin_token, self.0.stdout_token, self.0.stderr_token]
        };
        // All are requested at once; the tokens identify them.
        let tokens: Vec<u64> = tokens.iter().copied().filter(|token| *token != 0).collect();
        let asked: Vec<_> =
            tokens.iter().map(|_| vm.ask_for_connection(STREAM_PORT, STREAM_TIMEOUT)).collect();
        let connect = |(asked, token): (Result<Connecting, VmError>, u64)| {
            let mut stream = asked.and_then(|asked| vm.connected(asked)).map_err(StreamError::Connect)?;
            stream.write_all(&token.to_le_bytes()).map_err(StreamError::Token)?;
            Ok(stream)
        };
        asked.into_iter().zip(tokens).map(connect).collect()
    }
}

/// A random number other than 0; 0 means no stream.
fn token() -> Result<u64, StreamError> {
    random_bytes().map(|bytes| u64::from_le_bytes(bytes).max(1)).ok_or(StreamError::Random)
}

impl Sandbox {
    /// A sandbox whose container is created.
    pub fn new(dir: ContainerDir, vm: Vm, agent: Agent, state: State, size: VmSize) -> Self {
        Sandbox {
            dir,
            vm,
            agent,
            size,
            state: Mutex::new(state),
            updating: Mutex::default(),
            wiring: Mutex::default(),
            execs: AtomicU64::new(1),
            exec_queue: ExecQueue::default(),
            over: AtomicBool::new(false),
            exec_hosts: Mutex::default(),
        }
    }

    /// The container's name.
    pub fn id(&self) -> &str {
        self.dir.id().as_str()
    }

    /// Gives the guest the current network of the calling thread's namespace. Unsupported parts are skipped; returns
    /// the reasons.
    pub fn update_network(&self) -> Vec<WireError> {
        self.lock_wiring().update(self)
    }

    /// Gives the interfaces back to the namespace that the calling thread is in.
    pub fn give_network_back(&self) {
        self.lock_wiring().undo();
    }

    fn lock_wiring(&self) -> MutexGuard<'_, Wiring> {
        self.wiring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the container's process has ended, or that the agent cannot be asked any more.
    pub fn set_over(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Whether the container's process has ended, as far as is known; the status changes with the end of this
    /// process only.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// The container's status.
    pub fn status(&self) -> Status {
        self.lock_state().status
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

    /// The container's cgroup on the host.
    pub fn cgroup(&self) -> Option<Cgroup> {
        self.lock_state().cgroup.clone()
    }

    /// Changes the state and writes the state file.
    ///
    /// # Errors
    /// [`StateError`] if it cannot be written.
    pub fn update_state(&self, change: impl FnOnce(&mut State)) -> Result<(), StateError> {
        let mut state = self.lock_state();
        change(&mut state);
        self.dir.save(&state)
    }

    /// Changes the status from one to another by `action`, exclusively.
    ///
    /// # Errors
    /// The container is in another status, or the action fails.
    pub fn transition(
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
        self.dir.save(&state).map_err(|error| Failure::new(pouch_errors::chain(&error)))
    }

    /// Updates limits on the host and in the guest. Limits that are not given are kept. If one of the two
    /// refuses, nothing changes in the other.
    ///
    /// # Errors
    /// Names a limit that a running VM cannot have, or that is refused.
    pub fn update(&self, resources: serde_json::Value) -> Result<(), Failure> {
        let failure = |error: &(dyn std::error::Error + 'static)| Failure::new(pouch_errors::chain(error));
        let resources: LinuxResources = serde_json::from_value(resources)
            .map_err(|error| Failure::new(format!("linux.resources cannot be read: {error}")))?;
        let cpus = resources.cpu().as_ref().and_then(|cpu| cpu.cpus().as_deref());
        if let Some(list) = cpus.filter(|list| !list.is_empty()) {
            size::check_host_cpus(list).map_err(|error| failure(&error))?;
        }
        let split = resources::split(&resources, self.size);
        let guest = serde_json::to_vec(&split.guest).map_err(|error| failure(&error))?;
        let _turn = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let cgroup = self.cgroup();
        let before = cgroup.as_ref().map(|cgroup| cgroup.settings(&split.host));
        let limited = cgroup.map_or(Ok(()), |cgroup| cgroup.limit(&split.host));
        // The guest is updated second, because the host's cgroup can be restored and the guest's cannot.
        let updated = match limited {
            Ok(()) => self.agent.update(self.id(), guest).map_err(Failure::from),
            Err(error) => Err(failure(&error)),
        };
        updated.inspect_err(|_| {
            if let Some(before) = before {
                before.restore();
            }
        })
    }

    /// Has the host kernel count an out-of-memory kill; the VM must have ended.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn count_oom_kill(&self) -> io::Result<()> {
        let cgroup = self.cgroup();
        cgroup.map_or(Ok(()), |cgroup| cgroup.count_oom_kill())
    }

    /// Starts a further process; returns its name and its streams, without those that are `null`.
    ///
    /// # Errors
    /// The container does not run, or the process cannot be started.
    pub fn exec(&self, request: &ExecRequest, null: NullStreams) -> Result<(String, Streams), Failure> {
        let status = self.status();
        if status != Status::Running {
            return Err(Failure::new(format!(
                "container {} is {status}, so no process can be started in it",
                self.id()
            )));
        }
        let exec_id = format!("exec-{}", self.execs.fetch_add(1, Ordering::Relaxed));
        let process = request.process.to_string().into_bytes();
        let streams = Tokens::new(request.terminal, (request.rows, request.columns), null)
            .and_then(|tokens| {
                let cgroup = request.cgroup.as_deref().unwrap_or_default();
                self.exec_queue
                    .take(|| self.agent.exec(self.id(), &exec_id, process, tokens.stdio(), cgroup))?;
                // A process without streams would be unknown to the caller.
                tokens.connect(&self.vm).inspect_err(|_| {
                    let _ = self.agent.signal(self.id(), &exec_id, libc::SIGKILL as u32, false);
                })
            })
            .map_err(|error| error.failure())?;
        Ok((exec_id, streams))
    }
}
