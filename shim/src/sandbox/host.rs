//! The sandbox host process: what stays when `create` returns.
//!
//! Its number is the container's on the host. It is in the container's cgroup and network
//! namespace, and exits with the status of the container's process, so that whoever reaps it
//! learns that status. It ends when the container's process has ended and its output was passed
//! on, when the VM ends, or when it is told to.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use pouch_protocol::agent::{Storage, WaitProcessResponse};
use pouch_protocol::{AGENT_PORT, GUEST_RUN_DIR, SHARE_MOUNT_POINT, SHARE_TAG};
use pouch_vmm::exit::ExitReason;

use super::agent::Agent;
use super::client::HostListener;
use super::exec::{Sandbox, Streams, Tokens};
use super::protocol::{Failure, Launch};
use super::vm::{Disk, Vm, VmDescription, VmError};
use super::{mount_points, server, share, vm};
use crate::cgroup::{Birth, Cgroup};
use crate::container::guest_spec::{self, GuestSpec, ROOTFS, RootSource};
use crate::container::hooks;
use crate::container::state::HostProcess;
use crate::container::{Bundle, ContainerDir, State, Status, resources, size};
use crate::errors::chain;
use crate::logging::{Log, rfc3339};
use crate::network::namespace;
use crate::stdio::{self, OutputRelay, signals, start_relays, terminal};

/// The status of a container whose VM ended under it: as if it had been killed.
const KILLED: i32 = 137;
/// How long after the connection to the agent broke the VM's end may be told.
const LAST_WORD: Duration = Duration::from_secs(3);

/// What happens to a sandbox.
pub enum Event {
    /// The container's process ended.
    Exited(Box<WaitProcessResponse>),
    /// The agent cannot be asked any more.
    AgentLost(String),
    /// The VM ended.
    VmEnded(Option<ExitReason>),
    /// `delete --force`.
    Destroy,
}

/// How a container ended.
struct End {
    /// Its exit status.
    status: i32,
    /// Why the VM ended, if that was the reason.
    vm_end: Option<String>,
    /// Whether the guest's kernel killed something in it for want of memory.
    oom_killed: bool,
}

/// A sandbox whose container is created, and its streams.
pub struct Host {
    sandbox: Arc<Sandbox>,
    events: Receiver<Event>,
    outputs: Vec<OutputRelay>,
    log: Log,
}

fn failure(error: impl std::error::Error + 'static) -> Failure {
    Failure::new(chain(&error))
}

/// Waits for this process to be in its cgroup.
fn joined(joining: Option<JoinHandle<Result<(), Failure>>>) -> Result<(), Failure> {
    let result = joining.map_or(Ok(Ok(())), JoinHandle::join);
    result.unwrap_or_else(|_| Err(Failure::new("the thread that joins the cgroup panicked".to_owned())))
}

