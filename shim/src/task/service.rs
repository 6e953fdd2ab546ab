//! The Task service (containerd, `api/runtime/task/v3/shim.proto`): a method for each request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use containerd_shim::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse,
    StateRequest, StateResponse, StatsRequest, StatsResponse, Status as TaskStatus, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use containerd_shim::protos::api::ProcessInfo;
use containerd_shim::protos::cgroups_v2::metrics::Metrics;
use containerd_shim::protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskIO, TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim::protos::ttrpc::{self, Code, get_status};
use containerd_shim::util::convert_to_any;
use containerd_shim::{ExitSignal, Flags, Task, TtrpcContext};

use super::container::TaskContainer;
use super::events::{Events, timestamp};
use super::exec::Exec;
use super::metrics;
use crate::container::Status;
use crate::container::pod_spec::Neighbors;
use crate::failure::Failure;
use crate::host::client::ClientError;
use crate::host::ending::{Ending, Exit};
use crate::host::limits::{self, LimitsError};
use crate::host::protocol::{Answer, Request};
use crate::logging::{Log, LogFormat};
use crate::streams::uri::Named;
use pouch_errors::chain;

/// The containers of a shim.
pub struct Service {
    pub(super) namespace: String,
    pub(super) events: Events,
    pub(super) exit: Arc<ExitSignal>,
    containers: Mutex<BTreeMap<String, Arc<TaskContainer>>>,
}

pub(super) fn refused(code: Code, text: impl Into<String>) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, text.into()))
}

pub(super) fn failed(error: &(dyn std::error::Error + 'static)) -> ttrpc::Error {
    refused(Code::UNKNOWN, chain(error))
}

fn failure(failure: Failure) -> ttrpc::Error {
    refused(Code::UNKNOWN, failure.message)
}

/// An error of the host process. The text of runc about a process that has ended is what clients look for.
fn of_host(error: &ClientError) -> ttrpc::Error {
    match error {
        ClientError::Connect { .. } | ClientError::Gone(_) => {
            refused(Code::NOT_FOUND, "process already finished")
        }
        ClientError::Refused(failure) if failure.message.starts_with("container not running") => {
            refused(Code::NOT_FOUND, "process already finished")
        }
        other => failed(other),
    }
}

fn unexpected() -> ttrpc::Error {
    refused(Code::INTERNAL, "unexpected response from the sandbox host process")
}

impl Service {
    /// A service without containers. `exit` is signalled when the shim is to end.
    pub fn new(flags: &Flags, events: Events, exit: Arc<ExitSignal>) -> Self {
        Service { namespace: flags.namespace.clone(), events, exit, containers: Mutex::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<TaskContainer>>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self, id: &str) -> ttrpc::Result<Arc<TaskContainer>> {
        let missing = || refused(Code::NOT_FOUND, format!("container {id} does not exist"));
        self.lock().get(id).cloned().ok_or_else(missing)
    }

    fn exec_of(container: &TaskContainer, id: &str) -> ttrpc::Result<Arc<Exec>> {
        container.exec(id).ok_or_else(|| refused(Code::NOT_FOUND, format!("exec {id} does not exist")))
    }

    /// The end of a process that is a container's own if `exec_id` is empty.
    fn ending(&self, id: &str, exec_id: &str) -> ttrpc::Result<Arc<Ending>> {
        let container = self.container(id)?;
        if exec_id.is_empty() {
            return Ok(container.ending.clone());
        }
        Ok(Self::exec_of(&container, exec_id)?.ending.clone())
    }

    /// Where errors and warnings of the container go.
    pub(super) fn log(container: &TaskContainer) -> Log {
        Log::new(Some(container.bundle.join("log.json")), LogFormat::Json)
    }

    /// The sandbox with this ID, and the processes that stand for its containers.
    fn pod(&self, id: &str) -> Option<(Arc<TaskContainer>, Neighbors)> {
        let containers = self.lock();
        let sandbox = containers.get(id)?.clone();
        let number = |pid: u32| i32::try_from(pid).ok();
        let members =
            containers.iter().filter(|(_, one)| one.sandbox().is_some_and(|of| Arc::ptr_eq(of, &sandbox)));
        // The PID of one that has ended may be another process by now.
        let members = members.filter(|(_, one)| one.ending.get().is_none());
        let members = members.filter_map(|(id, one)| Some((number(one.pid)?, id.clone()))).collect();
        let neighbors = Neighbors { sandbox: number(sandbox.pid)?, containers: members };
        Some((sandbox, neighbors))
    }

    /// Whether there are containers in the pod of this sandbox.
    fn has_members(&self, sandbox: &Arc<TaskContainer>) -> bool {
        let containers = self.lock();
        containers.values().any(|one| one.sandbox().is_some_and(|of| Arc::ptr_eq(of, sandbox)))
    }

    /// Removes a container that has ended or was not started; returns how it ended.
    pub(super) fn remove(&self, id: &str, container: &TaskContainer) -> ttrpc::Result<Exit> {
        let exit = container.remove(&Self::log(container)).map_err(|error| failed(&error))?;
        self.lock().remove(id);
        self.events.publish(TaskDelete {
            container_id: id.to_owned(),
            pid: container.pid,
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.time)).into(),
            id: id.to_owned(),
            ..TaskDelete::default()
        });
        Ok(exit)
    }

    fn delete_exec(&self, container: &TaskContainer, id: &str) -> ttrpc::Result<DeleteResponse> {
        let exec = Self::exec_of(container, id)?;
        if exec.is_started() && exec.ending.get().is_none() {
            return Err(refused(Code::FAILED_PRECONDITION, format!("exec {id} has not ended")));
        }
        container.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        let started = exec.is_started();
        if !started {
            // It will never run, and nobody need wait for it any longer.
            exec.ending.set(Exit::killed());
        }
        Ok(deleted(if started { std::process::id() } else { 0 }, exec.ending.get()))
    }
}

