//! The service of the protocol. The methods here only dispatch; each group of requests has its own file.

mod containers;
mod guest;
mod processes;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use nix::sys::reboot::{RebootMode, reboot};
use pouch_protocol::agent::*;
use pouch_protocol::agent_ttrpc::{self, Agent as Service};
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, ServerStreamSender, TtrpcContext};
use ttrpc::proto::Code;

use crate::container::Runtime;
use crate::error::{Coded, status};
use crate::network::Network;
use crate::port_forward;
use crate::resolver;

/// The state of the agent.
#[derive(Default)]
pub struct Agent {
    /// The containers and what they share.
    pub runtime: Arc<Runtime>,
    /// The network that the host wants.
    pub network: Network,
    started_nanoseconds: u64,
    ready_nanoseconds: AtomicU64,
    watchers: processes::Watchers,
}

impl Agent {
    /// An empty agent, started now.
    pub fn new() -> Arc<Self> {
        Arc::new(Agent { started_nanoseconds: guest::boot_nanoseconds(), ..Agent::default() })
    }

    /// Records that the agent is ready for requests.
    pub fn mark_ready(&self) {
        self.ready_nanoseconds.store(guest::boot_nanoseconds(), Ordering::Relaxed);
    }
}

/// A server of `agent` on `listener`, to be started.
pub fn server(agent: Arc<Agent>, listener: Listener) -> Server {
    let service: Arc<dyn Service + Send + Sync> = Arc::new(Rpc(agent));
    let services: HashMap<_, _> = agent_ttrpc::create_agent(service);
    Server::new().add_listener(listener).register_service(services)
}

/// The guest kernel's setting of the I/O port that reports the reason of the guest's end.
const EXIT_PORT: &str = "/sys/module/pouch_exit/parameters/port";

/// Ends the VM after a Shutdown request: by power-off if the kernel can report it to the VMM, otherwise by a
/// reset, which the VMM treats the same after this request.
pub fn power_off() -> ! {
    let port = std::fs::read_to_string(EXIT_PORT).unwrap_or_default();
    if port.trim().parse::<u16>().is_ok_and(|port| port != 0) {
        end(RebootMode::RB_POWER_OFF)
    }
    reset()
}

/// Resets the VM, which reports to the host that the agent has failed.
pub fn reset() -> ! {
    end(RebootMode::RB_AUTOBOOT)
}

fn end(how: RebootMode) -> ! {
    loop {
        let Err(error) = reboot(how);
        log::error!("cannot end the VM: {error}");
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

/// Runs a request to its end even if its client disconnects, so that no operation is left incomplete. A panic
/// is an error of this request only.
async fn complete<T, E, F>(work: F) -> ttrpc::Result<T>
where
    T: Send + 'static,
    E: Coded + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    match tokio::spawn(work).await {
        Ok(result) => result.map_err(status),
        Err(error) => {
            log::error!("the task of a request panicked: {error}");
            Err(ttrpc::Error::RpcStatus(ttrpc::get_status(
                Code::INTERNAL,
                "the agent's task panicked; see its log",
            )))
        }
    }
}

/// The generated trait on the agent.
struct Rpc(Arc<Agent>);

#[async_trait]
impl Service for Rpc {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<CheckResponse> {
        Ok(guest::check(self.0.started_nanoseconds, self.0.ready_nanoseconds.load(Ordering::Relaxed)))
    }

    async fn setup_sandbox(
        &self,
        _: &TtrpcContext,
        request: SetupSandboxRequest,
    ) -> ttrpc::Result<SetupSandboxResponse> {
        complete(guest::setup(self.0.clone(), request)).await
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        complete(containers::create(self.0.clone(), request)).await
    }

    async fn start_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        complete(containers::start(self.0.clone(), request)).await
    }

    async fn delete_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        complete(containers::delete(self.0.clone(), request)).await
    }

    async fn pause_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        complete(containers::set_paused(self.0.clone(), request, true)).await
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        complete(containers::set_paused(self.0.clone(), request, false)).await
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        complete(containers::update(self.0.clone(), request)).await
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ContainerStatsResponse> {
        complete(containers::stats(self.0.clone(), request)).await
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        complete(processes::list(self.0.clone(), request)).await
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> ttrpc::Result<ExecProcessResponse> {
        complete(processes::exec(self.0.clone(), request)).await
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        complete(processes::signal(self.0.clone(), request)).await
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        // Waiting changes nothing, so it may end with its client.
        processes::wait(&self.0, request).await.map_err(status)
    }

    async fn resize_terminal(
        &self,
        _: &TtrpcContext,
        request: ResizeTerminalRequest,
    ) -> ttrpc::Result<Empty> {
        complete(processes::resize(self.0.clone(), request)).await
    }

    async fn close_stdin(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        complete(processes::close_stdin(self.0.clone(), request)).await
    }

    async fn mount_storage(&self, _: &TtrpcContext, request: MountStorageRequest) -> ttrpc::Result<Empty> {
        complete(guest::mount(self.0.clone(), request)).await
    }

    async fn unmount_storage(
        &self,
        _: &TtrpcContext,
        request: UnmountStorageRequest,
    ) -> ttrpc::Result<Empty> {
        complete(guest::unmount(self.0.clone(), request)).await
    }

    async fn set_network(&self, _: &TtrpcContext, request: SetNetworkRequest) -> ttrpc::Result<Empty> {
        complete(guest::set_network(self.0.clone(), request)).await
    }

    async fn forward_resolver(
        &self,
        _: &TtrpcContext,
        request: ForwardResolverRequest,
    ) -> ttrpc::Result<Empty> {
        let streams = self.0.runtime.streams.clone();
        complete(async move { resolver::forward(streams, request).await.map(|()| Empty::new()) }).await
    }

    async fn connect_port(&self, _: &TtrpcContext, request: ConnectPortRequest) -> ttrpc::Result<Empty> {
        let streams = self.0.runtime.streams.clone();
        complete(async move { port_forward::connect(streams, request).await.map(|()| Empty::new()) }).await
    }

    async fn online_cpus(
        &self,
        _: &TtrpcContext,
        request: OnlineCpusRequest,
    ) -> ttrpc::Result<OnlineCpusResponse> {
        complete(guest::online_cpus(request)).await
    }

    async fn adjust_time(
        &self,
        _: &TtrpcContext,
        request: AdjustTimeRequest,
    ) -> ttrpc::Result<AdjustTimeResponse> {
        let nanoseconds = crate::clock::adjust(request.offset_nanoseconds).map_err(status)?;
        Ok(AdjustTimeResponse { nanoseconds, ..Default::default() })
    }

    async fn add_entropy(&self, _: &TtrpcContext, request: AddEntropyRequest) -> ttrpc::Result<Empty> {
        crate::identity::add_entropy(&request.data).map_err(status)?;
        Ok(Empty::new())
    }

    async fn guest_stats(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<GuestStatsResponse> {
        guest::stats().map_err(status)
    }

    async fn watch_events(
        &self,
        _: &TtrpcContext,
        _: Empty,
        sender: ServerStreamSender<Event>,
    ) -> ttrpc::Result<()> {
        processes::watch(&self.0, &self.0.watchers, sender).await
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        guest::shutdown(&self.0).await
    }
}