impl Host {
    /// Creates the container that `launch` describes.
    ///
    /// # Errors
    /// [`Failure`] for the user. The VM is gone then; directory and cgroup are the caller's to
    /// remove.
    pub fn create(launch: &Launch) -> Result<Self, Failure> {
        // Leads a session: the container's terminal becomes its own, and nobody else's signals
        // reach it. It is no group leader, so this cannot fail.
        let _ = nix::unistd::setsid();
        signals::block();
        let log = Log { file: launch.log.clone(), format: launch.log_format() };
        let bundle = Bundle::load(&launch.bundle).map_err(failure)?;
        let mut guest = guest_spec::translate(&bundle).map_err(failure)?;
        for warning in &guest.warnings {
            log.warning(warning);
        }
        let host_cpus =
            thread::available_parallelism().map_or(1, |n| u8::try_from(n.get()).unwrap_or(u8::MAX));
        let size = size::vm_size(&bundle.spec, &launch.config, host_cpus).map_err(failure)?;
        let id = launch.id.parse().map_err(failure)?;
        let dir = ContainerDir::new(&launch.root, &id);
        let specified = bundle.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
        let cgroup = Cgroup::new(specified, id.as_str(), launch.systemd_cgroup).map_err(failure)?;
        let limits = bundle.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let limits = limits.map(|limits| resources::split(limits, size)).unwrap_or_default();
        if let Some(linux) = guest.spec.linux_mut() {
            linux.set_resources(Some(limits.guest));
        }
        let mut state = initial_state(launch, &bundle, cgroup.clone());
        dir.save(&state).map_err(failure)?;
        vm::preflight(&launch.config, dir.path()).map_err(failure)?;

        set_oom_score(&bundle)?;
        let birth = cgroup.make().map_err(failure)?;
        namespace::enter(guest.network_namespace.as_deref()).map_err(failure)?;
        share::enter_namespace().map_err(failure)?;
        if guest.root == RootSource::Directory && bundle.root().readonly().unwrap_or(false) {
            mount_points::make(&bundle.root_path(), &guest.spec, &guest.shared).map_err(failure)?;
        }
        let tree = dir.path().join("share");
        share::build(&tree, &guest.shared).map_err(failure)?;

        let (sender, events) = mpsc::channel();
        let ended = sender.clone();
        let description = VmDescription {
            config: &launch.config,
            size,
            share: Some(&tree),
            disks: disks(&guest),
            directory: dir.path(),
            cgroup: match &birth {
                Birth::In(directory) => Some(directory),
                Birth::Inherited => None,
            },
        };
        let vm = Vm::start(&description, move |reason| drop(ended.send(Event::VmEnded(reason))))
            .map_err(failure)?;
        state.vmm = HostProcess::find(vm.pid());
        // The VMM was born in the cgroup; this process joins it while the guest boots.
        let joining = matches!(birth, Birth::In(_)).then(|| {
            let cgroup = cgroup.clone();
            thread::spawn(move || cgroup.enter().map_err(failure))
        });
        let created = connect(&vm, launch).and_then(|agent| {
            create_container(&vm, &agent, &bundle, &guest, size.vcpus, launch).map(|io| (agent, io))
        });
        // A boot is not the container's doing: its limits begin here.
        let limited = joined(joining).and_then(|()| cgroup.limit(&limits.host).map_err(failure));
        let created = created.and_then(|created| limited.map(|()| created));
        let (agent, (streams, terminal)) = match created {
            Ok(created) => created,
            Err(failure) => {
                vm.end();
                return Err(failure);
            }
        };
        // With hooks it is `create` that says so, when they have done their work.
        if !hooks::awaited(state.hooks.as_ref()) {
            state.status = Status::Created;
        }
        let sandbox = Arc::new(Sandbox::new(dir, vm, agent, state, size));
        let result = Self::attach(&sandbox, streams, terminal, &sender);
        match result {
            Ok(outputs) => Ok(Host { sandbox, events, outputs, log }),
            Err(failure) => {
                sandbox.vm.end();
                Err(failure)
            }
        }
    }

    /// Starts everything that runs beside the main thread, and tells the world.
    fn attach(
        sandbox: &Arc<Sandbox>,
        streams: Streams,
        terminal: Option<File>,
        sender: &Sender<Event>,
    ) -> Result<Vec<OutputRelay>, Failure> {
        let console = terminal.as_ref().map(File::try_clone).transpose().map_err(failure)?;
        let outputs = start_relays(streams, terminal).map_err(failure)?;
        stdio::let_go(&sandbox.dir.path().join("host.log")).map_err(failure)?;
        watch_exit(sandbox.clone(), sender.clone()).map_err(failure)?;
        forward_signals(sandbox.clone(), console).map_err(failure)?;
        let listener = HostListener::bind(&sandbox.dir.socket()).map_err(failure)?;
        sandbox.update_state(|_| ()).map_err(failure)?;
        server::serve(listener, sandbox.clone(), sender.clone()).map_err(failure)?;
        Ok(outputs)
    }