fn deleted(pid: u32, exit: Option<Exit>) -> DeleteResponse {
    let mut response = DeleteResponse::new();
    response.pid = pid;
    if let Some(exit) = exit {
        response.exit_status = exit.status;
        response.exited_at = Some(timestamp(exit.time)).into();
    }
    response
}

fn io_of(named: &Named, terminal: bool) -> TaskIO {
    TaskIO {
        stdin: named.stdin.clone(),
        stdout: named.stdout.clone(),
        stderr: named.stderr.clone(),
        terminal,
        ..TaskIO::default()
    }
}

/// The status of a container's own process.
pub(super) fn status_of(container: &TaskContainer) -> TaskStatus {
    if container.ending.get().is_some() {
        return TaskStatus::STOPPED;
    }
    match container.dir.load().map(|state| state.status) {
        Ok(Status::Creating | Status::Created) => TaskStatus::CREATED,
        Ok(Status::Running) => TaskStatus::RUNNING,
        Ok(Status::Paused) => TaskStatus::PAUSED,
        // Its end is about to be noted.
        Ok(Status::Stopped) => TaskStatus::STOPPED,
        Err(_) => TaskStatus::UNKNOWN,
    }
}

impl Task for Service {
    fn create(&self, _ctx: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        if self.lock().contains_key(&request.id) {
            return Err(refused(Code::ALREADY_EXISTS, format!("container {} exists already", request.id)));
        }
        let pod = |id: &str| self.pod(id);
        let container = TaskContainer::create(&request, &self.namespace, &self.events, pod);
        let container = Arc::new(container.map_err(|error| failed(&error))?);
        self.lock().insert(request.id.clone(), container.clone());
        self.events.publish(TaskCreate {
            container_id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(io_of(&container.named, container.terminal)).into(),
            pid: container.pid,
            ..TaskCreate::default()
        });
        Ok(CreateTaskResponse { pid: container.pid, ..CreateTaskResponse::default() })
    }

