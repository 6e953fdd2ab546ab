//! Handles the requests of the command line.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use pouch_vmm_api::control::ControlSocket;
use ttrpc::Code;

use super::client::HostListener;
use super::pod::{Member, Members};
use super::protocol::{Answer, Counters, ExecRequest, Process, Request};
use super::run::Event;
use crate::container::Container;
use crate::container::running::ExecOptions;
use crate::failure::Failure;
use crate::network::netlink::Netlink;
use crate::network::{WireError, watch};
use crate::sandbox::agent::AgentError;
use crate::streams::NullStreams;

/// SIGKILL, which cannot be caught.
const KILL: u32 = libc::SIGKILL as u32;
/// Delay before the next attempt to accept a connection after a failed one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Stack of a connection's thread.
const STACK: usize = 256 * 1024;
/// The maximum number of processes that are listed.
const MAX_PROCESSES: usize = 4096;

/// Accepts connections until the process ends.
///
/// # Errors
/// If a thread cannot be started.
pub fn serve(
    listener: HostListener,
    container: Arc<Container>,
    pod: Option<Arc<Members>>,
    events: Sender<Event>,
) -> io::Result<()> {
    thread::Builder::new().name("listener".to_owned()).stack_size(STACK).spawn(move || {
        loop {
            let Ok(socket) = listener.accept() else {
                // There are no descriptors or memory left, which may change.
                thread::sleep(ACCEPT_PAUSE);
                continue;
            };
            let connection = Connection {
                socket: Arc::new(socket),
                container: container.clone(),
                pod: pod.clone(),
                member: None,
                events: events.clone(),
                attends: false,
                exec: None,
                null: NullStreams::default(),
            };
            // Without a thread the connection is closed, which the client notices.
            let _ = thread::Builder::new()
                .name("request".to_owned())
                .stack_size(STACK)
                .spawn(move || connection.serve());
        }
    })?;
    Ok(())
}

/// The process that a connection started.
struct Exec {
    id: String,
    ended: Arc<AtomicBool>,
}

struct Connection {
    socket: Arc<ControlSocket>,
    /// The container that requests concern.
    container: Arc<Container>,
    /// The containers of the pod, if this is one.
    pod: Option<Arc<Members>>,
    /// The container of the pod that requests concern, instead of its sandbox.
    member: Option<Arc<Member>>,
    events: Sender<Event>,
    /// The client is the container's host proxy process.
    attends: bool,
    exec: Option<Exec>,
    /// The streams that its process does not need.
    null: NullStreams,
}

impl Connection {
    fn serve(mut self) {
        loop {
            let answer = match self.socket.receive::<Request>() {
                Ok(Some((request, fds))) => match self.pod.clone() {
                    Some(pod) => self.handle_in_pod(&pod, request, fds),
                    None => self.handle(request, fds),
                },
                // The command line may have been replaced by a newer one since the container was created.
                Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(Failure::new(format!(
                    "the host process of the container is of another build of pouch-vm and does not know this \
                     request: {error}"
                ))),
                Ok(None) | Err(_) => break,
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => continue,
                Err(failure) => Answer::Failed(failure),
            };
            if self.socket.send(&answer, &[]).is_err() {
                break;
            }
        }
        if self.attends {
            // It may have ended.
            let _ = self.signal_member(KILL, false);
        }
        // If the client disconnects before the process that it started has ended, the process is killed.
        if let Some(exec) = &self.exec
            && !exec.ended.load(Ordering::Acquire)
        {
            // It may end at the same time.
            let _ = self.container.signal(&exec.id, KILL, false);
            self.container.set_exec_host(&exec.id, None);
        }
    }

