//! Creates a container in a new VM from a bundle.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use oci_spec::runtime::LinuxResources;
use pouch_protocol::agent::{Setting, Storage};
use pouch_protocol::{GUEST_RUN_DIR, SHARE_MOUNT_POINT, SHARE_TAG};
use pouch_vmm_api::exit::ExitReason;

use super::agent::Agent;
use super::exec::{Sandbox, Streams, Tokens};
use super::protocol::{Failure, Launch};
use super::vm::{Vm, VmError};
use super::vm_files::{self, Disk, VmDescription};
use super::{mount_points, settings, share, view};
use crate::cgroup::{Cgroup, CgroupPlacement};
use crate::container::guest_spec::{self, GuestSpec, ROOTFS, RootSource};
use crate::container::hooks;
use crate::container::size::VmSize;
use crate::container::state::HostProcess;
use crate::container::{Bundle, ContainerDir, State, Status, resources, size};
use crate::logging::{Log, rfc3339};
use crate::network::namespace;
use crate::stdio::{NullStreams, terminal};

/// A created container.
pub struct Created {
    /// Its VM and all that is known of it.
    pub sandbox: Sandbox,
    /// The streams of its process.
    pub streams: Streams,
    /// The terminal of the host, if it has one.
    pub terminal: Option<File>,
    /// Which of this process's streams are not relayed to the container's process.
    pub null: NullStreams,
}

/// What a container needs.
struct Plan<'a> {
    launch: &'a Launch,
    bundle: Bundle,
    guest: GuestSpec,
    /// Its specification as the agent gets it.
    document: Vec<u8>,
    size: VmSize,
    dir: ContainerDir,
    cgroup: Cgroup,
    /// The part of its limits that the host keeps.
    limits: LinuxResources,
    state: State,
    /// What it inherits of the host's kernel settings.
    settings: Vec<Setting>,
}

/// Creates the container that `launch` describes; `ended` is called when its VM has ended.
///
/// # Errors
/// [`Failure`] for the user. The VM is gone then; directory and cgroup are the caller's to remove.
pub fn create(
    launch: &Launch,
    log: &Log,
    ended: impl FnOnce(Option<ExitReason>) + Send + 'static,
) -> Result<Created, Failure> {
    let mut plan = Plan::make(launch, log)?;
    plan.dir.save(&plan.state).map_err(Failure::of)?;
    vm_files::preflight(&launch.config).map_err(Failure::of)?;
    let placement = plan.enter_surroundings()?;
    let vm = plan.start_vm(&placement, ended)?;
    plan.state.vmm = HostProcess::find(vm.pid());
    let null = NullStreams::of_this_process();
    let (agent, (streams, terminal)) = match plan.fill(&vm, &placement, null) {
        Ok(filled) => filled,
        Err(failure) => {
            vm.end();
            return Err(failure);
        }
    };
    // If there are hooks, `create` sets this status after they have run.
    if !hooks::awaited(plan.state.hooks.as_ref()) {
        plan.state.status = Status::Created;
    }
    let sandbox = Sandbox::new(plan.dir, vm, agent, plan.state, plan.size);
    Ok(Created { sandbox, streams, terminal, null })
}

