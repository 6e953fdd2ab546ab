//! The sandbox host process, which continues to run when `create` returns.
//!
//! Its PID is the container's PID on the host. It is in the container's cgroup and network namespace, and
//! exits with the status of the container's process, so that its parent gets that status. It ends when the
//! container's process has ended and its output was passed on, when the VM ends, or on request.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use pouch_protocol::agent::WaitProcessResponse;
use pouch_vmm_api::exit::ExitReason;

use super::client::HostListener;
use super::confine::capabilities::{self, Working};
use super::confine::{self, Root};
use super::create::{self, Created, Io};
use super::pod::Members;
use super::protocol::Launch;
use super::server;
use crate::cgroup::oom_reporter::OomReporter;
use crate::container::Container;
use crate::failure::Failure;
use crate::logging::Log;
use crate::network::loopback::Loopback;
use crate::sandbox::agent::AgentError;
use crate::sandbox::clock;
use crate::sandbox::disk::{self, DISK_STALL, Patience, SHUTDOWN};
use crate::streams::{self, OutputRelay, STALL, signals, start_relays, terminal};
use pouch_errors::chain;

/// The status of a container whose VM ended under it: as if it had been killed.
const KILLED: i32 = 137;
/// How long to wait for the reason of the VM's end after the connection to the agent has failed.
const EXIT_TIMEOUT: Duration = Duration::from_secs(3);

/// What happens to a sandbox.
pub enum Event {
    /// The container's process ended.
    Exited(Box<WaitProcessResponse>),
    /// The agent cannot be asked any more.
    AgentLost(String),
    /// The VM ended.
    VmEnded(Option<ExitReason>),
    /// The container's process was sent SIGKILL.
    Killed,
    /// `delete --force`.
    Destroy,
}

/// How a container ended.
struct End {
    /// Its exit status.
    status: i32,
    /// Why the VM ended, if that was the reason.
    vm_end: Option<String>,
    /// Whether the guest kernel's out-of-memory killer killed a process in it.
    oom_killed: bool,
    /// Whether it was `delete --force`.
    forced: bool,
}

/// What [`Host::attach`] leaves.
struct Attached {
    outputs: Vec<OutputRelay>,
    listener: HostListener,
    /// The containers of the pod, if this is one.
    pod: Option<Arc<Members>>,
}

/// A sandbox whose container is created, and its streams.
pub struct Host {
    container: Arc<Container>,
    events: Receiver<Event>,
    outputs: Vec<OutputRelay>,
    oom: Option<OomReporter>,
    log: Log,
}

impl Host {
    /// Creates the container that `launch` describes.
    ///
    /// # Errors
    /// [`Failure`] for the user. The VM is gone then; directory and cgroup are the caller's to
    /// remove.
    pub fn create(launch: &Launch) -> Result<Self, Failure> {
        signals::block();
        let log = Log::new(launch.log.clone(), launch.log_format()).open();
        let (sender, events) = mpsc::channel();
        let ended = sender.clone();
        let created = create::create(launch, &log, move |reason| drop(ended.send(Event::VmEnded(reason))))?;
        let Created { container, io, oom, loopback } = created;
        let container = Arc::new(container);
        let root = Root::new(container.dir.path().join("root"), container.dir.progress());
        let attached = thread::scope(|scope| {
            let attach = || Self::attach(&container, io, loopback, &sender);
            capabilities::without(scope, attach).and_then(Working::done)
        });
        let confined = attached.and_then(|Attached { outputs, listener, pod }| {
            // Before anyone can ask this process for anything, and the container can run.
            confine::enter(&root).map_err(Failure::of)?;
            server::serve(listener, container.clone(), pod, sender).map_err(Failure::of)?;
            Ok(outputs)
        });
        match confined {
            Ok(outputs) => Ok(Host { container, events, outputs, oom, log }),
            Err(failure) => {
                container.sandbox.vm.end();
                Err(failure)
            }
        }
    }

    /// Opens the last files, and starts the other threads.
    fn attach(
        container: &Arc<Container>,
        io: Io,
        loopback: Option<Loopback>,
        sender: &Sender<Event>,
    ) -> Result<Attached, Failure> {
        let log = container.dir.path().join("host.log");
        let mut outputs = Vec::new();
        let mut pod = None;
        if let Some((guest, ends)) = io {
            let console = ends.console().map(File::try_clone).transpose().map_err(Failure::of)?;
            outputs = start_relays(guest, ends).map_err(Failure::of)?;
            streams::let_go(&log).map_err(Failure::of)?;
            watch_exit(container.clone(), sender.clone()).map_err(Failure::of)?;
            forward_signals(container.clone(), console).map_err(Failure::of)?;
        } else {
            streams::let_go(&log).map_err(Failure::of)?;
            end_at_signals(sender.clone()).map_err(Failure::of)?;
            pod = Some(Arc::new(Members::new(container.sandbox.clone(), container.dir.clone())));
            if let Some(loopback) = loopback {
                loopback.forward(container.sandbox.clone()).map_err(Failure::of)?;
            }
        }
        let listener = HostListener::bind(&container.dir.socket()).map_err(Failure::of)?;
        container.save().map_err(Failure::of)?;
        clock::follow(container.sandbox.clone()).map_err(Failure::of)?;
        Ok(Attached { outputs, listener, pod })
    }

