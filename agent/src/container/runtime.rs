//! The data of a container, and the states of its processes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;

use super::Containers;
use crate::disks::Disks;
use crate::events::Events;
use crate::pause::Pause;
use crate::process::{Exit, Process, ProcessTable, WaitStatus, now_nanoseconds};
use crate::settings::InterfaceSettings;
use crate::storage::Storages;
use crate::streams::StreamTable;

/// How long the count of a terminal's output may take after its process has ended, where the host has not
/// connected the stream.
const TERMINAL_SETTLE: Duration = Duration::from_secs(2);

/// The containers of the guest, and what they share.
#[derive(Default)]
pub struct Runtime {
    /// The containers.
    pub containers: Containers,
    /// Their processes.
    pub processes: ProcessTable,
    /// The streams that wait for a connection.
    pub streams: StreamTable,
    /// What has been mounted for the host.
    pub storages: Storages,
    /// The disks that containers use as devices.
    pub disks: Disks,
    /// The subscribers of events.
    pub events: Events,
    /// Settings of specifications that wait for their interface.
    pub interface_settings: InterfaceSettings,
    /// The first process of the PID namespace that containers share, once there is one.
    pub pause: tokio::sync::Mutex<Option<Arc<Pause>>>,
}

impl Runtime {
    /// Adds a process to the table; one that has ended already gets its end recorded.
    pub fn adopt(self: &Arc<Self>, process: Arc<Process>) {
        if let Some(ended) = self.processes.add(process.clone()) {
            self.finish(process, ended);
        }
    }

    /// Records how a child of the agent ended, if it is a container's process.
    pub fn ended(self: &Arc<Self>, pid: i32, status: WaitStatus) {
        if let Some(process) = self.processes.ended(pid, status) {
            self.finish(process, status);
        }
    }

    /// Records the end of a process. The remaining output in its terminal is read and counted first, because the kernel
    /// does not report its size.
    fn finish(self: &Arc<Self>, process: Arc<Process>, status: WaitStatus) {
        let at_nanoseconds = now_nanoseconds();
        self.end_others(&process);
        process.stdio.process_ended();
        if !process.stdio.is_terminal() {
            return self.record(&process, status, at_nanoseconds);
        }
        let runtime = self.clone();
        tokio::spawn(async move {
            let _ = tokio::time::timeout(TERMINAL_SETTLE, process.stdio.output_settled()).await;
            runtime.record(&process, status, at_nanoseconds);
        });
    }

    /// Kills the rest of a container's processes if its first process has ended. In a PID namespace of its own the
    /// kernel has done so.
    fn end_others(&self, process: &Process) {
        let Ok(container) = self.containers.get(&process.container_id) else { return };
        if container.shares_pids
            && process.exec_id.is_empty()
            && let Err(error) = container.cgroup.kill()
        {
            log::error!("processes of container {} remain: {}", container.id, pouch_errors::chain(&error));
        }
    }

    fn record(&self, process: &Process, status: WaitStatus, at_nanoseconds: i64) {
        let (status, signal) = status.decode();
        let (stdout_bytes, stderr_bytes) = process.stdio.written();
        let oom_killed = self.out_of_memory(&process.container_id);
        let exit = Exit { status, signal, oom_killed, at_nanoseconds, stdout_bytes, stderr_bytes };
        process.set_exit(exit);
        self.events.exited(process, exit);
    }

    /// Checks whether the out-of-memory killer killed a process of a container, sends events, and returns whether it
    /// ever did.
    pub fn out_of_memory(&self, container_id: &str) -> bool {
        let Ok(container) = self.containers.get(container_id) else { return false };
        let kills = container.cgroup.oom_kills();
        let mut told = container.oom_kills.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if kills > *told {
            *told = kills;
            self.events.out_of_memory(container_id);
        }
        *told > 0
    }
}

/// Reports out-of-memory kills, forever.
pub async fn watch_out_of_memory(runtime: Arc<Runtime>) {
    let Some(inotify) = runtime.events.inotify() else { return };
    let duplicate = || -> io::Result<OwnedFd> { inotify.as_fd().try_clone_to_owned() };
    let Ok(descriptor) = duplicate() else { return };
    // SAFETY: the descriptor is owned and stays the same until the AsyncFd is dropped.
    let Ok(readiness) = (unsafe { AsyncFd::register(descriptor) }) else { return };
    loop {
        let Ok(mut ready) = readiness.readable().await else { return };
        ready.clear_ready();
        for id in runtime.events.changed() {
            runtime.out_of_memory(&id);
        }
    }
}