impl<'a> Plan<'a> {
    /// Reads the bundle, without changes to the host.
    fn make(launch: &'a Launch, log: &Log) -> Result<Self, Failure> {
        let bundle = Bundle::load(&launch.bundle).map_err(Failure::of)?;
        let mut guest = guest_spec::translate(&bundle).map_err(Failure::of)?;
        for warning in &guest.warnings {
            log.warning(warning);
        }
        let host_cpus =
            thread::available_parallelism().map_or(1, |n| u8::try_from(n.get()).unwrap_or(u8::MAX));
        let size = size::vm_size(&bundle.spec, &launch.config, host_cpus).map_err(Failure::of)?;
        let id = launch.id.parse().map_err(Failure::of)?;
        let dir = ContainerDir::new(&launch.root, &id);
        let linux = bundle.spec.linux().as_ref();
        let specified = linux.and_then(|linux| linux.cgroups_path().as_deref());
        let cgroup = Cgroup::new(specified, id.as_str(), launch.systemd_cgroup).map_err(Failure::of)?;
        // Before the state names it, because the clean-up after a failure removes what the state names.
        cgroup.check_unused().map_err(Failure::of)?;
        let limits = linux.and_then(|linux| linux.resources().as_ref());
        let limits = limits.map(|limits| resources::split(limits, size)).unwrap_or_default();
        if let Some(linux) = guest.spec.linux_mut() {
            linux.set_resources(Some(limits.guest));
        }
        let document = guest.document().map_err(Failure::of)?;
        let state = initial_state(launch, &bundle, cgroup.clone());
        Ok(Plan {
            launch,
            bundle,
            guest,
            document,
            size,
            dir,
            cgroup,
            limits: limits.host,
            state,
            settings: Vec::new(),
        })
    }

    /// Makes the cgroup, and puts this process where the container's is to be: into its network namespace, and
    /// into a mount namespace with the tree of all that the VM is given.
    fn enter_surroundings(&mut self) -> Result<CgroupPlacement, Failure> {
        let (bundle, guest) = (&self.bundle, &mut self.guest);
        set_oom_score(bundle)?;
        let placement = self.cgroup.make().map_err(Failure::of)?;
        // Some of the host's do not show in other network namespaces.
        self.settings = settings::of_host();
        namespace::enter(guest.network_namespace.as_deref()).map_err(Failure::of)?;
        self.settings.extend(settings::of_network());
        share::enter_namespace().map_err(Failure::of)?;
        if guest.root == RootSource::Directory && bundle.root().readonly().unwrap_or(false) {
            let made = mount_points::make(&bundle.root_path(), &mut guest.spec, &guest.shared);
            made.map_err(Failure::of)?;
            self.document = guest.document().map_err(Failure::of)?;
        }
        share::build(&self.tree(), &self.guest.shared).map_err(Failure::of)?;
        Ok(placement)
    }

    /// Where the share tree is assembled.
    fn tree(&self) -> PathBuf {
        self.dir.path().join("share")
    }

    fn start_vm(
        &self,
        placement: &CgroupPlacement,
        ended: impl FnOnce(Option<ExitReason>) + Send + 'static,
    ) -> Result<Vm, Failure> {
        let description = VmDescription {
            config: &self.launch.config,
            size: self.size,
            share: Some(&self.tree()),
            disks: disks(&self.guest),
            directory: self.dir.path(),
            cgroup: match placement {
                CgroupPlacement::In(directory) => Some(directory),
                CgroupPlacement::Inherited => None,
            },
        };
        Vm::start(&description, ended).map_err(Failure::of)
    }

    /// Creates the container in the guest.
    fn fill(
        &self,
        vm: &Vm,
        placement: &CgroupPlacement,
        null: NullStreams,
    ) -> Result<(Agent, (Streams, Option<File>)), Failure> {
        // The VMM was started in the cgroup; this process joins it while the guest boots.
        let joining = matches!(placement, CgroupPlacement::In(_)).then(|| {
            let cgroup = self.cgroup.clone();
            thread::spawn(move || cgroup.enter().map_err(Failure::of))
        });
        let created = connect(vm, self.launch).and_then(|agent| {
            let guest = &self.guest;
            let io = self.create_container(vm, &agent, null)?;
            let stand_ins = [&self.state.host, &self.state.vmm].into_iter().flatten();
            let pids: Vec<i32> = stand_ins.map(|process| process.pid).collect();
            view::cover(&self.tree(), &self.dir.path().join("view"), guest, &pids).map_err(Failure::of)?;
            Ok((agent, io))
        });
        // The limits do not apply to the boot.
        let limited = joined(joining).and_then(|()| self.cgroup.limit(&self.limits).map_err(Failure::of));
        created.and_then(|created| limited.map(|()| created))
    }

