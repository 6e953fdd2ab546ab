//! A pod of a node, and what the kubelet does for it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_cri::v1::{
    DnsConfig, LinuxContainerResources, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxState, PodSandboxStats, PodSandboxStatsRequest,
    PodSandboxStatus, PodSandboxStatusRequest, PortForwardRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StopPodSandboxRequest,
};
use tonic::{Request, Status};

use super::{ContainerBuilder, Node, Stream, address};
use crate::{HANG, bundle, eventually, processes};

/// The cgroup of all pods, which the kubelet makes.
const CGROUPS: &str = "/sys/fs/cgroup";
const PARENT: &str = "kubepods-test";

/// A pod that is to be started.
pub struct PodBuilder<'a> {
    node: &'a Node,
    config: PodSandboxConfig,
    handler: String,
}

impl<'a> PodBuilder<'a> {
    pub(super) fn new(node: &'a Node, name: &str) -> Self {
        let uid = bundle::unique_id();
        let namespaces = NamespaceOption { pid: Namespace::Container as i32, ..Default::default() };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: node.directory().join(&uid).join("logs").display().to_string(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{PARENT}/{uid}"),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        PodBuilder { node, config, handler: node.handler.to_owned() }
    }

    /// Takes another runtime than the one that is tested, by the name of its handler.
    pub fn handler(mut self, name: &str) -> Self {
        self.handler = name.to_owned();
        self
    }

    /// The root file systems of its containers come from this snapshotter of containerd.
    pub fn snapshotter(self, name: &str) -> Self {
        let handler = format!("{}-{name}", self.handler);
        self.handler(&handler)
    }

    /// It is created by the sandbox API, with options of the runtime that no VM can have: a `default_memory_mib` of 8.
    pub fn misconfigured(self) -> Self {
        self.handler(super::daemon::MISCONFIGURED)
    }

    /// Changes its configuration in another way than those below.
    pub fn with(mut self, change: impl FnOnce(&mut PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Changes what is only for Linux.
    pub fn linux(self, change: impl FnOnce(&mut LinuxPodSandboxConfig)) -> Self {
        self.with(|config| change(config.linux.get_or_insert_default()))
    }

    /// Changes its namespaces.
    pub fn namespaces(self, change: impl FnOnce(&mut NamespaceOption)) -> Self {
        self.linux(|linux| {
            let context = linux.security_context.get_or_insert_default();
            change(context.namespace_options.get_or_insert_default());
        })
    }

    /// All containers see each other's processes.
    pub fn shared_pids(self) -> Self {
        self.namespaces(|namespaces| namespaces.pid = Namespace::Pod as i32)
    }

    /// Sets kernel parameters of the pod.
    pub fn sysctls(self, sysctls: &[(&str, &str)]) -> Self {
        let sysctls: HashMap<_, _> =
            sysctls.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        self.linux(|linux| linux.sysctls = sysctls)
    }

    /// Sets the sums of what its containers are limited to, as the kubelet does.
    pub fn resources(self, resources: LinuxContainerResources) -> Self {
        self.linux(|linux| linux.resources = Some(resources))
    }

    /// Sets its name servers and search domains.
    pub fn dns(self, servers: &[&str], searches: &[&str]) -> Self {
        let owned = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
        let dns = DnsConfig { servers: owned(servers), searches: owned(searches), options: Vec::new() };
        self.with(|config| config.dns_config = Some(dns))
    }

    /// Starts it.
    #[track_caller]
    pub fn run(self) -> Pod<'a> {
        let node = self.node;
        self.try_run().unwrap_or_else(|status| panic!("RunPodSandbox: {status}\n{}", node.log_tail()))
    }

    /// Starts it, or returns why it does not start.
    ///
    /// # Errors
    /// containerd's.
    pub fn try_run(self) -> Result<Pod<'a>, Status> {
        self.try_run_within(HANG)
    }

    /// Starts it, or gives up after this time, as the kubelet does. Then it waits until containerd has given up too.
    ///
    /// # Errors
    /// containerd's.
    pub fn try_run_within(self, time: Duration) -> Result<Pod<'a>, Status> {
        let uid = self.config.metadata.as_ref().map(|metadata| metadata.uid.clone()).unwrap_or_default();
        let home = Home::new(self.node, &uid);
        let mut request = Request::new(RunPodSandboxRequest {
            config: Some(self.config.clone()),
            runtime_handler: self.handler,
        });
        request.set_timeout(time);
        match self.node.call(async |mut client| client.run_pod_sandbox(request).await) {
            Ok(made) => {
                Ok(Pod { node: self.node, id: made.pod_sandbox_id, config: self.config, home: Some(home) })
            }
            Err(status) => {
                eventually("the cgroup of a pod that was not created is empty", || home.is_unused());
                Err(status)
            }
        }
    }
}

/// The namespaces that CRI distinguishes.
#[derive(Clone, Copy)]
pub enum Namespace {
    /// That of the pod.
    Pod = 0,
    /// One of the container's own.
    Container = 1,
    /// That of the node.
    Node = 2,
    /// That of another container of the pod.
    Target = 3,
}

/// What the kubelet keeps for a pod: a directory for volumes and logs, and a cgroup. It goes when this is dropped.
struct Home {
    directory: PathBuf,
    cgroup: PathBuf,
}

impl Home {
    fn new(node: &Node, uid: &str) -> Self {
        let (directory, cgroup) = (node.directory().join(uid), Path::new(CGROUPS).join(PARENT).join(uid));
        for one in [&directory.join("logs"), &directory.join("volumes"), &cgroup] {
            fs::create_dir_all(one).unwrap();
        }
        for parent in [Path::new(CGROUPS), &Path::new(CGROUPS).join(PARENT)] {
            let _ = fs::write(parent.join("cgroup.subtree_control"), "+cpu +memory +pids");
        }
        Home { directory, cgroup }
    }

