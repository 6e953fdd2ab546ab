//! Creates a sandbox with one container from a bundle, as the OCI command line has it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use oci_spec::runtime::LinuxResources;
use pouch_protocol::agent::Setting;
use pouch_vmm_api::config::MAX_DISK_SLOTS;
use pouch_vmm_api::exit::ExitReason;

use super::confine::capabilities::{self, Working};
use super::protocol::Launch;
use crate::cgroup::oom_reporter::OomReporter;
use crate::cgroup::{Cgroup, CgroupPlacement};
use crate::container::guest_spec::{self, GuestSpec, RootSource};
use crate::container::phases::Phases;
use crate::container::state::HostProcess;
use crate::container::{
    Bundle, Container, ContainerDir, State, Status, create as in_guest, hooks, mount_points, pod_spec,
    resources, size, view,
};
use crate::failure::Failure;
use crate::logging::{Log, rfc3339};
use crate::network::devices::NetworkDevices;
use crate::network::loopback::Loopback;
use crate::network::{WireError, namespace};
use crate::sandbox::agent::Agent;
use crate::sandbox::disk::WriteCounters;
use crate::sandbox::disks::{Disks, HostDisk};
use crate::sandbox::streams::GuestStreams;
use crate::sandbox::vm::{StartedVm, Vm};
use crate::sandbox::vm_files::{self, VmDescription};
use crate::sandbox::{GuestParts, GuestSetup, Sandbox, VmSize, settings, share};
use crate::streams::{Ends, StreamSource, ends};
use pouch_errors::chain;

/// The guest's and the host's ends of the streams of a process.
pub type Io = Option<(GuestStreams, Ends)>;

/// A created container.
pub struct Created {
    /// The container, with its VM.
    pub container: Container,
    /// The streams of its process; none for the sandbox of a pod.
    pub io: Io,
    /// Reports out-of-memory kills to the engine; none for a pod, whose shim does.
    pub oom: Option<OomReporter>,
    /// The connections to loopback addresses of a pod's network namespace.
    pub loopback: Option<Loopback>,
}

/// What of the host a container needs that is opened before its VM starts.
struct Surroundings {
    placement: CgroupPlacement,
    oom: Option<OomReporter>,
    loopback: Option<Loopback>,
    devices: NetworkDevices,
    /// The host's ends of the streams of its process; none for the sandbox of a pod.
    ends: Option<Ends>,
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
    /// The block devices of the host that it uses, opened; at most [`MAX_DISK_SLOTS`].
    devices: Vec<File>,
    /// Those that its VM has got.
    disks: Disks,
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
    let begun = Instant::now();
    let mut plan = Plan::make(launch, log)?;
    plan.dir.save(&plan.state).map_err(Failure::of)?;
    vm_files::preflight(&launch.config).map_err(Failure::of)?;
    let block_devices = plan.guest.devices.iter_mut().map(HostDisk::open);
    plan.devices = block_devices.collect::<Result<_, _>>().map_err(Failure::of)?;
    let Surroundings { placement, oom, loopback, devices, ends } = plan.enter_surroundings()?;
    let vm = plan.start_vm(&placement)?;
    let vmm_started = begun.elapsed();
    plan.state.vmm = HostProcess::find(vm.pid());
    let written = WriteCounters::open(vm.pid(), Some(&plan.cgroup));
    let Filled { vm, agent, io, guest_answered } = plan.fill(vm, &placement, ends, ended)?;
    let guest_answered = guest_answered.duration_since(begun);
    plan.state.phases = Some(Phases::of(vmm_started, guest_answered, begun.elapsed()));
    // If there are hooks, `create` sets this status after they have run.
    if !hooks::awaited(plan.state.hooks.as_ref()) {
        plan.state.status = Status::Created;
    }
    let sandbox = Arc::new(Sandbox::new(vm, agent, written, devices, plan.disks));
    let container = Container::new(plan.dir, sandbox, plan.state);
    Ok(Created { container, io, oom, loopback })
}

