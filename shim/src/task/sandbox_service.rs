//! The Sandbox service (containerd, `api/runtime/sandbox/v1/sandbox.proto`): pods that containerd creates without a
//! container for the sandbox.
//!
//! There is no specification of the sandbox, so the shim makes one from the description of the pod ([`sandbox_spec`]).
//! From there on the sandbox is one of the Task service's containers. The other containers come by that service.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use std::{fs, io};

use containerd_shim::TtrpcContext;
use containerd_shim::protos::cgroups_v2::metrics::{CPUStat, MemoryStat, Metrics, PidsStat};
use containerd_shim::protos::events::task::{TaskCreate, TaskStart};
use containerd_shim::protos::ttrpc::{self, Code};
use containerd_shim::protos::types::platform::Platform;
use containerd_shim::util::convert_to_any;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_sync::Sandbox;
use serde_json::json;

use super::container::{CreateError, TaskContainer};
use super::events::{Events, timestamp};
use super::options::{self, OptionsError};
use super::sandbox_config::{ConfigError, PodConfig};
use super::sandbox_files::{FilesError, PodFiles};
use super::service::{Service, failed, refused, status_of};
use super::{rootfs, sandbox_spec, state_root};
use crate::cgroup::Usage;
use crate::container::bundle::CONFIG_FILE;
use crate::container::{ContainerDir, ContainerId, IdError, Status};
use crate::host::delete;
use crate::logging::Log;

