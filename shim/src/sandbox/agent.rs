//! Calls to the agent in the guest. Its responses are checked and bounded, because the container may have
//! taken over the guest.

use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pouch_protocol::agent::command_error::Kind;
use pouch_protocol::agent::{
    AddEntropyRequest, AdjustTimeRequest, CheckRequest, CheckResponse, ConnectPortRequest, ContainerRequest,
    CreateContainerRequest, Empty, ExecProcessRequest, ForwardResolverRequest, OnlineCpusRequest,
    ProcessRequest, ResizeTerminalRequest, SetNetworkRequest, SetTimeRequest, Setting, SetupSandboxRequest,
    SignalProcessRequest, Stdio, Storage, UpdateContainerRequest, WaitProcessResponse,
};
use pouch_protocol::agent::{ContainerStatsResponse, ListProcessesResponse};
use pouch_protocol::agent_client::AgentClient;
use rustix::rand::GetRandomFlags;
use ttrpc::context::{Context, with_duration};
use ttrpc::{Code, Error};

use super::{GuestParts, PidNamespace};
use crate::failure::{Failure, printable};

/// How long an ordinary call may take. Generous: the host may be overloaded.
const CALL: Duration = Duration::from_secs(120);
/// Timeout of a signal: the sender of the last one waits for it.
const SIGNAL: Duration = Duration::from_secs(30);
/// Timeout of a shutdown: the caller watches for progress.
const SHUTDOWN: Duration = Duration::from_secs(24 * 60 * 60);
/// Bytes of entropy for a new guest.
const ENTROPY: usize = 64;

/// The agent refuses or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// It refuses.
    #[error("{message}")]
    Refused {
        /// The kind of error.
        code: Code,
        /// Its text.
        message: String,
        /// Why the command cannot be executed, if that is the error.
        command: Option<Kind>,
    },
    /// It does not answer.
    #[error("the agent in the guest does not respond to {call}: {text}")]
    Silent {
        /// The call.
        call: &'static str,
        /// The connection's error.
        text: String,
    },
}

impl AgentError {
    /// The agent did not answer to this call.
    pub fn silent(call: &'static str, text: &str) -> Self {
        AgentError::Silent { call, text: text.to_owned() }
    }

    /// The failure for the user.
    pub fn failure(&self) -> Failure {
        let message = self.to_string();
        let status = match self {
            AgentError::Refused { command: Some(Kind::NOT_FOUND), .. } => 127,
            AgentError::Refused { command: Some(Kind::NOT_EXECUTABLE), .. } => 126,
            _ => 1,
        };
        Failure { message, status }
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        error.failure()
    }
}

fn error(call: &'static str) -> impl FnOnce(Error) -> AgentError {
    move |error| match error {
        Error::RpcStatus(status) => AgentError::Refused {
            code: status.code(),
            message: printable(status.message()),
            command: pouch_protocol::command_error(&status),
        },
        other => AgentError::Silent { call, text: printable(&other.to_string()) },
    }
}

fn within(duration: Duration) -> Context {
    with_duration(duration)
}

/// A connection to the agent.
#[derive(Clone)]
pub struct Agent(AgentClient);

impl Agent {
    /// Speaks to the agent at the other end of `stream`.
    ///
    /// # Errors
    /// [`AgentError::Silent`] if the connection cannot be used.
    pub fn new(stream: UnixStream) -> Result<Self, AgentError> {
        // The client owns the descriptor from here on.
        let client = ttrpc::Client::new(stream.into_raw_fd()).map_err(error("connect"))?;
        Ok(Agent(AgentClient::new(client)))
    }

    /// The agent's version and features.
    ///
    /// # Errors
    /// [`AgentError`] if it does not answer.
    pub fn check(&self) -> Result<CheckResponse, AgentError> {
        self.0.check(within(CALL), &CheckRequest::new()).map_err(error("Check"))
    }

