//! The thread of a disk.

use super::request::Disk;
use crate::devices::virtio::VirtQueue;
use crate::devices::virtio::worker::wait_for_kick;

/// Serves the queue until the process ends.
pub fn run(disk: &Disk, mut queue: VirtQueue) {
    loop {
        queue.for_each(|memory, chain| disk.serve(memory, chain));
        if let Err(error) = wait_for_kick(&[&queue]) {
            crate::log_line!("a disk's notifications cannot be waited for: {error}");
            return;
        }
    }
}