    fn start(&self, _ctx: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let container = self.container(&request.id)?;
        let started = |pid| StartResponse { pid, ..StartResponse::default() };
        if request.exec_id.is_empty() {
            container.start(&Self::log(&container)).map_err(|error| failed(&error))?;
            let pid = container.pid;
            self.events.publish(TaskStart { container_id: request.id, pid, ..TaskStart::default() });
            return Ok(started(pid));
        }
        let exec = Self::exec_of(&container, &request.exec_id)?;
        // A process in the guest has no PID on the host; this one passes its streams on.
        let pid = std::process::id();
        exec.start(&container, pid, &self.events).map_err(failure)?;
        self.events.publish(TaskExecStarted {
            container_id: request.id,
            exec_id: request.exec_id,
            pid,
            ..TaskExecStarted::default()
        });
        Ok(started(pid))
    }

    fn exec(&self, _ctx: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        let exec = Exec::new(&request, &self.namespace).map_err(failure)?;
        let mut execs = container.execs.lock().unwrap_or_else(PoisonError::into_inner);
        if execs.contains_key(&request.exec_id) {
            return Err(refused(Code::ALREADY_EXISTS, format!("exec {} exists already", request.exec_id)));
        }
        execs.insert(request.exec_id.clone(), Arc::new(exec));
        drop(execs);
        self.events.publish(TaskExecAdded {
            container_id: request.id,
            exec_id: request.exec_id,
            ..TaskExecAdded::default()
        });
        Ok(Empty::new())
    }

    fn state(&self, _ctx: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let container = self.container(&request.id)?;
        let mut response = StateResponse::new();
        response.bundle = container.bundle.display().to_string();
        let (named, ending) = if request.exec_id.is_empty() {
            response.pid = container.pid;
            response.terminal = container.terminal;
            response.status = status_of(&container).into();
            (container.named.clone(), container.ending.clone())
        } else {
            let exec = Self::exec_of(&container, &request.exec_id)?;
            response.terminal = exec.terminal;
            response.pid = if exec.is_started() { std::process::id() } else { 0 };
            response.status = match (exec.is_started(), exec.ending.get()) {
                (_, Some(_)) => TaskStatus::STOPPED,
                (true, None) => TaskStatus::RUNNING,
                (false, None) => TaskStatus::CREATED,
            }
            .into();
            (exec.named.clone(), exec.ending.clone())
        };
        (response.stdin, response.stdout, response.stderr) = (named.stdin, named.stdout, named.stderr);
        if let Some(exit) = ending.get() {
            response.exit_status = exit.status;
            response.exited_at = Some(timestamp(exit.time)).into();
        }
        (response.id, response.exec_id) = (request.id, request.exec_id);
        Ok(response)
    }

    fn wait(&self, _ctx: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let exit = self.ending(&request.id, &request.exec_id)?.wait();
        let mut response = WaitResponse::new();
        response.exit_status = exit.status;
        response.exited_at = Some(timestamp(exit.time)).into();
        Ok(response)
    }

    fn kill(&self, _ctx: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        if self.ending(&request.id, &request.exec_id)?.get().is_some() {
            return Err(refused(Code::NOT_FOUND, "process already finished"));
        }
        let exec_id = if request.exec_id.is_empty() {
            None
        } else {
            let exec_id = Self::exec_of(&container, &request.exec_id)?.exec_id();
            Some(exec_id.ok_or_else(|| refused(Code::FAILED_PRECONDITION, "the process is not started"))?)
        };
        let signal = Request::Signal { exec_id, signal: request.signal, all: request.all };
        container.ask(&signal).map_err(|error| of_host(&error))?;
        Ok(Empty::new())
    }

    fn delete(&self, _ctx: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let container = self.container(&request.id)?;
        if !request.exec_id.is_empty() {
            return self.delete_exec(&container, &request.exec_id);
        }
        let created = status_of(&container) == TaskStatus::CREATED;
        if container.ending.get().is_none() && !created {
            return Err(refused(
                Code::FAILED_PRECONDITION,
                format!("container {} has not ended", request.id),
            ));
        }
        if container.is_sandbox() && self.has_members(&container) {
            let text = format!("the pod {} still has containers", request.id);
            return Err(refused(Code::FAILED_PRECONDITION, text));
        }
        let exit = self.remove(&request.id, &container)?;
        Ok(deleted(container.pid, Some(exit)))
    }