    /// As [`handle`](Self::handle), in a pod: its sandbox has no process of its own.
    fn handle_in_pod(
        &mut self,
        pod: &Members,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Result<Option<Answer>, Failure> {
        let sandbox = self.member.is_none();
        match request {
            Request::Container(id) => {
                let member = pod.get(&id)?;
                self.container = member.container.clone();
                self.member = Some(member);
            }
            Request::Create(request) => pod.create(*request, fds)?,
            Request::Attend if !sandbox => {
                self.attends = true;
                self.container.set_proxy(peer(self.socket.as_fd()));
            }
            Request::Remove => {
                pod.remove(self.container.id())?;
            }
            Request::AwaitExit => {
                let member = self.member.clone().ok_or_else(|| no_process("wait"))?;
                return self.answer_later("await-exit", move |_| {
                    let exit = member.ending.wait();
                    Answer::Exit { status: exit.status, out_of_memory: exit.out_of_memory }
                });
            }
            Request::Start if sandbox => {
                self.container.sandbox.set_vhosts(fds);
                self.container.start_without_process(|| self.wire_network().map_err(Failure::of))?;
            }
            // What ends the process of an ordinary sandbox ends the pod.
            Request::Signal { exec_id: None, signal, .. } if sandbox => {
                if [KILL, libc::SIGTERM as u32].contains(&signal) {
                    drop(self.events.send(Event::Destroy));
                }
            }
            Request::Start => self.container.start(|| Ok(()))?,
            Request::Signal { exec_id: None, signal, all } => self.signal_member(signal, all)?,
            Request::Exec(_) | Request::Pause | Request::Resume | Request::Stats | Request::Processes
                if sandbox =>
            {
                return Err(no_process("do this"));
            }
            Request::AwaitEnd if sandbox => return Err(no_process("wait")),
            // The limits of the sandbox are those of the pod's cgroup on the host, which its engine sets.
            Request::Update { .. } if sandbox => {}
            other => return self.handle(other, fds),
        }
        Ok(Some(Answer::Done))
    }

    /// The answer; none if it was sent, or will be, by someone else.
    fn handle(&mut self, request: Request, fds: Vec<OwnedFd>) -> Result<Option<Answer>, Failure> {
        let container = &self.container;
        match request {
            Request::HooksDone => container.hooks_done()?,
            Request::Start => {
                container.sandbox.set_vhosts(fds);
                container.start(|| self.wire_network().map_err(Failure::of))?;
            }
            Request::Pause => container.pause()?,
            Request::Resume => container.resume()?,
            Request::Status => return Ok(Some(Answer::Status(container.status()))),
            Request::Signal { exec_id: None, signal, all } => self.signal(signal, all)?,
            Request::Signal { exec_id: Some(exec_id), signal, all } => {
                container.signal(&exec_id, signal, all)?;
            }
            Request::Resize { exec_id, rows, columns } => {
                container.resize(exec_id.as_deref().unwrap_or(""), rows, columns)?;
            }
            Request::Processes => return self.processes().map(Some),
            Request::HostProcesses => {
                let own = container.proxy().or_else(|| i32::try_from(std::process::id()).ok());
                return Ok(Some(Answer::HostProcesses(
                    own.into_iter().chain(container.exec_hosts()).collect(),
                )));
            }
            Request::Stats => {
                let (stats, oom_kills) = container.stats()?;
                return Ok(Some(Answer::Stats(Counters { stats, oom_kills })));
            }
            Request::AwaitEnd => return self.await_end(),
            Request::Update { resources } => container.update(resources)?,
            Request::NullStreams(null) => self.null = null,
            Request::Exec(request) => return self.exec(&request),
            Request::Wait => return self.wait(),
            Request::Container(_)
            | Request::Create(_)
            | Request::Attend
            | Request::Remove
            | Request::AwaitExit => {
                return Err(Failure::new(format!("container {} is not a pod", container.id())));
            }
            // The main thread may have ended already: then this process ends anyway.
            Request::Destroy => drop(self.events.send(Event::Destroy)),
        }
        Ok(Some(Answer::Done))
    }

    /// Sends a signal to the container's process, or to all in it.
    fn signal(&self, signal: u32, all: bool) -> Result<(), Failure> {
        let container = &self.container;
        if signal == KILL {
            // Nor must a reader that does not read keep it alive.
            drop(self.events.send(Event::Killed));
        }
        match container.signal("", signal, all) {
            Err(AgentError::Refused { code: Code::NOT_FOUND, .. }) => Err(not_running(container.id())),
            Err(_) if container.is_over() => Err(not_running(container.id())),
            // Nor must a guest that does not respond.
            Err(AgentError::Silent { .. }) if signal == KILL => {
                drop(self.events.send(Event::Destroy));
                Ok(())
            }
            result => Ok(result?),
        }
    }

    /// Sends a signal to the process of a pod's container, or to all in it.
    fn signal_member(&self, signal: u32, all: bool) -> Result<(), Failure> {
        let ended = || self.member.as_ref().is_some_and(|member| member.ending.get().is_some());
        if ended() {
            return Err(not_running(self.container.id()));
        }
        match self.container.signal("", signal, all) {
            Err(_) if ended() => Err(not_running(self.container.id())),
            // A guest that does not respond must not keep a killed container alive. The pod ends with it.
            Err(AgentError::Silent { .. }) if signal == KILL => {
                drop(self.events.send(Event::Destroy));
                Ok(())
            }
            result => Ok(result?),
        }
    }

    /// Gives the guest the network of the namespace, and follows changes in it.
    fn wire_network(&self) -> Result<(), WireError> {
        // Before the network is read, so that no change is missed.
        let changes = Netlink::changes()?;
        if let Some(error) = self.container.sandbox.update_network().into_iter().next() {
            return Err(error);
        }
        let sandbox = self.container.sandbox.clone();
        watch::follow(
            changes,
            move || sandbox.update_network(),
            |text| eprintln!("pouch-vm: warning: {text}"),
        )
    }

    fn processes(&self) -> Result<Answer, Failure> {
        let list = self.container.processes()?;
        let processes = list
            .processes
            .into_iter()
            .take(MAX_PROCESSES)
            .map(|process| Process {
                pid: process.pid,
                parent: process.parent_pid,
                uid: process.uid,
                terminal: process.terminal.chars().filter(|c| !c.is_control()).take(20).collect(),
                cpu_milliseconds: process.cpu_milliseconds,
                command: process.command.chars().filter(|c| !c.is_control()).take(1000).collect(),
            })
            .collect();
        Ok(Answer::Processes(processes))
    }

    fn exec(&mut self, request: &ExecRequest) -> Result<Option<Answer>, Failure> {
        if self.exec.is_some() {
            return Err(Failure::new("this connection has started a process already"));
        }
        let (exec_id, streams) = self.container.exec(&ExecOptions {
            process: &request.process,
            terminal: request.terminal,
            size: (request.rows, request.columns),
            null: self.null,
            cgroup: request.cgroup.as_deref().unwrap_or_default(),
        })?;
        self.exec = Some(Exec { id: exec_id.clone(), ended: Arc::default() });
        self.container.set_exec_host(&exec_id, peer(self.socket.as_fd()));
        let fds: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
        self.socket
            .send(&Answer::Started { exec_id }, &fds)
            .map_err(|error| Failure::new(format!("the streams could not be passed on: {error}")))?;
        Ok(None)
    }

    /// Answers when the process has ended. Until then the connection is still watched.
    fn wait(&self) -> Result<Option<Answer>, Failure> {
        let exec =
            self.exec.as_ref().ok_or_else(|| Failure::new("this connection has started no process"))?;
        let (id, ended) = (exec.id.clone(), exec.ended.clone());
        self.answer_later("wait", move |container| {
            let answer = match container.wait(&id) {
                Ok(response) => Answer::Exited {
                    status: response.exit_status.min(255),
                    stdout_bytes: response.stdout_bytes,
                    stderr_bytes: response.stderr_bytes,
                },
                Err(error) => Answer::Failed(error.failure()),
            };
            ended.store(true, Ordering::Release);
            container.set_exec_host(&id, None);
            answer
        })
    }

    /// Answers when the container's process has ended.
    fn await_end(&self) -> Result<Option<Answer>, Failure> {
        self.answer_later("await-end", |container| match container.wait("") {
            Ok(response) => Answer::Ended { out_of_memory: response.oom_killed },
            Err(error) => Answer::Failed(error.failure()),
        })
    }

    /// Sends a slow answer from a separate thread.
    fn answer_later(
        &self,
        name: &str,
        answer: impl FnOnce(&Container) -> Answer + Send + 'static,
    ) -> Result<Option<Answer>, Failure> {
        let (socket, container) = (self.socket.clone(), self.container.clone());
        thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(move || {
                // The client may have disconnected.
                let _ = socket.send(&answer(&container), &[]);
            })
            .map_err(|error| Failure::new(format!("a thread could not be started: {error}")))?;
        Ok(None)
    }
}

/// The sandbox of a pod was asked for something of its process.
fn no_process(what: &str) -> Failure {
    Failure::new(format!(
        "the sandbox of a pod has no process of its own, and cannot {what}; name a container of the pod"
    ))
}

/// The container's process has ended. The message is runc's, which engines parse.
pub fn not_running(id: &str) -> Failure {
    Failure::new(format!("container not running: {id}"))
}

/// The process at the other end of a connection.
fn peer(socket: BorrowedFd<'_>) -> Option<i32> {
    getsockopt(&socket, sockopt::PeerCredentials).ok().map(|credentials| credentials.pid())
}