    /// Sets up the guest: clock, entropy, CPUs, storages, kernel settings.
    ///
    /// # Errors
    /// [`AgentError`] names what could not be set.
    pub fn setup(
        &self,
        hostname: &str,
        cpus: u8,
        storages: Vec<Storage>,
        settings: Vec<Setting>,
        sysctls: Vec<(String, String)>,
    ) -> Result<(), AgentError> {
        let mut request = SetupSandboxRequest::new();
        request.hostname = hostname.to_owned();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut time = SetTimeRequest::new();
        time.nanoseconds = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
        request.time = Some(time).into();
        if let Some(data) = entropy() {
            let mut entropy = AddEntropyRequest::new();
            entropy.data = data;
            request.entropy = Some(entropy).into();
        }
        let mut online = OnlineCpusRequest::new();
        online.count = cpus.into();
        request.cpus = Some(online).into();
        request.storages = storages;
        request.settings = settings;
        request.sysctls = sysctls.into_iter().collect();
        self.0.setup_sandbox(within(CALL), &request).map(drop).map_err(error("SetupSandbox"))
    }

    /// Moves the guest's wall clock by so many nanoseconds; returns what it shows then, in nanoseconds
    /// since 1970.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn adjust_time(&self, offset: i64) -> Result<i64, AgentError> {
        let mut request = AdjustTimeRequest::new();
        request.offset_nanoseconds = offset;
        let response = self.0.adjust_time(within(CALL), &request).map_err(error("AdjustTime"))?;
        Ok(response.nanoseconds)
    }

    /// Gives the guest's interfaces their names, addresses and routes.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn set_network(&self, request: SetNetworkRequest) -> Result<(), AgentError> {
        self.0.set_network(within(CALL), &request).map(drop).map_err(error("SetNetwork"))
    }

    /// Has the agent forward the guest's DNS queries to the host.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn forward_resolver(&self, request: ForwardResolverRequest) -> Result<(), AgentError> {
        self.0.forward_resolver(within(CALL), &request).map(drop).map_err(error("ForwardResolver"))
    }

    /// Has the agent connect to a port of the guest's loopback addresses.
    ///
    /// # Errors
    /// [`AgentError`] from the agent, if nobody listens.
    pub fn connect_port(&self, request: ConnectPortRequest) -> Result<(), AgentError> {
        self.0.connect_port(within(CALL), &request).map(drop).map_err(error("ConnectPort"))
    }

    /// Creates a container.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn create(&self, id: &str, spec: Vec<u8>, stdio: Stdio, parts: GuestParts) -> Result<(), AgentError> {
        let mut request = CreateContainerRequest::new();
        request.container_id = id.to_owned();
        request.spec = spec;
        request.stdio = Some(stdio).into();
        request.storages = parts.storages;
        request.devices = parts.devices;
        match parts.pids {
            PidNamespace::Own => {}
            PidNamespace::Pod => request.shared_pid_namespace = true,
            PidNamespace::Of(other) => request.pid_namespace_of = other,
        }
        self.0.create_container(within(CALL), &request).map(drop).map_err(error("CreateContainer"))
    }

    /// Kills what is left of a container, and removes it.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn delete(&self, id: &str) -> Result<(), AgentError> {
        self.0.delete_container(within(CALL), &container(id)).map(drop).map_err(error("DeleteContainer"))
    }

    /// Starts a container's process.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn start(&self, id: &str) -> Result<(), AgentError> {
        self.0.start_container(within(CALL), &container(id)).map(drop).map_err(error("StartContainer"))
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn pause(&self, id: &str) -> Result<(), AgentError> {
        self.0.pause_container(within(CALL), &container(id)).map(drop).map_err(error("PauseContainer"))
    }

    /// Resumes a container.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn resume(&self, id: &str) -> Result<(), AgentError> {
        self.0.resume_container(within(CALL), &container(id)).map(drop).map_err(error("ResumeContainer"))
    }

    /// The processes of a container.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn processes(&self, id: &str) -> Result<ListProcessesResponse, AgentError> {
        self.0.list_processes(within(CALL), &container(id)).map_err(error("ListProcesses"))
    }

    /// The counters of a container.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn stats(&self, id: &str) -> Result<ContainerStatsResponse, AgentError> {
        self.0.container_stats(within(CALL), &container(id)).map_err(error("ContainerStats"))
    }

    /// New limits.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn update(&self, id: &str, resources: Vec<u8>) -> Result<(), AgentError> {
        let mut request = UpdateContainerRequest::new();
        request.container_id = id.to_owned();
        request.resources = resources;
        self.0.update_container(within(CALL), &request).map(drop).map_err(error("UpdateContainer"))
    }

    /// Starts a further process, in the cgroup below the container's, if one is named.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn exec(
        &self,
        id: &str,
        exec_id: &str,
        process: Vec<u8>,
        stdio: Stdio,
        cgroup: &str,
    ) -> Result<(), AgentError> {
        let mut request = ExecProcessRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.process = process;
        request.stdio = Some(stdio).into();
        request.cgroup = cgroup.to_owned();
        self.0.exec_process(within(CALL), &request).map(drop).map_err(error("ExecProcess"))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn signal(&self, id: &str, exec_id: &str, signal: u32, all: bool) -> Result<(), AgentError> {
        let mut request = SignalProcessRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.signal = signal;
        request.all = all;
        self.0.signal_process(within(SIGNAL), &request).map(drop).map_err(error("SignalProcess"))
    }

    /// Waits, however long it takes, for the end of a process.
    ///
    /// # Errors
    /// [`AgentError`] if there is no such process, or the VM is gone.
    pub fn wait(&self, id: &str, exec_id: &str) -> Result<WaitProcessResponse, AgentError> {
        let mut request = ProcessRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        self.0.wait_process(Context::default(), &request).map_err(error("WaitProcess"))
    }

    /// Has the guest end every process and write everything to its disks.
    ///
    /// # Errors
    /// [`AgentError`] if the agent does not answer in time.
    pub fn shutdown(&self) -> Result<(), AgentError> {
        self.0.shutdown(within(SHUTDOWN), &Empty::new()).map(drop).map_err(error("Shutdown"))
    }

    /// Tells the size of a terminal.
    ///
    /// # Errors
    /// [`AgentError`] from the agent.
    pub fn resize(&self, id: &str, exec_id: &str, rows: u32, columns: u32) -> Result<(), AgentError> {
        let mut request = ResizeTerminalRequest::new();
        request.container_id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.rows = rows;
        request.columns = columns;
        self.0.resize_terminal(within(CALL), &request).map(drop).map_err(error("ResizeTerminal"))
    }
}