    /// Waits for the end, whatever it is, cleans up and returns the exit status.
    pub fn run(self) -> i32 {
        let end = self.wait_for_end();
        // What the container wrote may still be in the guest's memory only.
        if end.vm_end.is_none()
            && let Err(error) = self.sandbox.agent.shutdown()
        {
            self.log.error(&chain(&error));
        }
        self.sandbox.vm.end();
        if end.oom_killed
            && let Err(error) = self.sandbox.count_oom_kill()
        {
            self.log.error(&format!("the engine does not learn that the guest ran out of memory: {error}"));
        }
        let End { status, vm_end, .. } = end;
        if let Some(text) = &vm_end {
            self.log.error(&format!("container {}: {text}", self.sandbox.id()));
        }
        let result = self.sandbox.update_state(|state| {
            state.status = Status::Stopped;
            state.exit_status = Some(status);
            state.vm_end = vm_end;
        });
        if let Err(error) = result {
            self.log.error(&chain(&error));
        }
        status
    }

    fn wait_for_end(&self) -> End {
        let killed = |vm_end| End { status: KILLED, vm_end, oom_killed: false };
        match self.events.recv() {
            Ok(Event::Exited(response)) => {
                let bytes = [response.stdout_bytes, response.stderr_bytes];
                for (output, bytes) in self.outputs.iter().zip(bytes) {
                    output.wait_for(bytes);
                }
                // A status of the guest's making: keep it in range.
                let status = i32::try_from(response.exit_status.min(255)).unwrap_or(255);
                End { status, vm_end: None, oom_killed: response.oom_killed }
            }
            Ok(Event::AgentLost(text)) => match self.events.recv_timeout(LAST_WORD) {
                Ok(Event::VmEnded(reason)) => killed(Some(describe_end(reason))),
                _ => killed(Some(format!("the agent in the guest is lost: {text}"))),
            },
            Ok(Event::VmEnded(reason)) => killed(Some(describe_end(reason))),
            Ok(Event::Destroy) => killed(None),
            Err(_) => killed(Some("the sandbox lost its own threads".to_owned())),
        }
    }
}

/// Has the host's kernel choose this process and the VMM, which inherits it, as it would the
/// container's.
fn set_oom_score(bundle: &Bundle) -> Result<(), Failure> {
    let Some(score) = bundle.process().oom_score_adj() else { return Ok(()) };
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
        .map_err(|error| Failure::new(format!("process.oomScoreAdj {score} could not be set: {error}")))
}

fn describe_end(reason: Option<ExitReason>) -> String {
    match reason {
        Some(reason) => reason.to_string(),
        None => "the VMM was killed, or failed without a word".to_owned(),
    }
}

fn initial_state(launch: &Launch, bundle: &Bundle, cgroup: Cgroup) -> State {
    State {
        id: launch.id.clone(),
        status: Status::Creating,
        host: i32::try_from(std::process::id()).ok().and_then(HostProcess::find),
        vmm: None,
        bundle: bundle.path.clone(),
        rootfs: bundle.root_path(),
        created: rfc3339(SystemTime::now()),
        owner: nix::unistd::User::from_uid(nix::unistd::getuid())
            .ok()
            .flatten()
            .map_or_else(|| nix::unistd::getuid().to_string(), |user| user.name),
        annotations: guest_spec::annotations(&bundle.spec),
        cgroup: Some(cgroup),
        exit_status: None,
        vm_end: None,
        hooks: bundle.spec.hooks().clone(),
    }
}

fn disks(guest: &GuestSpec) -> Vec<Disk> {
    match &guest.root {
        RootSource::Directory => Vec::new(),
        RootSource::Disk { path, read_only, .. } => {
            vec![Disk { path: path.clone(), serial: ROOTFS.to_owned(), read_only: *read_only }]
        }
    }
}

/// Waits for the agent.
fn connect(vm: &Vm, launch: &Launch) -> Result<Agent, Failure> {
    let timeout = Duration::from_secs(launch.config.boot_timeout_seconds.into());
    let stream = vm.connect(AGENT_PORT, timeout).map_err(|error| match error {
        VmError::Refused(text) => Failure::new(format!("the guest did not start: {text}")),
        other => failure(other),
    })?;
    Agent::new(stream).map_err(failure)
}

