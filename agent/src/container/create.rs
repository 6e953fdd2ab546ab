//! CreateContainer.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use oci_spec::runtime::{Linux, Process as ProcessSpec, Spec};
use pouch_protocol::agent::CreateContainerRequest;
use pouch_protocol::agent::command_error::Kind;
use ttrpc::proto::Code;

use super::cgroup::{Cgroup, CgroupError};
use super::copyup::{self, CopiedUp, CopyUpError};
use super::devices_bpf::{self, DeviceRulesError};
use super::launch::{self, LaunchError};
use super::pid_namespace::{self, PidNamespaceError};
use super::refresh;
use super::spec::{self, Adapted, ForExec, Renumbered};
use super::start::blocking;
use super::{Container, LookupError, Paths, Runtime, check_id, tmpfs};
use crate::disks::DiskError;
use crate::error::{Coded, RequestError};
use crate::network::namespace;
use crate::process::Process;
use crate::runner::{Job, Task};
use crate::settings;
use crate::storage::{self, StorageError};
use crate::streams::stdio::{self, PreparedStdio, ProcessEnds, StdioError};

/// Why a container could not be created.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The id cannot be used.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// A storage cannot be mounted.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A disk cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The standard streams cannot be set up.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The limits cannot be set.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The device rules cannot be set.
    #[error(transparent)]
    Devices(#[from] DeviceRulesError),
    /// A kernel setting cannot be made.
    #[error("linux.sysctl[{0}]: the kernel refused it")]
    Sysctl(String, #[source] io::Error),
    /// A tmpfs cannot be filled.
    #[error(transparent)]
    CopyUp(#[from] CopyUpError),
    /// The process cannot be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It cannot join the PID namespace.
    #[error(transparent)]
    PidNamespace(#[from] PidNamespaceError),
    /// A file of the container's cannot be made.
    #[error("cannot set up the container: {0}")]
    System(&'static str, #[source] io::Error),
}

impl Coded for CreateError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Lookup(error) => error.code(),
            Self::Storage(error) => error.code(),
            Self::Disk(error) => error.code(),
            Self::Stdio(error) => error.code(),
            Self::Cgroup(error) => error.code(),
            Self::Devices(error) => error.code(),
            Self::CopyUp(error) => error.code(),
            Self::Launch(error) => error.code(),
            Self::PidNamespace(error) => error.code(),
            Self::Sysctl(..) => Code::INVALID_ARGUMENT,
            Self::System(..) => Code::INTERNAL,
        }
    }

    fn command_error(&self) -> Option<Kind> {
        match self {
            Self::Launch(error) => error.command_error(),
            _ => None,
        }
    }
}

/// Creates a container; returns its first process, which waits to be started. If it fails, everything is
/// undone.
pub async fn create(runtime: &Arc<Runtime>, request: CreateContainerRequest) -> Result<i32, CreateError> {
    let id = request.container_id.as_str();
    check_id("container_id", id)?;
    let mut spec = spec::parse(&request.spec)?;
    spec::check(&spec)?;
    spec::settle_devices(&mut spec, &request.devices)?;
    // Kept until the container has joined.
    let _pids = pid_namespace::join(runtime, &mut spec, &request).await?;
    let reservation = runtime.containers.reserve(id)?;
    let disks = runtime.disks.take(id, &request.devices).await?;
    if let Some(linux) = spec.linux_mut() {
        renumber(linux, &disks);
    }
    match build(runtime, spec, &request, disks).await {
        Ok(container) => {
            let container = Arc::new(container);
            let pid = container.init.pid;
            runtime.events.watch(id, &container.cgroup.directory().join("memory.events"));
            reservation.fill(container);
            Ok(pid)
        }
        Err(error) => {
            // The first error is reported.
            if let Err(remains) = runtime.disks.release(id).await {
                log::error!("container {id} is not cleaned up: {}", pouch_errors::chain(&remains));
            }
            Err(error)
        }
    }
}

/// Gives disks their numbers in the guest.
fn renumber(linux: &mut Linux, disks: &[Renumbered]) {
    if let Some(devices) = linux.devices_mut() {
        spec::renumber_devices(devices, disks);
    }
    if let Some(resources) = linux.resources_mut()
        && let Some(rules) = resources.devices()
    {
        let rules = spec::renumber_rules(rules, disks);
        resources.set_devices(Some(rules));
    }
}

/// Makes the container whose disks are there.
async fn build(
    runtime: &Arc<Runtime>,
    spec: Spec,
    request: &CreateContainerRequest,
    disks: Vec<Renumbered>,
) -> Result<Container, CreateError> {
    let id = request.container_id.as_str();
    let paths = Paths::of(id);
    let cgroup = Cgroup::of(&paths.name);
    let alone = runtime.containers.all().is_empty() && !namespace::entered();
    let adapted = spec::adapt(spec, &cgroup, alone)?;
    check_terminal(&adapted, request.stdio.terminal)?;
    let (prepared, ends) =
        stdio::prepare(&request.stdio, &runtime.streams, stream_owner(&adapted.process, &adapted.for_exec))?;

    storage::mount_all(&runtime.storages, id, request.storages.clone()).await?;
    let made = make(runtime, id, &paths, &cgroup, adapted, prepared, ends).await;
    match made {
        Ok(container) => Ok(Container { disks, ..container }),
        Err(error) => {
            super::delete::clean(runtime, id, &paths).await;
            Err(error)
        }
    }
}

fn check_terminal(adapted: &Adapted, wanted: bool) -> Result<(), RequestError> {
    if adapted.process.terminal().unwrap_or(false) != wanted {
        return Err(RequestError::new("stdio.terminal", "differs from the specification's process.terminal"));
    }
    Ok(())
}

/// The user who may reopen the streams: the user of the process, as a UID of the guest.
fn stream_owner(process: &ProcessSpec, for_exec: &ForExec) -> u32 {
    for_exec.mapped(process.user().uid())
}

async fn make(
    runtime: &Arc<Runtime>,
    id: &str,
    paths: &Paths,
    cgroup: &Cgroup,
    adapted: Adapted,
    mut prepared: PreparedStdio,
    ends: ProcessEnds,
) -> Result<Container, CreateError> {
    let Adapted {
        spec,
        process,
        for_exec,
        resources,
        sysctls,
        own_network,
        takes_network,
        shares_pids,
        owner,
        readonly_paths,
    } = adapted;
    let rules = resources.as_ref().and_then(|resources| resources.devices().as_deref()).unwrap_or(&[]);
    let rules = devices_bpf::rules(rules)?;
    cgroup.create(resources.as_ref())?;
    if let Some(owner) = owner {
        cgroup.delegate(owner)?;
    }
    for (key, value) in sysctls {
        if !runtime.interface_settings.keep(id, &key, &value) {
            fs::write(settings::path_of(&key), value).map_err(|error| CreateError::Sysctl(key, error))?;
        }
    }
    let bundle = paths.bundle();
    fs::create_dir(&bundle).map_err(|error| CreateError::System("its directory", error))?;
    // Kept until the container has its own mounts.
    let (spec, _copied_up) = copy_up(spec, &bundle).await?;
    write_config(&spec, &bundle)?;
    if let Some(size) = process.console_size() {
        prepared.default_size(size.height(), size.width());
    }
    let user = stream_owner(&process, &for_exec);
    let job = Job {
        name: paths.name.clone(),
        bundle: bundle.clone(),
        state: Paths::STATE.into(),
        console_socket: prepared.is_terminal().then(|| bundle.join("console.sock")),
        process,
        seccomp: for_exec.seccomp.clone(),
        task: Task::Create { loopback: own_network, readonly_paths, hidden: shares_pids },
    };
    let bound = refresh::sources(&spec);
    if !bound.is_empty() {
        let files = bound.clone();
        blocking(move || refresh::enter(&files))
            .await
            .map_err(|error| CreateError::System("its bind mounts", io::Error::other(error)))?;
    }
    let starting = runtime.processes.starting();
    let launched = launch::launch(&runtime.processes, &job, &bundle.join("job.json"), ends).await?;
    if takes_network {
        // libcontainer has made those of the specification there.
        let made = spec.linux().as_ref().and_then(|linux| linux.sysctl().clone()).unwrap_or_default();
        let made = made.keys().map(|key| settings::path_of(key)).collect();
        namespace::enter(id, launched.pid, &made)
            .map_err(|error| CreateError::System("its network namespace", error))?;
    }
    if let Some(master) = &launched.master {
        stdio::chown_terminal(master, user).map_err(|error| CreateError::System("its terminal", error))?;
    }
    let devices = devices_bpf::attach(cgroup.directory(), &rules, None)?;
    let stdio = prepared.start(launched.master)?;
    let init = Process::new(id, "", launched.pid, stdio)
        .map_err(|error| CreateError::System("its process", error))?;
    let init = Arc::new(init);
    let mut container =
        Container::new(id, paths.clone(), init.clone(), for_exec, bound, devices, launched.report);
    container.shares_pids = shares_pids;
    runtime.adopt(init);
    drop(starting);
    Ok(container)
}

/// Fills tmpfs mounts with `tmpcopyup`, and sets the modes of those without one, in a separate thread.
async fn copy_up(mut spec: Spec, bundle: &Path) -> Result<(Spec, CopiedUp), CreateError> {
    if !copyup::wanted(&spec) && !tmpfs::wanted(&spec) {
        return Ok((spec, CopiedUp::default()));
    }
    let directory = bundle.to_owned();
    let task = blocking(move || {
        let copied = copyup::prepare(&mut spec, &directory)?;
        tmpfs::settle_modes(&mut spec);
        Ok::<_, CopyUpError>((spec, copied))
    });
    let result = task.await.map_err(|error| CreateError::System("its tmpfs", io::Error::other(error)))?;
    Ok(result?)
}

fn write_config(spec: &Spec, bundle: &Path) -> Result<(), CreateError> {
    let failed = |error| CreateError::System("config.json", error);
    let config = serde_json::to_vec(spec).map_err(|error| failed(error.into()))?;
    fs::write(bundle.join("config.json"), config).map_err(failed)
}
