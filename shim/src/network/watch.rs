//! Changes of the namespace while the container runs: `docker network connect` and its like.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::WireError;
use super::netlink::{Changes, NetlinkError};
use crate::errors::chain;
use crate::sandbox::exec::Sandbox;

/// An engine makes several changes in a row; they are looked at together.
const SETTLE: Duration = Duration::from_millis(50);
/// Enough for lists of interfaces and routes, which are on the heap.
const STACK: usize = 256 * 1024;

/// Follows `changes`, in a thread of its own, until the process ends. What cannot be
/// followed is told with `report`.
///
/// # Errors
/// [`WireError`] if there is no thread for it.
pub fn follow(
    mut changes: Changes,
    sandbox: Arc<Sandbox>,
    report: impl Fn(&str) + Send + 'static,
) -> Result<(), WireError> {
    let spawned = thread::Builder::new().name("network".to_owned()).stack_size(STACK).spawn(move || {
        while changes.wait(SETTLE).is_ok() {
            if let Err(error) = sandbox.update_network() {
                report(&format!("a change of the network does not reach the guest: {}", chain(&error)));
            }
        }
    });
    spawned.map(drop).map_err(|error| NetlinkError::other("follow changes of the network", error).into())
}