    /// Waits for the end, for whatever reason, cleans up and returns the exit status.
    pub fn run(mut self) -> i32 {
        let end = self.wait_for_end();
        // The container's last writes may still be in guest memory only.
        if end.vm_end.is_none()
            && let Err(error) = self.shut_down(end.forced)
        {
            self.log.error(&format!("the container's last writes to its disk may be lost: {error}"));
        }
        let sandbox = &self.container.sandbox;
        sandbox.vm.end();
        sandbox.give_network_back();
        // The VM must have ended before the host kernel counts the kill.
        let oom = self.oom.take().filter(|_| end.oom_killed);
        if let Some(Err(error)) = oom.map(OomReporter::report) {
            self.log.error(&format!(
                "the out-of-memory kill in the guest could not be reported to the engine: {error}"
            ));
        }
        let End { status, vm_end, .. } = end;
        if let Some(text) = &vm_end {
            self.log.error(&format!("container {}: {text}", self.container.id()));
        }
        if let Err(error) = self.container.stopped(Some(status), vm_end) {
            self.log.error(&chain(&error));
        }
        status
    }

    fn wait_for_end(&self) -> End {
        let killed = |vm_end, forced| End { status: KILLED, vm_end, oom_killed: false, forced };
        let lost = |vm_end| killed(Some(vm_end), false);
        let mut event = self.events.recv();
        while matches!(event, Ok(Event::Killed)) {
            // The process ends because of it.
            event = self.events.recv();
        }
        match event {
            Ok(Event::Exited(response)) => {
                let forced = self.finish_output(&response);
                // The status comes from the guest: keep it in range.
                let status = i32::try_from(response.exit_status.min(255)).unwrap_or(255);
                End { status, vm_end: None, oom_killed: response.oom_killed, forced }
            }
            Ok(Event::AgentLost(text)) => match self.events.recv_timeout(EXIT_TIMEOUT) {
                Ok(Event::VmEnded(reason)) => lost(describe_end(reason)),
                _ => lost(format!("the agent in the guest is lost: {text}")),
            },
            Ok(Event::VmEnded(reason)) => lost(describe_end(reason)),
            Ok(Event::Destroy) => killed(None, true),
            Ok(Event::Killed) | Err(_) => {
                lost("a thread of the sandbox host process ended unexpectedly".to_owned())
            }
        }
    }

    /// Passes on the rest of the ended process's output. If the process ended by itself, this waits for the reader
    /// as long as it takes, as a write of the process to the same pipe or terminal would have. If it was killed,
    /// it does not. Returns whether the container is to be deleted by force.
    fn finish_output(&self, response: &WaitProcessResponse) -> bool {
        let mut patience = (response.signal != 0).then_some(STALL);
        let mut forced = false;
        let bytes = [response.stdout_bytes, response.stderr_bytes];
        for (output, bytes) in self.outputs.iter().zip(bytes) {
            output.finish(bytes, || {
                for event in self.events.try_iter() {
                    match event {
                        Event::Killed => patience = patience.or(Some(STALL)),
                        Event::Destroy => (forced, patience) = (true, Some(Duration::ZERO)),
                        _ => {}
                    }
                }
                patience
            });
        }
        forced
    }

    /// Has the guest write everything to its disks, as long as anything is written.
    fn shut_down(&self, forced: bool) -> Result<(), AgentError> {
        let (sender, answer) = mpsc::channel();
        let sandbox = self.container.sandbox.clone();
        let asking = thread::Builder::new().name("shutdown".to_owned()).stack_size(256 * 1024);
        let ask = move || drop(sender.send(sandbox.agent.shutdown()));
        if let Err(error) = asking.spawn(ask) {
            self.log.error(&format!("a thread could not be started: {error}"));
            return Ok(());
        }
        let sandbox = &self.container.sandbox;
        let mut forced = forced;
        let mut patience = Patience::new(&sandbox.written);
        loop {
            match answer.recv_timeout(disk::LOOK) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            forced |= self.events.try_iter().any(|event| matches!(event, Event::Destroy));
            let stall = if forced || !sandbox.has_writable_disk() { SHUTDOWN } else { DISK_STALL };
            if !patience.lasts(stall, forced) {
                return Err(AgentError::silent("Shutdown", &format!("nothing was written for {stall:?}")));
            }
        }
    }
}

fn describe_end(reason: Option<ExitReason>) -> String {
    match reason {
        Some(reason) => reason.to_string(),
        None => "the VMM exited unexpectedly".to_owned(),
    }
}

/// Reports the end of the container's process.
fn watch_exit(container: Arc<Container>, sender: Sender<Event>) -> io::Result<()> {
    thread::Builder::new().name("exit".to_owned()).stack_size(256 * 1024).spawn(move || {
        let event = match container.wait("") {
            Ok(response) => Event::Exited(Box::new(response)),
            Err(error) => Event::AgentLost(error.to_string()),
        };
        container.set_over();
        // The main thread may be on its way out.
        let _ = sender.send(event);
    })?;
    Ok(())
}

/// Ends a pod, which has no process that a signal could be passed on to.
fn end_at_signals(sender: Sender<Event>) -> io::Result<()> {
    thread::Builder::new().name("signals".to_owned()).stack_size(256 * 1024).spawn(move || {
        while let Some(signal) = signals::next() {
            if matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT) {
                let _ = sender.send(Event::Destroy);
            }
        }
    })?;
    Ok(())
}

/// Passes signals on to the container's process, and changes of the terminal's size.
fn forward_signals(container: Arc<Container>, console: Option<File>) -> io::Result<()> {
    thread::Builder::new().name("signals".to_owned()).stack_size(256 * 1024).spawn(move || {
        while let Some(signal) = signals::next() {
            // The process may have ended.
            let _ = match (signal, &console) {
                (Signal::SIGWINCH, Some(console)) => match terminal::size(console.as_fd()) {
                    Some((rows, columns)) => container.resize("", rows, columns),
                    None => Ok(()),
                },
                (Signal::SIGWINCH, None) => Ok(()),
                (signal, _) => container.signal("", signal as u32, false),
            };
        }
    })?;
    Ok(())
}