/// A VM with the container in it.
struct Filled {
    vm: Vm,
    agent: Agent,
    io: Io,
    guest_answered: Instant,
}

impl<'a> Plan<'a> {
    /// Reads the bundle, without changes to the host.
    fn make(launch: &'a Launch, log: &Log) -> Result<Self, Failure> {
        let bundle = Bundle::load(&launch.bundle).map_err(Failure::of)?;
        let mut guest = if launch.pod {
            pod_spec::of_pod(&bundle).map_err(Failure::of)?
        } else {
            guest_spec::translate(&bundle, None).map_err(Failure::of)?
        };
        for warning in &guest.warnings {
            log.warning(warning);
        }
        let host_cpus =
            thread::available_parallelism().map_or(1, |n| u8::try_from(n.get()).unwrap_or(u8::MAX));
        let size = if launch.pod { size::pod_size } else { size::vm_size };
        let size = size(&bundle.spec, &launch.config, host_cpus).map_err(Failure::of)?;
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
        let state = State {
            size: (!launch.pod).then_some(size),
            vhost_net: launch.config.vhost_net,
            ..initial_state(launch, &bundle, cgroup.clone())
        };
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
            devices: Vec::new(),
            disks: Disks::default(),
        })
    }

    /// Makes the cgroup, and puts this process where the container's is to be: into its network namespace, and
    /// into a mount namespace with the tree of all that the VM is given.
    fn enter_surroundings(&mut self) -> Result<Surroundings, Failure> {
        let ends = if self.launch.pod { None } else { Some(self.open_ends()?) };
        let (bundle, guest) = (&self.bundle, &mut self.guest);
        set_oom_score(bundle)?;
        let placement = self.cgroup.make().map_err(Failure::of)?;
        let reports = (!self.launch.pod).then(|| OomReporter::start(&self.cgroup, &placement));
        let oom = reports.transpose().map_err(Failure::of)?;
        // Some of the host's do not show in other network namespaces.
        self.settings = settings::of_host();
        namespace::enter(guest.network_namespace.as_deref()).map_err(Failure::of)?;
        self.settings.extend(settings::of_network());
        let devices = NetworkDevices::open();
        let loopback = self.launch.pod.then(open_loopback).flatten();
        share::enter_namespace().map_err(Failure::of)?;
        if !self.launch.pod
            && guest.root == RootSource::Directory
            && bundle.root().readonly().unwrap_or(false)
        {
            let made = mount_points::make(&bundle.root_path(), &mut guest.spec, &guest.shared);
            made.map_err(Failure::of)?;
            self.document = guest.document().map_err(Failure::of)?;
        }
        share::build(&self.tree(), &self.guest.shared, self.launch.pod).map_err(Failure::of)?;
        Ok(Surroundings { placement, oom, loopback, devices, ends })
    }

    /// Opens the host's ends of the streams of the container's process.
    fn open_ends(&self) -> Result<Ends, Failure> {
        let terminal = self.bundle.process().terminal().unwrap_or(false);
        let source: Box<dyn StreamSource + '_> = match (&self.launch.console_socket, self.launch.piped) {
            (_, true) => Box::new(ends::Piped),
            (console_socket, false) => ends::of_command_line(console_socket.as_deref()),
        };
        source.open(terminal).map_err(Failure::of)
    }

    /// Where the share tree is assembled.
    fn tree(&self) -> PathBuf {
        self.dir.path().join("share")
    }

    fn start_vm(&self, placement: &CgroupPlacement) -> Result<StartedVm, Failure> {
        let description = VmDescription {
            config: &self.launch.config,
            size: self.size,
            share: Some(&self.tree()),
            disks: in_guest::disks(&self.guest.root),
            disk_slots: if self.launch.pod { MAX_DISK_SLOTS } else { self.devices.len() as u8 },
            directory: self.dir.path(),
            cgroup: match placement {
                CgroupPlacement::In(directory) => Some(directory),
                CgroupPlacement::Inherited => None,
            },
        };
        StartedVm::start(&description).map_err(Failure::of)
    }

    /// Sets the guest up and creates the container in it. That is done in a thread without capabilities: from here on,
    /// this process hears the guest. The VM is gone after an error.
    fn fill(
        &self,
        vm: StartedVm,
        placement: &CgroupPlacement,
        ends: Option<Ends>,
        ended: impl FnOnce(Option<ExitReason>) + Send + 'static,
    ) -> Result<Filled, Failure> {
        let (created, entered) = thread::scope(|scope| {
            let creating = capabilities::without(scope, move || {
                let vm = vm.attend(ended).map_err(Failure::of)?;
                match self.create_container(&vm, ends) {
                    Ok((agent, io, guest_answered)) => Ok(Filled { vm, agent, io, guest_answered }),
                    Err(failure) => {
                        vm.end();
                        Err(failure)
                    }
                }
            });
            // The VMM was started in the cgroup; this process joins it while the guest boots.
            let entered = match placement {
                CgroupPlacement::In(_) => self.cgroup.enter().map_err(Failure::of),
                CgroupPlacement::Inherited => Ok(()),
            };
            (creating.and_then(Working::done), entered)
        });
        let filled = created?;
        let finished = entered.and_then(|()| self.finish(&filled.vm));
        match finished {
            Ok(()) => Ok(filled),
            Err(failure) => {
                filled.vm.end();
                Err(failure)
            }
        }
    }

    /// Does what takes root's rights after the guest has created the container.
    fn finish(&self, vm: &Vm) -> Result<(), Failure> {
        // The limits do not apply to the boot.
        self.cgroup.limit(&self.limits).map_err(Failure::of)?;
        let view = self.dir.path().join("view");
        if self.launch.pod {
            return view::cover_with_nothing(&view).map_err(Failure::of);
        }
        let host = self.state.host.as_ref().map(|process| process.pid);
        let pids: Vec<i32> = host.into_iter().chain([vm.pid()]).collect();
        view::cover(&self.tree(), &view, &self.guest, &pids).map_err(Failure::of)
    }

    fn create_container(&self, vm: &Vm, ends: Option<Ends>) -> Result<(Agent, Io, Instant), Failure> {
        let setup = GuestSetup {
            hostname: self.guest.spec.hostname().clone().unwrap_or_else(hostname_of_host),
            settings: self.settings.clone(),
            boot_timeout: Duration::from_secs(self.launch.config.boot_timeout_seconds.into()),
            pod: self.guest.pod.clone(),
        };
        let agent = Sandbox::set_up(vm, self.size, setup).map_err(Failure::of)?;
        let guest_answered = Instant::now();
        let Some(ends) = ends else { return Ok((agent, None, guest_answered)) };
        let document = self.document.clone();
        let id = &self.launch.id;
        let files: io::Result<Vec<_>> =
            self.devices.iter().map(|file| file.try_clone().map(OwnedFd::from)).collect();
        let devices = self.disks.add(vm, id, &self.guest.devices, files.map_err(Failure::of)?);
        let devices = devices.map_err(Failure::of)?;
        let storages = in_guest::storages(&self.guest.root);
        let parts = GuestParts { storages, pids: self.guest.pids.clone(), devices };
        let streams = in_guest::create(vm, &agent, id, document, parts, &ends)?;
        Ok((agent, Some((streams, ends)), guest_answered))
    }
}

/// Takes the connections to loopback addresses in this network namespace.
fn open_loopback() -> Option<Loopback> {
    // Without it only forwarded ports fail.
    Loopback::open().map_err(|error| eprintln!("pouch-vm: warning: {}", chain(&WireError::from(error)))).ok()
}

/// What a container has under runc that is given no name.
fn hostname_of_host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
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
        proxy: None,
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
        size: None,
        vhost_net: false,
        phases: None,
        exit_status: None,
        vm_end: None,
        hooks: bundle.spec.hooks().clone(),
    }
}