fn container(id: &str) -> ContainerRequest {
    let mut request = ContainerRequest::new();
    request.container_id = id.to_owned();
    request
}

/// Bytes from the host's generator.
fn entropy() -> Option<Vec<u8>> {
    random_bytes::<ENTROPY>().map(|bytes| bytes.to_vec())
}

/// Bytes from the host's generator.
pub fn random_bytes<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0u8; N];
    // Short ones are never cut (getrandom(2)).
    let got = rustix::rand::getrandom(&mut bytes[..], GetRandomFlags::empty()).ok()?;
    (got == N).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_cannot_run_have_the_shells_statuses() {
        let status = |kind: Option<Kind>| {
            let status = ttrpc::get_status(Code::NOT_FOUND, "exec: why");
            let status = match kind {
                Some(kind) => pouch_protocol::with_command_error(status, kind),
                None => status,
            };
            error("Call")(Error::RpcStatus(status)).failure().status
        };
        assert_eq!(status(Some(Kind::NOT_FOUND)), 127);
        assert_eq!(status(Some(Kind::NOT_EXECUTABLE)), 126);
        assert_eq!(status(None), 1, "whatever the text is");
    }

    #[test]
    fn texts_of_the_guest_are_bounded_and_printable() {
        assert_eq!(printable("a\x1b[31mb\n"), "a?[31mb\n");
        assert_eq!(printable(&"x".repeat(100_000)).len(), 2000);
    }
}
