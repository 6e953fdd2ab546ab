//! Events for containerd, in the order in which they happen.
//!
//! A thread sends them, so that no request waits for containerd. After an error it connects again, because containerd
//! may be restarted.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim::event::Event;
use containerd_shim::protos::events::task::{TaskExit, TaskOOM};
use containerd_shim::protos::protobuf::MessageDyn;
use containerd_shim::protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim::protos::ttrpc::context::with_duration;
use containerd_shim::publisher::RemotePublisher;

use crate::host::ending::{Ending, Exit};

/// How long containerd may take for an event.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often an event is sent at most, and the pause between two attempts.
const ATTEMPTS: usize = 5;
const PAUSE: Duration = Duration::from_secs(1);

type Boxed = (String, Box<dyn MessageDyn>);

/// Publishes events.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    /// None when no more are sent.
    queue: Mutex<Option<Sender<Boxed>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Events {
    /// Publishes events of this namespace at `address`.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(namespace: &str, address: String) -> io::Result<Self> {
        let (queue, events) = mpsc::channel();
        let namespace = namespace.to_owned();
        let send = move || send_all(&namespace, &address, &events);
        let thread = thread::Builder::new().name("events".to_owned()).spawn(send)?;
        Ok(Events(Arc::new(Inner { queue: Mutex::new(Some(queue)), thread: Mutex::new(Some(thread)) })))
    }

    /// Adds an event to those that are sent.
    pub fn publish(&self, event: impl Event) {
        if let Some(queue) = &*self.0.queue.lock().unwrap_or_else(PoisonError::into_inner) {
            // The thread ends after the queue only.
            let _ = queue.send((event.topic(), Box::new(event)));
        }
    }

    /// Publishes the end of a container's process, and then notes it.
    pub fn publish_end(&self, id: &str, pid: u32, exit: Exit, ending: &Ending) {
        if exit.out_of_memory {
            self.publish(TaskOOM { container_id: id.to_owned(), ..TaskOOM::default() });
        }
        ending.set(exit);
        self.publish(exit_event(id, id, pid, exit));
    }

    /// Waits until all events are sent, or given up.
    pub fn finish(&self) {
        drop(self.0.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.0.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

fn send_all(namespace: &str, address: &str, events: &Receiver<Boxed>) {
    let mut publisher: Option<RemotePublisher> = None;
    while let Ok((topic, event)) = events.recv() {
        for attempt in 1.. {
            let result = match publisher.take() {
                Some(publisher) => Ok(publisher),
                None => RemotePublisher::new(address),
            }
            .and_then(|connected| {
                let context = with_duration(TIMEOUT);
                connected.publish(context, &topic, namespace, event.clone_box())?;
                Ok(connected)
            });
            match result {
                Ok(connected) => {
                    publisher = Some(connected);
                    break;
                }
                Err(error) if attempt >= ATTEMPTS => {
                    log::warn!("the event {topic} could not be published: {error}");
                    break;
                }
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }
}

/// The event of a process's end.
pub fn exit_event(container: &str, id: &str, pid: u32, exit: Exit) -> TaskExit {
    TaskExit {
        container_id: container.to_owned(),
        id: id.to_owned(),
        pid,
        exit_status: exit.status,
        exited_at: Some(timestamp(exit.time)).into(),
        ..TaskExit::default()
    }
}

/// A time as events have it.
pub fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut timestamp = Timestamp::new();
    timestamp.seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    // There are less than 2^30 nanoseconds in a second.
    timestamp.nanos = since.subsec_nanos() as i32;
    timestamp
}
