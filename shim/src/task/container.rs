//! A container of the Task service, and the end of its process.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::SystemTime;

use containerd_shim::api::CreateTaskRequest;

use super::events::Events;
use super::exec::Exec;
use super::options::{self, Options, OptionsError};
use super::pod::{JoinError, Membership, Part, Pod};
use super::rootfs::{self, RootfsError};
use super::sandbox_files::PodFiles;
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
                part => {
                    let options = options::read(request.options.as_ref())?;
                    let vm = if part == Part::Sandbox { NewVm::Pod(None) } else { NewVm::Alone };
                    launch(&id, &bundle, namespace, options, ends, vm)
                }
            };
            Ok((made?, kept))
        });
        let (made, kept) = made.inspect_err(|_| rootfs::unmount(&bundle))?;
        Ok(Self::watched(made, bundle, named, request.terminal, kept, events))
    }

    /// Creates the sandbox that the bundle describes, for containers that share these files.
    ///
    /// # Errors
    /// [`CreateError`] names the part.
    pub fn create_sandbox(
        id: &ContainerId,
        bundle: &Path,
        options: Options,
        files: PodFiles,
        namespace: &str,
        events: &Events,
    ) -> Result<Self, CreateError> {
        let named = Named::default();
        let Opened { ends, kept } = named.open(false)?;
        let made = launch(id, bundle, namespace, options, ends, NewVm::Pod(Some(files)))?;
        Ok(Self::watched(made, bundle.to_owned(), named, false, kept, events))
    }

    /// The container that was made, whose end events will tell.
    fn watched(
        made: Made,
        bundle: PathBuf,
        named: Named,
        terminal: bool,
        kept: Kept,
        events: &Events,
    ) -> Self {
        let Made { dir, role, child } = made;
        let container = TaskContainer {
            dir,
            bundle,
            pid: child.id(),
            named,
            terminal,
            ending: Arc::default(),
            execs: Mutex::default(),
            kept: Mutex::new(kept),
            role,
        };
        match &container.role {
            Role::Member { .. } => container.watch_member(child, events.clone()),
            _ => container.watch(child, events.clone()),
        }
        container
    }

    /// The pod, if this is its sandbox and has not ended.
    fn pod(&self) -> Option<&Pod> {
        match &self.role {
            Role::Sandbox(pod) if self.ending.get().is_none() => Some(pod),
            _ => None,
        }
    }

    /// When it was created, if this is the sandbox of a pod.
    pub fn sandbox_created(&self) -> Option<SystemTime> {
        if let Role::Sandbox(pod) = &self.role { Some(pod.created) } else { None }
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
            events.publish_end(&id, pid, exit, &ending);
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
            events.publish_end(&id, pid, Exit { out_of_memory, ..exit }, &ending);
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

/// What a new VM is for.
enum NewVm {
    /// A container.
    Alone,
    /// A pod, and the files of its containers, if the engine leaves them to the shim.
    Pod(Option<PodFiles>),
}

/// Creates a container in a VM of its own, or the VM of a pod.
fn launch(
    id: &ContainerId,
    bundle: &Path,
    namespace: &str,
    options: Options,
    ends: Ends,
    vm: NewVm,
) -> Result<Made, CreateError> {
    let root = state_root(namespace);
    let dir = ContainerDir::new(&root, id);
    let launch = Launch {
        id: id.to_string(),
        root,
        // Where runc's errors are looked for.
        log: Some(bundle.join("log.json")),
        log_json: true,
        bundle: bundle.to_owned(),
        console_socket: None,
        piped: true,
        pod: matches!(vm, NewVm::Pod(_)),
        systemd_cgroup: options.systemd_cgroup,
        config: options.config,
    };
    let child = lifecycle::create(&launch, child_streams(ends))?;
    let role = match vm {
        NewVm::Alone => Role::Alone,
        NewVm::Pod(files) => Role::Sandbox(Pod::new(&dir, files)?),
    };
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