    /// Sets the guest up, creates the container in it, and connects its streams; also returns the
    /// terminal of the host, if the container has one.
    fn create_container(
        &self,
        vm: &Vm,
        agent: &Agent,
        null: NullStreams,
    ) -> Result<(Streams, Option<File>), Failure> {
        let terminal = host_terminal(&self.bundle, self.launch)?;
        let size = terminal.as_ref().and_then(|file| terminal::size(file.as_fd())).unwrap_or((0, 0));
        let hostname = self.guest.spec.hostname().clone().unwrap_or_default();
        let mut shared = Storage::new();
        shared.driver = "virtiofs".to_owned();
        shared.source = SHARE_TAG.to_owned();
        shared.mount_point = SHARE_MOUNT_POINT.to_owned();
        let settings = self.settings.clone();
        agent.setup(&hostname, self.size.vcpus, vec![shared], settings).map_err(|error| error.failure())?;
        let mut storages = Vec::new();
        if let RootSource::Disk { filesystem, read_only, .. } = &self.guest.root {
            let mut root = Storage::new();
            root.driver = "block".to_owned();
            root.source = ROOTFS.to_owned();
            root.mount_point = Path::new(GUEST_RUN_DIR).join(ROOTFS).display().to_string();
            root.filesystem = (*filesystem).to_owned();
            root.options = if *read_only { vec!["ro".to_owned()] } else { Vec::new() };
            storages.push(root);
        }
        let tokens = Tokens::new(terminal.is_some(), size, null).map_err(|error| error.failure())?;
        let spec = self.document.clone();
        agent.create(&self.launch.id, spec, tokens.stdio(), storages).map_err(|error| error.failure())?;
        let streams = tokens.connect(vm).map_err(|error| error.failure())?;
        Ok((streams, terminal))
    }
}

/// Waits for this process to be in its cgroup.
fn joined(joining: Option<JoinHandle<Result<(), Failure>>>) -> Result<(), Failure> {
    let result = joining.map_or(Ok(Ok(())), JoinHandle::join);
    result.unwrap_or_else(|_| Err(Failure::new("the thread that joins the cgroup panicked".to_owned())))
}

/// Sets oom_score_adj of this process, and of the VMM, which inherits it, to the container's
/// value.
fn set_oom_score(bundle: &Bundle) -> Result<(), Failure> {
    let Some(score) = bundle.process().oom_score_adj() else { return Ok(()) };
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
        .map_err(|error| Failure::new(format!("process.oomScoreAdj {score} could not be set: {error}")))
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
    let stream = vm.connect_to_agent(timeout).map_err(|error| match error {
        VmError::Refused(text) => Failure::new(format!("the guest did not start: {text}")),
        other => Failure::of(other),
    })?;
    Agent::new(stream).map_err(Failure::of)
}

/// The terminal for a container that asks for one: the engine's, or the caller's own.
fn host_terminal(bundle: &Bundle, launch: &Launch) -> Result<Option<File>, Failure> {
    let wanted = bundle.process().terminal().unwrap_or(false);
    match (&launch.console_socket, wanted) {
        (Some(_), false) => {
            Err(Failure::new("--console-socket is given, but process.terminal does not ask for a terminal"))
        }
        (None, false) => Ok(None),
        (Some(path), true) => terminal::send_console(path).map(Some).map_err(Failure::of),
        (None, true) => {
            let stdin = io::stdin();
            if !nix::unistd::isatty(stdin.as_fd()).unwrap_or(false) {
                return Err(Failure::of(terminal::TerminalError::NoTerminal));
            }
            stdin.as_fd().try_clone_to_owned().map(|fd| Some(File::from(fd))).map_err(Failure::of)
        }
    }
}
