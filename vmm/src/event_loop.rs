//! The event loop of the VMM's main thread.

use std::sync::{Arc, Mutex};

use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberOps};

/// Something that reacts to descriptors becoming ready.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// The event loop, for everything that does not block.
pub struct EventLoop {
    manager: EventManager<Subscriber>,
}

/// Adds subscribers to an event loop that runs.
pub struct Joiner(RemoteEndpoint<Subscriber>);

impl Joiner {
    /// Adds a subscriber at the loop's next turn.
    pub fn add(&self, subscriber: Subscriber) {
        let added = self.0.fire(move |ops| {
            ops.add_subscriber(subscriber);
        });
        if let Err(error) = added {
            crate::log_line!("no more file descriptors can be added to the event loop: {error}");
        }
    }
}

/// The event loop failed.
#[derive(Debug, thiserror::Error)]
#[error("the event loop failed: {0}")]
pub struct EventLoopError(#[from] event_manager::Error);

impl EventLoop {
    /// Makes an empty loop.
    ///
    /// # Errors
    /// [`EventLoopError`] if the kernel gives no epoll descriptor.
    pub fn new() -> Result<Self, EventLoopError> {
        Ok(EventLoop { manager: EventManager::new()? })
    }

    /// Adds a subscriber, which names its descriptors in its `init`.
    pub fn add(&mut self, subscriber: Subscriber) {
        self.manager.add_subscriber(subscriber);
    }

    /// A handle to add subscribers later, from any thread and from subscribers.
    pub fn joiner(&self) -> Joiner {
        Joiner(self.manager.remote_endpoint())
    }

    /// Waits for events and dispatches them, once.
    ///
    /// # Errors
    /// [`EventLoopError`] if waiting failed other than by a signal.
    pub fn turn(&mut self) -> Result<(), EventLoopError> {
        match self.manager.run() {
            Ok(_) => Ok(()),
            Err(event_manager::Error::Epoll(errno)) if errno.errno() == libc::EINTR => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