    fn pids(&self, _ctx: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let answer =
            self.container(&request.id)?.ask(&Request::HostProcesses).map_err(|error| of_host(&error))?;
        let Answer::HostProcesses(pids) = answer else { return Err(unexpected()) };
        let pids = pids.into_iter().filter_map(|pid| u32::try_from(pid).ok());
        let mut response = PidsResponse::new();
        response.processes = pids.map(|pid| ProcessInfo { pid, ..ProcessInfo::default() }).collect();
        Ok(response)
    }

    fn pause(&self, _ctx: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        self.container(&request.id)?.ask(&Request::Pause).map_err(|error| of_host(&error))?;
        self.events.publish(TaskPaused { container_id: request.id, ..TaskPaused::default() });
        Ok(Empty::new())
    }

    fn resume(&self, _ctx: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        self.container(&request.id)?.ask(&Request::Resume).map_err(|error| of_host(&error))?;
        self.events.publish(TaskResumed { container_id: request.id, ..TaskResumed::default() });
        Ok(Empty::new())
    }

    fn checkpoint(&self, _ctx: &TtrpcContext, _request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(refused(Code::UNIMPLEMENTED, "checkpoint: containers cannot be checkpointed yet"))
    }

    fn resize_pty(&self, _ctx: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        let exec_id = if request.exec_id.is_empty() {
            None
        } else {
            let exec = Self::exec_of(&container, &request.exec_id)?;
            let Some(exec_id) = exec.exec_id() else {
                exec.set_size(request.height, request.width);
                return Ok(Empty::new());
            };
            Some(exec_id)
        };
        let resize = Request::Resize { exec_id, rows: request.height, columns: request.width };
        container.ask(&resize).map_err(|error| of_host(&error))?;
        Ok(Empty::new())
    }

    fn close_io(&self, _ctx: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        match (request.stdin, request.exec_id.is_empty()) {
            (false, _) => {}
            (true, true) => container.close_stdin(),
            (true, false) => Self::exec_of(&container, &request.exec_id)?.close_stdin(),
        }
        Ok(Empty::new())
    }

    fn update(&self, _ctx: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.container(&request.id)?;
        let resources = serde_json::from_slice(&request.resources.value)
            .map_err(|error| refused(Code::INVALID_ARGUMENT, format!("resources are malformed: {error}")))?;
        limits::update(&container.dir, resources).map_err(|error| match error {
            LimitsError::Client(error) => of_host(&error),
            error => failed(&error),
        })?;
        Ok(Empty::new())
    }

    fn stats(&self, _ctx: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let container = self.container(&request.id)?;
        // The sandbox of a pod has no process that could use anything.
        let metrics = if container.is_sandbox() {
            Metrics::new()
        } else {
            let answer = container.ask(&Request::Stats).map_err(|error| of_host(&error))?;
            let Answer::Stats(counters) = answer else { return Err(unexpected()) };
            metrics::of(&counters.stats, counters.oom_kills)
        };
        let mut response = StatsResponse::new();
        response.stats = Some(convert_to_any(Box::new(metrics)).map_err(|error| failed(&error))?).into();
        Ok(response)
    }

    fn connect(&self, _ctx: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let task_pid = self.lock().get(&request.id).map_or(0, |container| container.pid);
        let (shim_pid, version) = (std::process::id(), env!("CARGO_PKG_VERSION").to_owned());
        Ok(ConnectResponse { shim_pid, task_pid, version, ..ConnectResponse::default() })
    }

    fn shutdown(&self, _ctx: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        if request.now || self.lock().is_empty() {
            self.exit.signal();
        }
        Ok(Empty::new())
    }
}
