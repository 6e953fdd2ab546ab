//! A container of the Task service, and the end of its process.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use containerd_shim::api::CreateTaskRequest;
use containerd_shim::protos::events::task::{TaskExit, TaskOOM};

use super::events::{Events, timestamp};
use super::exec::Exec;
use super::options::{self, OptionsError};
use super::pod::{JoinError, Membership, Part, Pod};
use super::rootfs::{self, RootfsError};
use super::state_root;
use crate::container::hooks::{self, Point};
use crate::container::pod_spec::Neighbors;
use crate::container::{ContainerDir, ContainerId, IdError};
use crate::host::child::ChildStreams;
use crate::host::client::{ClientError, HostAddress, HostClient};
use crate::host::delete::{self, DeleteError};
use crate::host::ending::{Ending, Exit};
use crate::host::lifecycle::{self, LifecycleError};
use crate::host::protocol::{Answer, Launch, Request};
use crate::logging::Log;
use crate::streams::Ends;
use crate::streams::uri::{Kept, Named, NamedError, Opened};

/// A container could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Its ID is invalid.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The options of the runtime.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// Its root file system.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// A stream.
    #[error(transparent)]
    Stream(#[from] NamedError),
    /// Anything of the container itself.
    #[error(transparent)]
    Lifecycle(#[from] LifecycleError),
    /// It could not join its pod.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// Its pod is not in this shim.
    #[error("the sandbox {0} of the container's pod does not exist, or has ended")]
    NoPod(String),
    /// Something that is not supported.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// A container could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Its VM, or what is left of it.
    #[error(transparent)]
    Delete(#[from] DeleteError),
    /// The host process of its pod.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// A container of the service.
pub struct TaskContainer {
    /// Its directory.
    pub dir: ContainerDir,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The PID of its host process, or of its proxy process in a pod.
    pub pid: u32,
    /// Its streams, as containerd named them.
    pub named: Named,
    /// Whether its process has a terminal.
    pub terminal: bool,
    /// The end of its process.
    pub ending: Arc<Ending>,
    /// Its further processes, by their IDs.
    pub execs: Mutex<BTreeMap<String, Arc<Exec>>>,
    kept: Mutex<Kept>,
    role: Role,
}

/// What a container is to a VM.
enum Role {
    /// It has one of its own.
    Alone,
    /// It is a pod's sandbox: it has a VM, and no process.
    Sandbox(Pod),
    /// It is in the VM of its pod.
    Member { sandbox: Arc<TaskContainer>, membership: Membership },
}

impl TaskContainer {
    /// Creates the container that containerd describes. `pod` finds the sandbox and the containers of a pod. When its
    /// process ends, events tell so.
    ///
    /// # Errors
    /// [`CreateError`] names the part; nothing is left behind.
    pub fn create(
        request: &CreateTaskRequest,
        namespace: &str,
        events: &Events,
        pod: impl FnOnce(&str) -> Option<(Arc<TaskContainer>, Neighbors)>,
    ) -> Result<Self, CreateError> {
        if !request.checkpoint.is_empty() {
            return Err(CreateError::Unsupported("checkpoint: restoring a container is not supported yet"));
        }
        let bundle = PathBuf::from(&request.bundle);
        let part = Part::of(&bundle);
        let id: ContainerId = request.id.parse()?;
        let named = Named {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            container: request.id.clone(),
            namespace: namespace.to_owned(),
        };
        rootfs::mount_all(&bundle, &request.rootfs)?;
        let made = named.open(request.terminal).map_err(CreateError::from).and_then(|opened| {
            let Opened { ends, kept } = opened;
            let made = match part {
                Part::Member(name) => {
                    let (sandbox, neighbors) = pod(&name).ok_or(CreateError::NoPod(name))?;
                    join(&sandbox, &id, &bundle, ends, neighbors)
                }
                part => launch(request, namespace, ends, part == Part::Sandbox),
            };
            Ok((made?, kept))
        });
        let (made, kept) = made.inspect_err(|_| rootfs::unmount(&bundle))?;
        let Made { dir, role, child } = made;
        let container = TaskContainer {
            dir,
            bundle,
            pid: child.id(),
            named,
            terminal: request.terminal,
            ending: Arc::default(),
            execs: Mutex::default(),
            kept: Mutex::new(kept),
            role,
        };
        match &container.role {
            Role::Member { .. } => container.watch_member(child, events.clone()),
            _ => container.watch(child, events.clone()),
        }
        Ok(container)
    }

    /// The pod, if this is its sandbox and has not ended.
    fn pod(&self) -> Option<&Pod> {
        match &self.role {
            Role::Sandbox(pod) if self.ending.get().is_none() => Some(pod),
            _ => None,
        }
    }

    /// Whether this is the sandbox of a pod.
    pub fn is_sandbox(&self) -> bool {
        matches!(self.role, Role::Sandbox(_))
    }

    /// The sandbox of the container's pod.
    pub fn sandbox(&self) -> Option<&Arc<TaskContainer>> {
        match &self.role {
            Role::Member { sandbox, .. } => Some(sandbox),
            _ => None,
        }
    }

    /// Reports the end of the process of a pod's container.
    fn watch_member(&self, mut proxy: Child, events: Events) {
        let (id, pid, ending) = (self.dir.id().to_string(), self.pid, self.ending.clone());
        let host = self.connect();
        let wait = move || {
            let answer = host.and_then(|host| host.ask(&Request::AwaitExit));
            let exit = match answer {
                Ok((Answer::Exit { status, out_of_memory }, _)) => {
                    Exit { out_of_memory, ..Exit::now(status) }
                }
                // The pod has ended, and everything in it.
                _ => Exit::killed(),
            };
            tell_end(&events, &id, pid, exit, &ending);
            // It ends with the container.
            let _ = proxy.wait();
        };
        if let Err(error) = thread::Builder::new().name("exit".to_owned()).spawn(wait) {
            log::error!("container {}: a thread could not be started: {error}", self.dir.id());
            self.ending.set(Exit::killed());
        }
    }

    /// Starts the process, and runs the hooks for that.
    ///
    /// # Errors
    /// [`LifecycleError`] names the hook, or what refused.
    pub fn start(&self, log: &Log) -> Result<(), LifecycleError> {
        if self.sandbox().is_none() {
            return lifecycle::start(&self.dir, log);
        }
        self.ask(&Request::Start)?;
        Ok(hooks::run(Point::Poststart, &self.dir.load()?)?)
    }

    /// Removes what is left of the container, which has ended or was not started; returns how it ended.
    ///
    /// # Errors
    /// [`RemoveError`] if something remains.
    pub fn remove(&self, log: &Log) -> Result<Exit, RemoveError> {
        match &self.role {
            Role::Alone | Role::Sandbox(_) => delete::delete(&self.dir, log, true)?,
            Role::Member { sandbox, membership } => {
                match self.ask(&Request::Remove) {
                    Ok(_) | Err(ClientError::Connect { .. } | ClientError::Gone(_)) => {}
                    Err(error) => return Err(error.into()),
                }
                self.ending.set(Exit::killed());
                if let Role::Sandbox(pod) = &sandbox.role {
                    membership.leave(pod);
                }
                // With the pod's directory it may be gone.
                let _ = self.dir.remove();
            }
        }
        rootfs::unmount(&self.bundle);
        let exit = self.ending.wait();
        self.end_execs();
        Ok(exit)
    }

    /// Reports the end of the process.
    fn watch(&self, child: Child, events: Events) {
        let (id, pid, ending) = (self.dir.id().to_string(), self.pid, self.ending.clone());
        let out_of_memory = if self.is_sandbox() { None } else { self.ask_whether_out_of_memory() };
        let wait = move || {
            let exit = Exit::now(wait_for(child));
            let out_of_memory = out_of_memory.is_some_and(|thread| thread.join().unwrap_or(false));
            tell_end(&events, &id, pid, Exit { out_of_memory, ..exit }, &ending);
        };
        // Without a thread, nobody would learn of the end.
        if let Err(error) = thread::Builder::new().name("exit".to_owned()).spawn(wait) {
            log::error!("container {}: a thread could not be started: {error}", self.dir.id());
            let _ = self.ask(&Request::Destroy);
        }
    }

    /// Asks the host process whether a process ran out of memory, which it knows when the container has ended.
    fn ask_whether_out_of_memory(&self) -> Option<thread::JoinHandle<bool>> {
        let host = HostClient::connect(&self.dir.socket()).ok()?;
        let ask =
            move || matches!(host.ask(&Request::AwaitEnd), Ok((Answer::Ended { out_of_memory: true }, _)));
        thread::Builder::new().name("memory".to_owned()).spawn(ask).ok()
    }

    /// A connection to the host process for requests that concern this container.
    ///
    /// # Errors
    /// [`ClientError`] if it is gone.
    pub fn connect(&self) -> Result<HostClient, ClientError> {
        HostAddress::of(&self.dir).connect()
    }

    /// Asks the host process.
    ///
    /// # Errors
    /// [`ClientError`] if it refuses, or is gone.
    pub fn ask(&self, request: &Request) -> Result<Answer, ClientError> {
        Ok(self.connect()?.ask(request)?.0)
    }

    /// Lets the process have an end of input once containerd's client has closed the FIFO.
    pub fn close_stdin(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).close_stdin();
    }

    /// Ends the wait for processes that were not started before the container was removed.
    fn end_execs(&self) {
        let execs = std::mem::take(&mut *self.execs.lock().unwrap_or_else(PoisonError::into_inner));
        for exec in execs.values().filter(|exec| !exec.is_started()) {
            exec.ending.set(Exit::killed());
        }
    }

    /// A further process.
    pub fn exec(&self, id: &str) -> Option<Arc<Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }
}

/// A container that was created, and its process on the host.
struct Made {
    dir: ContainerDir,
    role: Role,
    child: Child,
}

/// Creates a container in a VM of its own, or the VM of a pod.
fn launch(request: &CreateTaskRequest, namespace: &str, ends: Ends, pod: bool) -> Result<Made, CreateError> {
    let options = options::read(request.options.as_ref())?;
    let (root, bundle) = (state_root(namespace), PathBuf::from(&request.bundle));
    let dir = ContainerDir::new(&root, &request.id.parse()?);
    let launch = Launch {
        id: request.id.clone(),
        root,
        // Where runc's errors are looked for.
        log: Some(bundle.join("log.json")),
        log_json: true,
        bundle,
        console_socket: None,
        piped: true,
        pod,
        systemd_cgroup: options.systemd_cgroup,
        config: options.config,
    };
    let child = lifecycle::create(&launch, child_streams(ends))?;
    let role = if pod { Role::Sandbox(Pod::new(&dir)?) } else { Role::Alone };
    Ok(Made { dir, role, child })
}

/// Creates a container in the VM of its pod.
fn join(
    sandbox: &Arc<TaskContainer>,
    id: &ContainerId,
    bundle: &Path,
    ends: Ends,
    neighbors: Neighbors,
) -> Result<Made, CreateError> {
    let pod = sandbox.pod().ok_or_else(|| CreateError::NoPod(sandbox.dir.id().to_string()))?;
    let (membership, child) = Membership::join(pod, &sandbox.dir, id, bundle, ends, neighbors)?;
    let dir = sandbox.dir.of_member(id);
    let role = Role::Member { sandbox: sandbox.clone(), membership };
    Ok(Made { dir, role, child })
}

/// Publishes the end of a container's process, and then notes it.
fn tell_end(events: &Events, id: &str, pid: u32, exit: Exit, ending: &Ending) {
    if exit.out_of_memory {
        events.publish(TaskOOM { container_id: id.to_owned(), ..TaskOOM::default() });
    }
    ending.set(exit);
    events.publish(exit_event(id, id, pid, exit));
}

/// The event of a process's end.
pub fn exit_event(container: &str, id: &str, pid: u32, exit: Exit) -> TaskExit {
    TaskExit {
        container_id: container.to_owned(),
        id: id.to_owned(),
        pid,
        exit_status: exit.status,
        exited_at: Some(timestamp(exit.time)).into(),
        ..TaskExit::default()
    }
}

/// The host process's standard streams: it passes them on, also those of a terminal.
fn child_streams(ends: Ends) -> ChildStreams {
    let or_null = |end: Option<File>| end.map_or_else(Stdio::null, Stdio::from);
    let (stdin, stdout, stderr) = match ends {
        Ends::Streams { stdin, stdout, stderr } => (stdin, stdout, stderr),
        Ends::Terminal { input, output, console: _ } => (input, output, None),
    };
    ChildStreams { stdin: or_null(stdin), stdout: or_null(stdout), stderr: or_null(stderr) }
}

/// The status of the host process, which is the container's.
fn wait_for(mut child: Child) -> u32 {
    use std::os::unix::process::ExitStatusExt;
    let status = match child.wait() {
        Ok(status) => status.code().or_else(|| status.signal().map(|signal| 128 + signal)),
        Err(error) => {
            log::error!("the end of process {} is unknown: {error}", child.id());
            None
        }
    };
    status.and_then(|status| u32::try_from(status).ok()).unwrap_or(255)
}