/// What CRI calls a pod whose containers can be created, and any other.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// A sandbox could not be created.
#[derive(Debug, thiserror::Error)]
enum SandboxError {
    /// Its ID is invalid.
    #[error(transparent)]
    Id(#[from] IdError),
    /// The description of the pod.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The options of the runtime.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The files of the pod.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Its specification.
    #[error("the specification {path} could not be written")]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// Anything of the sandbox itself.
    #[error(transparent)]
    Create(#[from] CreateError),
}

/// Creates the sandbox that the request describes; nothing of it runs after an error.
fn create(
    request: &CreateSandboxRequest,
    namespace: &str,
    events: &Events,
) -> Result<TaskContainer, SandboxError> {
    let id: ContainerId = request.sandbox_id.parse()?;
    let bundle = Path::new(&request.bundle_path);
    let config = PodConfig::read(request.options.as_ref())?;
    let options = options::kept(bundle)?;
    let annotations = request.annotations.clone();
    let spec = sandbox_spec::specification(id.as_str(), &config, &request.netns_path, annotations);
    let path = bundle.join(CONFIG_FILE);
    fs::write(&path, spec.to_string()).map_err(|source| SandboxError::Write { path, source })?;
    let files = PodFiles::make(bundle, &config)?;
    rootfs::mount_all(bundle, &request.rootfs).map_err(CreateError::from)?;
    let created = TaskContainer::create_sandbox(&id, bundle, options, files, namespace, events);
    Ok(created.inspect_err(|_| rootfs::unmount(bundle))?)
}

impl Service {
    fn sandbox(&self, id: &str) -> ttrpc::Result<Arc<TaskContainer>> {
        let found = self.lock().get(id).filter(|container| container.is_sandbox()).cloned();
        found.ok_or_else(|| refused(Code::NOT_FOUND, format!("the sandbox {id} does not exist")))
    }
}

impl Sandbox for Service {
    fn create_sandbox(
        &self,
        _ctx: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        let id = request.sandbox_id.clone();
        if self.lock().contains_key(&id) {
            return Err(refused(Code::ALREADY_EXISTS, format!("the sandbox {id} exists already")));
        }
        let sandbox = create(&request, &self.namespace, &self.events).map_err(|error| failed(&error))?;
        let pid = sandbox.pid;
        self.lock().insert(id.clone(), Arc::new(sandbox));
        self.events.publish(TaskCreate {
            container_id: id,
            bundle: request.bundle_path,
            rootfs: request.rootfs,
            pid,
            ..TaskCreate::default()
        });
        Ok(CreateSandboxResponse::new())
    }

    fn start_sandbox(
        &self,
        _ctx: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        sandbox.start(&Self::log(&sandbox)).map_err(|error| failed(&error))?;
        let mut response = StartSandboxResponse::new();
        response.pid = sandbox.pid;
        response.created_at = sandbox.sandbox_created().map(timestamp).into();
        self.events.publish(TaskStart {
            container_id: request.sandbox_id,
            pid: sandbox.pid,
            ..TaskStart::default()
        });
        Ok(response)
    }

    fn platform(&self, _ctx: &TtrpcContext, _request: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        let mut platform = Platform::new();
        (platform.os, platform.architecture) = ("linux".to_owned(), "amd64".to_owned());
        let mut response = PlatformResponse::new();
        response.platform = Some(platform).into();
        Ok(response)
    }

    /// Ends the VM at once, however long it might take: the engine has stopped the containers before.
    fn stop_sandbox(
        &self,
        _ctx: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        sandbox.remove(&Self::log(&sandbox)).map_err(|error| failed(&error))?;
        Ok(StopSandboxResponse::new())
    }

    fn wait_sandbox(
        &self,
        _ctx: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let exit = self.sandbox(&request.sandbox_id)?.ending.wait();
        let mut response = WaitSandboxResponse::new();
        response.exit_status = exit.status;
        response.exited_at = Some(timestamp(exit.time)).into();
        Ok(response)
    }

    fn sandbox_status(
        &self,
        _ctx: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        let exit = sandbox.ending.get();
        let runs = exit.is_none() && sandbox.dir.load().is_ok_and(|state| state.status == Status::Running);
        let mut response = SandboxStatusResponse::new();
        response.state = if runs { READY } else { NOT_READY }.to_owned();
        response.pid = if exit.is_none() { sandbox.pid } else { 0 };
        response.created_at = sandbox.sandbox_created().map(timestamp).into();
        response.exited_at = exit.map(|exit| timestamp(exit.time)).into();
        if request.verbose {
            let status = format!("{:?}", status_of(&sandbox)).to_lowercase();
            // As CRI has it for its own sandboxes.
            let info = json!({"pid": response.pid, "processStatus": status});
            response.info.insert("info".to_owned(), info.to_string());
        }
        response.sandbox_id = request.sandbox_id;
        Ok(response)
    }

    fn ping_sandbox(&self, _ctx: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        match self.sandbox(&request.sandbox_id)?.ending.get() {
            None => Ok(PingResponse::new()),
            Some(_) => {
                let text = format!("the sandbox {} has ended", request.sandbox_id);
                Err(refused(Code::FAILED_PRECONDITION, text))
            }
        }
    }

    /// Removes the pod and everything in it, and then ends the shim. containerd asks for this after a failure too.
    fn shutdown_sandbox(
        &self,
        _ctx: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        let id = request.sandbox_id;
        if let Ok(sandbox) = self.sandbox(&id) {
            // Its containers end with it.
            self.remove(&id, &sandbox)?;
            let members: Vec<_> = self.lock().iter().map(|(id, one)| (id.clone(), one.clone())).collect();
            for (id, member) in members {
                self.remove(&id, &member)?;
            }
        } else {
            let id = id.parse().map_err(|error: IdError| failed(&error))?;
            let dir = ContainerDir::new(&state_root(&self.namespace), &id);
            delete::delete(&dir, &Log::default(), true).map_err(|error| failed(&error))?;
        }
        self.exit.signal();
        Ok(ShutdownSandboxResponse::new())
    }

    fn sandbox_metrics(
        &self,
        _ctx: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let sandbox = self.sandbox(&request.sandbox_id)?;
        let state = sandbox.dir.load().map_err(|error| failed(&error))?;
        let metrics = metrics(state.cgroup.map(|cgroup| cgroup.usage()).unwrap_or_default());
        let mut response = SandboxMetricsResponse::new();
        let metric = response.metrics.mut_or_insert_default();
        metric.id = request.sandbox_id;
        metric.timestamp = Some(timestamp(SystemTime::now())).into();
        metric.data = Some(convert_to_any(Box::new(metrics)).map_err(|error| failed(&error))?).into();
        Ok(response)
    }
}

/// The use of the whole VM on the host.
fn metrics(usage: Usage) -> Metrics {
    let mut metrics = Metrics::new();
    metrics.cpu = Some(CPUStat {
        usage_usec: usage.cpu,
        user_usec: usage.user,
        system_usec: usage.system,
        ..CPUStat::default()
    })
    .into();
    metrics.memory = Some(MemoryStat { usage: usage.memory, ..MemoryStat::default() }).into();
    metrics.pids = Some(PidsStat { current: usage.processes, ..PidsStat::default() }).into();
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim::protos::protobuf::well_known_types::any::Any;
    use pouch_errors::chain;

    /// Why the sandbox `id` is not created.
    fn refused(id: &str, bundle: &Path, options: &[u8]) -> String {
        let mut request = CreateSandboxRequest::new();
        (request.sandbox_id, request.bundle_path) = (id.to_owned(), bundle.display().to_string());
        let type_url = "runtime.v1.PodSandboxConfig".to_owned();
        request.options = Some(Any { type_url, value: options.to_vec(), ..Any::default() }).into();
        let events = Events::start("n", String::new()).unwrap();
        chain(&create(&request, "n", &events).err().unwrap())
    }

    #[test]
    fn what_cannot_be_created_is_named() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(refused("../a", bundle.path(), &[]).contains("../a"));
        // A host name that is longer than the message.
        assert!(refused("a", bundle.path(), &[2 << 3 | 2, 9]).contains("PodSandboxConfig is malformed"));
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 0);
        assert!(refused("a", Path::new("/no/such"), &[]).contains("/no/such/config.json"));
    }
}
