//! containerd's CRI plugin, used as the kubelet uses it.
//!
//! A [`Node`] is a containerd of its own, with the images of the tests in the namespace that CRI uses. It is started
//! when a test first needs it, and runs on for the next tests of the testbed.

mod container;
mod daemon;
mod pod;
mod snapshotters;
mod stream;

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{PodSandboxFilter, PodSandboxStatus, StatusRequest, VersionRequest};
use nix::sys::signal::Signal;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};

pub use container::{Container, ContainerBuilder, Ended, Executed, LogLine};
pub use pod::{KeptPod, Namespace, Pod, PodBuilder, memory_kib};
pub use stream::{Channel as StreamChannel, Stream};

use crate::{HANG, has_vm};

/// The versions of containerd that are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 1.7, of Debian trixie.
    V1_7,
    /// 2.1, of Debian forky.
    V2_1,
}

/// A containerd, and a client of its CRI plugin.
pub struct Node {
    runtime: Runtime,
    channel: Channel,
    version: Version,
    /// The handler of its pods.
    handler: &'static str,
}

impl Node {
    /// Connects to the containerd of this version. Starts it if it does not run.
    #[track_caller]
    pub fn of(version: Version) -> Self {
        daemon::ensure(version);
        let node = Self::connect(version);
        // The plugin is ready later than the socket.
        crate::eventually("the CRI plugin answers", || node.is_ready());
        node
    }

    /// Removes all that this snapshotter has. An image is unpacked again when it is used again.
    #[track_caller]
    pub fn remove_snapshots(&self, snapshotter: &str) {
        daemon::remove_snapshots(self.version, snapshotter);
    }

    /// Its pods are created by the sandbox API.
    pub fn sandboxed(self) -> Self {
        Node { handler: daemon::SANDBOXED, ..self }
    }

    #[track_caller]
    fn connect(version: Version) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let path = daemon::socket(version);
        let channel = {
            let _entered = runtime.enter();
            // The address is not used; tonic asks for one.
            Endpoint::from_static("http://containerd.invalid").timeout(HANG).connect_with_connector_lazy(
                tower::service_fn(move |_: Uri| {
                    let path = path.clone();
                    async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
                }),
            )
        };
        let handler = if has_vm() { "pouch-vm" } else { "runc" };
        Node { runtime, channel, version, handler }
    }

    fn is_ready(&self) -> bool {
        let status = self.call(async |mut client| client.status(StatusRequest::default()).await);
        let conditions = status.ok().and_then(|status| status.status).map(|status| status.conditions);
        // There are others, such as one about the configuration.
        let met = |kind: &str| conditions.iter().flatten().any(|one| one.r#type == kind && one.status);
        met("RuntimeReady") && met("NetworkReady")
    }

    /// Sends a request to the runtime service.
    ///
    /// # Errors
    /// The answer of containerd.
    pub fn call<T>(
        &self,
        request: impl AsyncFnOnce(RuntimeServiceClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let client = RuntimeServiceClient::new(self.channel.clone());
        self.runtime.block_on(request(client)).map(Response::into_inner)
    }

    /// Sends a request to the image service.
    ///
    /// # Errors
    /// The answer of containerd.
    pub fn call_images<T>(
        &self,
        request: impl AsyncFnOnce(ImageServiceClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let client = ImageServiceClient::new(self.channel.clone());
        self.runtime.block_on(request(client)).map(Response::into_inner)
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The version that it tells.
    #[track_caller]
    pub fn told_version(&self) -> String {
        self.call(async |mut client| client.version(VersionRequest::default()).await).unwrap().runtime_version
    }

    /// `ctr` for its containers of Kubernetes.
    pub fn ctr(&self, arguments: &[&str]) -> crate::Invocation {
        daemon::ctr(self.version, arguments)
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        daemon::log_tail(self.version)
    }

    /// Kills containerd.
    #[track_caller]
    pub fn kill(&self) {
        daemon::stop(self.version, Signal::SIGKILL);
    }

    /// Ends containerd, if it runs, and starts it again, while pods run.
    #[track_caller]
    pub fn restart(&mut self) {
        daemon::stop(self.version, Signal::SIGTERM);
        *self = Node { handler: self.handler, ..Self::of(self.version) };
    }

    /// Describes a pod with this name, which is to be started.
    pub fn pod(&self, name: &str) -> PodBuilder<'_> {
        PodBuilder::new(self, name)
    }

    /// A pod that was kept over a restart ([`Pod::forget`]).
    pub fn find_pod(&self, kept: KeptPod) -> Pod<'_> {
        Pod::of(self, kept)
    }

    /// A container of a pod that was kept over a restart.
    pub fn find_container(&self, id: String) -> Container<'_> {
        Container::of(self, id)
    }

    /// Whether it lists the pod with this ID.
    #[track_caller]
    pub fn lists(&self, pod: &str) -> bool {
        let filter = Some(PodSandboxFilter { id: pod.to_owned(), ..Default::default() });
        let request = k8s_cri::v1::ListPodSandboxRequest { filter };
        !self.call(async |mut client| client.list_pod_sandbox(request).await).unwrap().items.is_empty()
    }

    /// The directory that holds what the kubelet would have for its pods.
    pub fn directory(&self) -> PathBuf {
        Path::new("/tmp").join(format!("kubelet-{:?}", self.version))
    }
}

/// The IP address that CRI tells of a pod, if any.
fn address(status: &PodSandboxStatus) -> Option<String> {
    status.network.as_ref().map(|network| network.ip.clone()).filter(|ip| !ip.is_empty())
}