/// Sets the guest up, creates the container in it, and connects its streams; also returns the
/// terminal of the host, if the container has one.
fn create_container(
    vm: &Vm,
    agent: &Agent,
    bundle: &Bundle,
    guest: &GuestSpec,
    cpus: u8,
    launch: &Launch,
) -> Result<(Streams, Option<File>), Failure> {
    let terminal = host_terminal(bundle, launch)?;
    let size = terminal.as_ref().and_then(|file| terminal::size(file.as_fd())).unwrap_or((0, 0));
    let hostname = guest.spec.hostname().clone().unwrap_or_default();
    let mut shared = Storage::new();
    shared.driver = "virtiofs".to_owned();
    shared.source = SHARE_TAG.to_owned();
    shared.mount_point = SHARE_MOUNT_POINT.to_owned();
    agent.setup(&hostname, cpus, vec![shared]).map_err(|error| error.failure())?;
    let mut storages = Vec::new();
    if let RootSource::Disk { filesystem, read_only, .. } = &guest.root {
        let mut root = Storage::new();
        root.driver = "block".to_owned();
        root.source = ROOTFS.to_owned();
        root.mount_point = Path::new(GUEST_RUN_DIR).join(ROOTFS).display().to_string();
        root.filesystem = (*filesystem).to_owned();
        root.options = if *read_only { vec!["ro".to_owned()] } else { Vec::new() };
        storages.push(root);
    }
    let tokens = Tokens::new(terminal.is_some(), size).map_err(|error| error.failure())?;
    let spec = serde_json::to_vec(&guest.spec).map_err(failure)?;
    agent.create(&launch.id, spec, tokens.stdio(), storages).map_err(|error| error.failure())?;
    let streams = tokens.connect(vm).map_err(|error| error.failure())?;
    Ok((streams, terminal))
}

/// The terminal for a container that asks for one: the engine's, or the caller's own.
fn host_terminal(bundle: &Bundle, launch: &Launch) -> Result<Option<File>, Failure> {
    let wanted = bundle.process().terminal().unwrap_or(false);
    match (&launch.console_socket, wanted) {
        (Some(_), false) => {
            Err(Failure::new("--console-socket is given, but process.terminal does not ask for a terminal"))
        }
        (None, false) => Ok(None),
        (Some(path), true) => terminal::send_console(path).map(Some).map_err(failure),
        (None, true) => {
            let stdin = io::stdin();
            if !nix::unistd::isatty(stdin.as_fd()).unwrap_or(false) {
                return Err(failure(terminal::TerminalError::NoTerminal));
            }
            stdin.as_fd().try_clone_to_owned().map(|fd| Some(File::from(fd))).map_err(failure)
        }
    }
}

/// Tells when the container's process ends.
fn watch_exit(sandbox: Arc<Sandbox>, sender: Sender<Event>) -> io::Result<()> {
    thread::Builder::new().name("exit".to_owned()).stack_size(256 * 1024).spawn(move || {
        let event = match sandbox.agent.wait(sandbox.id(), "") {
            Ok(response) => Event::Exited(Box::new(response)),
            Err(error) => Event::AgentLost(error.to_string()),
        };
        // The main thread may be on its way out.
        let _ = sender.send(event);
    })?;
    Ok(())
}

/// Passes signals on to the container's process, and changes of the terminal's size.
fn forward_signals(sandbox: Arc<Sandbox>, console: Option<File>) -> io::Result<()> {
    thread::Builder::new().name("signals".to_owned()).stack_size(256 * 1024).spawn(move || {
        while let Some(signal) = signals::next() {
            let id = sandbox.id();
            // The process may have ended.
            let _ = match (signal, &console) {
                (Signal::SIGWINCH, Some(console)) => match terminal::size(console.as_fd()) {
                    Some((rows, columns)) => sandbox.agent.resize(id, "", rows, columns),
                    None => Ok(()),
                },
                (Signal::SIGWINCH, None) => Ok(()),
                (signal, _) => sandbox.agent.signal(id, "", signal as u32, false),
            };
        }
    })?;
    Ok(())
}
