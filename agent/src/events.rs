//! Events of containers, for the host.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use pouch_protocol::agent;
use tokio::sync::broadcast;

use crate::process::{Exit, Process};

/// How many events a slow subscriber may be behind before it loses the oldest.
const BACKLOG: usize = 256;

/// Where events go, and the watches on the containers' memory events.
pub struct Events {
    sender: broadcast::Sender<agent::Event>,
    watches: Option<Inotify>,
    containers: Mutex<HashMap<WatchDescriptor, String>>,
}

impl Default for Events {
    fn default() -> Self {
        let watches = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC);
        if let Err(error) = &watches {
            log::warn!("cannot watch for out-of-memory kills: {error}");
        }
        Self { sender: broadcast::channel(BACKLOG).0, watches: watches.ok(), containers: Mutex::default() }
    }
}

impl Events {
    /// Subscribes to all further events.
    pub fn subscribe(&self) -> broadcast::Receiver<agent::Event> {
        self.sender.subscribe()
    }

    fn send(&self, event: agent::Event) {
        // It is no error if there is no subscriber.
        let _ = self.sender.send(event);
    }

    /// A process has ended.
    pub fn exited(&self, process: &Process, exit: Exit) {
        self.send(agent::Event {
            kind: agent::event::Kind::PROCESS_EXIT.into(),
            container_id: process.container_id.clone(),
            exec_id: process.exec_id.clone(),
            exit_status: exit.status,
            ..Default::default()
        });
    }

    /// The out-of-memory killer hit a container.
    pub fn out_of_memory(&self, container_id: &str) {
        self.send(agent::Event {
            kind: agent::event::Kind::OUT_OF_MEMORY.into(),
            container_id: container_id.to_owned(),
            ..Default::default()
        });
    }

    /// Watches a container's `memory.events`; the watch is removed with the file.
    pub fn watch(&self, container_id: &str, memory_events: &Path) {
        let Some(inotify) = &self.watches else { return };
        match inotify.add_watch(memory_events, AddWatchFlags::IN_MODIFY) {
            Ok(descriptor) => {
                let mut containers = self.containers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                containers.insert(descriptor, container_id.to_owned());
            }
            Err(error) => log::warn!("cannot watch {}: {error}", memory_events.display()),
        }
    }

    /// A descriptor that becomes readable when memory events change, if they can be watched.
    pub fn inotify(&self) -> Option<&Inotify> {
        self.watches.as_ref()
    }

    /// The containers whose memory events have changed.
    pub fn changed(&self) -> Vec<String> {
        let Some(inotify) = &self.watches else { return Vec::new() };
        let mut changed = Vec::new();
        let mut containers = self.containers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        while let Ok(events) = inotify.read_events() {
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    containers.remove(&event.wd);
                } else if let Some(id) = containers.get(&event.wd)
                    && !changed.contains(id)
                {
                    changed.push(id.clone());
                }
            }
        }
        changed
    }
}