    /// Whether there is nothing in its cgroup.
    fn is_unused(&self) -> bool {
        !fs::read_dir(&self.cgroup).unwrap().any(|entry| entry.unwrap().path().is_dir())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
        let _ = fs::remove_dir(&self.cgroup);
        let _ = self.directory.parent().map(fs::remove_dir);
        let _ = self.cgroup.parent().map(fs::remove_dir);
    }
}

/// A pod that was started. It is removed when it is dropped.
pub struct Pod<'a> {
    node: &'a Node,
    /// Its ID.
    pub id: String,
    /// What it was started with.
    pub config: PodSandboxConfig,
    /// None if the pod is kept.
    home: Option<Home>,
}

/// A pod that goes on without its [`Node`].
pub struct KeptPod {
    id: String,
    config: PodSandboxConfig,
    home: Option<Home>,
}

impl<'a> Pod<'a> {
    pub(super) fn of(node: &'a Node, kept: KeptPod) -> Self {
        Pod { node, id: kept.id, config: kept.config, home: kept.home }
    }

    /// Keeps it when this is dropped, for a restart of its node.
    pub fn forget(mut self) -> KeptPod {
        KeptPod { id: self.id.clone(), config: self.config.clone(), home: self.home.take() }
    }

    fn home(&self) -> &Home {
        self.home.as_ref().expect("it is not kept")
    }

    /// The node that it is on.
    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// Describes a container of busybox with this name, which is to be created in it.
    pub fn container(&self, name: &str) -> ContainerBuilder<'_> {
        ContainerBuilder::new(self, name)
    }

    /// A new directory on the host for a volume of the pod.
    #[track_caller]
    pub fn volume(&self, name: &str) -> PathBuf {
        let path = self.home().directory.join("volumes").join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// The directory of its logs.
    pub fn logs(&self) -> &Path {
        Path::new(&self.config.log_directory)
    }

    /// Its cgroup on the host.
    pub fn cgroup(&self) -> &Path {
        &self.home().cgroup
    }

    /// What CRI tells of it.
    #[track_caller]
    pub fn status(&self) -> PodSandboxStatus {
        self.try_status().unwrap()
    }

    /// What CRI tells of it.
    ///
    /// # Errors
    /// containerd's.
    pub fn try_status(&self) -> Result<PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        let response = self.node.call(async |mut client| client.pod_sandbox_status(request).await)?;
        Ok(response.status.expect("it has a status"))
    }

    /// Whether it runs.
    #[track_caller]
    pub fn is_ready(&self) -> bool {
        self.status().state() == PodSandboxState::SandboxReady
    }

    /// Its IP address.
    #[track_caller]
    pub fn address(&self) -> String {
        address(&self.status()).expect("it has an address")
    }

    /// The PID of the process that stands for it on the host.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        super::daemon::pid_of(self.node.version(), &self.id)
    }

    /// Its directory, if it was created by the sandbox API.
    pub fn bundle(&self) -> PathBuf {
        super::daemon::sandbox_bundle(self.node.version(), &self.id)
    }

    /// Connects to a port of it, as `kubectl port-forward` does.
    #[track_caller]
    pub fn forward(&self, port: u16) -> Stream {
        let request = PortForwardRequest { pod_sandbox_id: self.id.clone(), port: vec![port.into()] };
        let url = self.node.call(async |mut client| client.port_forward(request).await).unwrap().url;
        Stream::to_port(&url)
    }

    /// Its processes on the host: the shim, and what that started.
    #[track_caller]
    pub fn processes(&self) -> Vec<i32> {
        let shim = processes::find(self.pid()).expect("it runs").parent;
        [vec![shim], processes::descendants(shim)].concat()
    }

    /// The use of resources that CRI tells of it.
    #[track_caller]
    pub fn stats(&self) -> PodSandboxStats {
        let request = PodSandboxStatsRequest { pod_sandbox_id: self.id.clone() };
        let response = self.node.call(async |mut client| client.pod_sandbox_stats(request).await);
        response.unwrap().stats.expect("it has statistics")
    }

    /// Stops it with all its containers.
    ///
    /// # Errors
    /// containerd's.
    pub fn try_stop(&self) -> Result<(), Status> {
        let request = StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.node.call(async |mut client| client.stop_pod_sandbox(request).await).map(drop)
    }

    /// Removes it with all its containers.
    ///
    /// # Errors
    /// containerd's.
    pub fn try_remove(&self) -> Result<(), Status> {
        let request = RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.node.call(async |mut client| client.remove_pod_sandbox(request).await).map(drop)
    }

    /// Stops and removes it.
    #[track_caller]
    pub fn remove(self) {
        self.try_stop().unwrap();
        self.try_remove().unwrap();
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        if self.home.is_none() {
            return;
        }
        if std::thread::panicking() {
            eprintln!("--- pod {}; containerd's log:\n{}", self.id, self.node.log_tail());
        }
        let _ = self.try_stop();
        let _ = self.try_remove();
    }
}

/// KiB of memory for each of these pods: of their processes on the host, and of guest memory and guest root.
#[track_caller]
pub fn memory_kib(pods: &[Pod<'_>]) -> (u64, u64) {
    let all = pods.iter().flat_map(Pod::processes).map(processes::own_and_guest_kib);
    let (own, guest) = all.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1));
    (own / pods.len() as u64, guest / pods.len() as u64)
}
