//! Startup of the agent, from the kernel's first `exec` to serving requests.
//!
//! The agent is on the critical path of every container start. So it first does what the vsock listeners
//! need. A connection then waits in their backlog while the agent sets up the rest.

mod mounts;
mod system;

use std::time::Duration;

use crate::logger;
use crate::reaper::Reaper;
use crate::service::Agent;
use crate::streams;

/// Runs the agent as PID 1. It does not return while the guest lives.
pub fn main() -> i32 {
    std::panic::set_hook(Box::new(|info| log::error!("a task panicked: {info}")));
    // The kernel's boot counts as PID 1's, so only the difference is the agent's own.
    let begin = system::processor_time();
    mounts::first();
    let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    logger::start(logger::level_of(&command_line));
    system::adopt_pid_1();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .thread_keep_alive(Duration::from_secs(2))
        .thread_stack_size(512 * 1024)
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => fail(&format!("cannot start the event loop: {error}")),
    };
    let error = runtime.block_on(serve(begin));
    fail(&error)
}

/// Listens, sets up the rest, and serves until a fatal error.
async fn serve(begin: Duration) -> String {
    let agent = Agent::new();
    let reaper = match Reaper::new(agent.runtime.clone()) {
        Ok(reaper) => reaper,
        Err(error) => return format!("cannot watch for SIGCHLD: {error}"),
    };
    let (rpc, stream) = match (streams::listen::rpc_listener(), streams::listen::stream_listener()) {
        (Ok(rpc), Ok(stream)) => (rpc, stream),
        (Err(error), _) | (_, Err(error)) => return format!("cannot listen on vsock: {error}"),
    };
    mounts::rest();
    system::prepare();
    agent.mark_ready();
    let mut server = crate::service::server(agent.clone(), rpc);
    if let Err(error) = server.start().await {
        return format!("cannot serve: {error}");
    }
    tokio::spawn(streams::listen::knock());
    log::info!("ready after {:?} of processor time", system::processor_time().saturating_sub(begin));
    tokio::spawn(streams::listen::accept_streams(stream, agent.runtime.streams.clone()));
    tokio::spawn(crate::container::watch_out_of_memory(agent.runtime.clone()));
    // Panics inside are confined to one round of the loop.
    reaper.run().await;
    "the reaper ended".to_owned()
}

/// PID 1 may not return. A reset without a Shutdown request is what the host sees as a crash.
fn fail(reason: &str) -> ! {
    log::error!("{reason}");
    eprintln!("pouch-agent: {reason}");
    crate::service::reset()
}
