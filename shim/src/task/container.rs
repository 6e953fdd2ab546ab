//! A container of the Task service, and the end of its process.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::SystemTime;

use containerd_shim::api::CreateTaskRequest;
use containerd_shim::protos::events::task::{TaskExit, TaskOOM};

use super::events::{Events, timestamp};
use super::exec::Exec;
use super::options::{self, OptionsError};
use super::rootfs::{self, RootfsError};
use super::state_root;
use crate::container::bundle::CONFIG_FILE;
use crate::container::{ContainerDir, IdError};
use crate::failure::Failure;
use crate::host::child::ChildStreams;
use crate::host::client::{ClientError, HostClient};
use crate::host::lifecycle::{self, LifecycleError};
use crate::host::protocol::{Answer, Launch, Request};
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
    /// Something that is not supported.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its status, as in a shell.
    pub status: u32,
    /// When.
    pub time: SystemTime,
}

/// The end of a process, which others wait for.
#[derive(Default)]
pub struct Ending(Mutex<Option<Exit>>, Condvar);

impl Ending {
    fn lock(&self) -> MutexGuard<'_, Option<Exit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it ended, if it has.
    pub fn get(&self) -> Option<Exit> {
        *self.lock()
    }

    /// Notes the end, now.
    pub fn set(&self, status: u32) -> Exit {
        let exit = Exit { status, time: SystemTime::now() };
        *self.lock() = Some(exit);
        self.1.notify_all();
        exit
    }

    /// Waits for the end.
    pub fn wait(&self) -> Exit {
        let mut ended = self.lock();
        loop {
            match *ended {
                Some(exit) => return exit,
                None => ended = self.1.wait(ended).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// A container of the service.
pub struct TaskContainer {
    /// Its directory.
    pub dir: ContainerDir,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The PID of its host process.
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
}

impl TaskContainer {
    /// Creates the container that containerd describes. When its process ends, events tell so.
    ///
    /// # Errors
    /// [`CreateError`] names the part; nothing is left behind.
    pub fn create(
        request: &CreateTaskRequest,
        namespace: &str,
        events: &Events,
    ) -> Result<Self, CreateError> {
        if !request.checkpoint.is_empty() {
            return Err(CreateError::Unsupported("checkpoint: restoring a container is not supported yet"));
        }
        let bundle = PathBuf::from(&request.bundle);
        if is_of_pod(&bundle) {
            return Err(CreateError::Unsupported(
                "io.kubernetes.cri.container-type: pods are not supported yet; only containers that are not part of a \
                 pod have a VM",
            ));
        }
        let options = options::read(request.options.as_ref())?;
        let root = state_root(namespace);
        let dir = ContainerDir::new(&root, &request.id.parse()?);
        let named = Named {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            container: request.id.clone(),
            namespace: namespace.to_owned(),
        };
        rootfs::mount_all(&bundle, &request.rootfs)?;
        let created = named.open(request.terminal).map_err(CreateError::from).and_then(|opened| {
            let launch = Launch {
                id: request.id.clone(),
                root,
                bundle: bundle.clone(),
                console_socket: None,
                piped: true,
                systemd_cgroup: options.systemd_cgroup,
                // Where runc's errors are looked for.
                log: Some(bundle.join("log.json")),
                log_json: true,
                config: options.config,
            };
            let Opened { ends, kept } = opened;
            Ok((lifecycle::create(&launch, child_streams(ends))?, kept))
        });
        let (child, kept) = created.inspect_err(|_| rootfs::unmount(&bundle))?;
        let container = TaskContainer {
            dir,
            bundle,
            pid: child.id(),
            named,
            terminal: request.terminal,
            ending: Arc::default(),
            execs: Mutex::default(),
            kept: Mutex::new(kept),
        };
        container.watch(child, events.clone());
        Ok(container)
    }

    /// Reports the end of the process.
    fn watch(&self, child: Child, events: Events) {
        let (id, pid, ending) = (self.dir.id().to_string(), self.pid, self.ending.clone());
        let out_of_memory = self.ask_whether_out_of_memory();
        let wait = move || {
            let status = wait_for(child);
            if out_of_memory.is_some_and(|thread| thread.join().unwrap_or(false)) {
                events.publish(TaskOOM { container_id: id.clone(), ..TaskOOM::default() });
            }
            let exit = ending.set(status);
            events.publish(exit_event(&id, &id, pid, exit));
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

    /// Asks the host process.
    ///
    /// # Errors
    /// [`ClientError`] if it refuses, or is gone.
    pub fn ask(&self, request: &Request) -> Result<Answer, ClientError> {
        Ok(HostClient::connect(&self.dir.socket())?.ask(request)?.0)
    }

    /// Lets the process have an end of input once containerd's client has closed the FIFO.
    pub fn close_stdin(&self) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).close_stdin();
    }

    /// Ends the wait for processes that were not started before the container was removed.
    pub fn end_execs(&self) {
        let execs = std::mem::take(&mut *self.execs.lock().unwrap_or_else(PoisonError::into_inner));
        for exec in execs.values().filter(|exec| !exec.is_started()) {
            exec.ending.set(128 + libc::SIGKILL as u32);
        }
    }

    /// A further process.
    pub fn exec(&self, id: &str) -> Option<Arc<Exec>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }
}

/// Whether Kubernetes made the container of this bundle. A specification that cannot be read is reported later.
fn is_of_pod(bundle: &Path) -> bool {
    let text = std::fs::read(bundle.join(CONFIG_FILE)).unwrap_or_default();
    let spec: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    spec["annotations"].get("io.kubernetes.cri.container-type").is_some()
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

impl From<&CreateError> for Failure {
    fn from(error: &CreateError) -> Self {
        Failure::new(pouch_errors::chain(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_of_a_pod_is_told_by_its_annotation() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(!is_of_pod(bundle.path()));
        let config = bundle.path().join(CONFIG_FILE);
        std::fs::write(&config, r#"{"annotations": {"other": "sandbox"}}"#).unwrap();
        assert!(!is_of_pod(bundle.path()));
        std::fs::write(&config, r#"{"annotations": {"io.kubernetes.cri.container-type": "sandbox"}}"#)
            .unwrap();
        assert!(is_of_pod(bundle.path()));
    }

    #[test]
    fn all_who_wait_learn_of_the_end() {
        let ending = Arc::new(Ending::default());
        assert_eq!(ending.get(), None);
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let ending = ending.clone();
                thread::spawn(move || ending.wait())
            })
            .collect();
        let exit = ending.set(7);
        for thread in waiting {
            assert_eq!(thread.join().unwrap(), exit);
        }
        assert_eq!(ending.wait(), exit);
    }
}
