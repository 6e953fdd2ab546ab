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

    /// Watches a container's `memory.events`, until [`Self::forget`].
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

    /// Removes the watch of a container. The kernel does not do so when a cgroup is removed, and keeps its inodes.
    pub fn forget(&self, container_id: &str) {
        let Some(inotify) = &self.watches else { return };
        let mut containers = self.containers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        containers.retain(|descriptor, id| {
            let stays = id != container_id;
            if !stays {
                // It may have gone already.
                let _ = inotify.rm_watch(*descriptor);
            }
            stays
        });
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_container_is_watched_until_it_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        let events = Events::default();
        let write = || [&one, &other].map(|file| fs::write(file, "1").unwrap());
        write();
        events.watch("one", &one);
        events.watch("other", &other);
        write();
        assert_eq!(events.changed(), ["one", "other"]);
        events.forget("one");
        write();
        assert_eq!(events.changed(), ["other"]);
        fs::remove_file(&other).unwrap();
        events.changed();
        assert!(events.containers.lock().unwrap().is_empty());
    }
}
