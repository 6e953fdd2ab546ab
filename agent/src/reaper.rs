//! Reaps every process of the guest that ends, and tells whom it concerns.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::process::{Exit, Process, WaitStatus, now_nanoseconds};
use crate::service::Agent;

/// How long the count of a terminal's output may take after its process has ended, where the host has not
/// connected the stream.
const TERMINAL_SETTLE: Duration = Duration::from_secs(2);

/// Waits for SIGCHLD.
pub struct Reaper {
    agent: Arc<Agent>,
    children: Signal,
}

impl Reaper {
    /// Starts to watch.
    pub fn new(agent: Arc<Agent>) -> io::Result<Self> {
        Ok(Self { agent, children: signal(SignalKind::child())? })
    }

    /// Reaps for ever.
    pub async fn run(mut self) {
        loop {
            reap_all(&self.agent);
            if self.children.recv().await.is_none() {
                return;
            }
        }
    }
}

fn reap_all(agent: &Arc<Agent>) {
    loop {
        let mut status = 0;
        // SAFETY: waitpid stores one int in a valid reference; every child is ours to reap.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
        if pid <= 0 {
            return;
        }
        if let Some(process) = agent.processes.ended(pid, WaitStatus(status)) {
            finish(agent, process, WaitStatus(status));
        }
    }
}

/// Records how a process ended. What stands in its terminal is taken out and counted first, for the kernel
/// does not say how much that is.
pub fn finish(agent: &Arc<Agent>, process: Arc<Process>, status: WaitStatus) {
    let at_nanoseconds = now_nanoseconds();
    process.stdio.process_ended();
    if !process.stdio.is_terminal() {
        return record(agent, &process, status, at_nanoseconds);
    }
    let agent = agent.clone();
    tokio::spawn(async move {
        let _ = tokio::time::timeout(TERMINAL_SETTLE, process.stdio.output_settled()).await;
        record(&agent, &process, status, at_nanoseconds);
    });
}

fn record(agent: &Arc<Agent>, process: &Process, status: WaitStatus, at_nanoseconds: i64) {
    let (status, signal) = status.decode();
    let (stdout_bytes, stderr_bytes) = process.stdio.written();
    let oom_killed = agent.out_of_memory(&process.container_id);
    let exit = Exit { status, signal, oom_killed, at_nanoseconds, stdout_bytes, stderr_bytes };
    process.set_exit(exit);
    agent.events.exited(process, exit);
}
