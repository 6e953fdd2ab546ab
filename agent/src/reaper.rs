//! Reaps all processes of the guest and passes on their exit statuses.

use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::container::Runtime;
use crate::process::WaitStatus;

/// Waits for SIGCHLD.
pub struct Reaper {
    runtime: Arc<Runtime>,
    children: Signal,
}

impl Reaper {
    /// Starts to watch.
    pub fn new(runtime: Arc<Runtime>) -> io::Result<Self> {
        Ok(Self { runtime, children: signal(SignalKind::child())? })
    }

    /// Reaps processes, forever.
    pub async fn run(mut self) {
        loop {
            self.reap_all();
            if self.children.recv().await.is_none() {
                return;
            }
        }
    }

    fn reap_all(&self) {
        loop {
            let mut status = 0;
            // SAFETY: waitpid stores one int in a valid reference; every child is ours to reap.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
            if pid <= 0 {
                return;
            }
            self.runtime.ended(pid, WaitStatus(status));
        }
    }
}
