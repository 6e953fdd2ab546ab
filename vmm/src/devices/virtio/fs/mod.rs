//! A directory of the host as a virtio file system (section 5.11), served in this process.
//!
//! Only this process has access to guest memory, so the file system cannot be served by another. The guest
//! can reach what is in the mount namespace of the process: see [`crate::jail`].

mod abi;
mod attributes;
mod budget;
mod credentials;
mod directory;
mod files;
mod flights;
mod handles;
mod inodes;
mod locks;
mod message;
mod metadata;
mod mounts;
mod names;
mod pool;
mod server;
mod set_id;
mod tree;
mod xattr;

#[cfg(test)]
mod pool_tests;
#[cfg(test)]
mod server_tests;

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::Duration;

use self::budget::Budget;
use self::pool::Pool;
use self::server::Server;
use super::{VirtQueue, VirtioDevice, id, read_config_bytes};
use crate::jail::confine::SHARE;

/// The queues: one for requests that must not wait, one for all others.
const QUEUE_SIZES: [u16; 2] = [128, 256];
/// Bytes of the tag.
const TAG_LENGTH: usize = 36;
/// The timeout of attributes and names of files that the host can change too.
const ATTRIBUTE_TIMEOUT: Duration = Duration::from_secs(1);

/// How many files a well-behaved guest with so much memory keeps. With 3.3 KiB of host kernel memory
/// each, this is 27 MiB and a twentieth of guest memory. The host grants a container's cgroup that much
/// more (`HOST_OVERHEAD` of the host side).
pub fn files_kept(memory_mib: u32) -> usize {
    8192 + 16 * memory_mib as usize
}

/// The file system, before its device is created.
pub struct ShareRoot(Server);

impl ShareRoot {
    /// Prepares to serve the share to a guest with so much memory. It must be called when the process's limit of open
    /// files is set.
    pub fn new(memory_mib: u32) -> Self {
        ShareRoot(Server::new(PathBuf::from(SHARE), Budget::of_this_process(), files_kept(memory_mib)))
    }
}

/// The file system device.
pub struct Fs {
    config: [u8; TAG_LENGTH + 4],
    first_thread: SyncSender<Vec<VirtQueue>>,
}

impl Fs {
    /// Serves `root` under the name `tag`. `enter` runs first on the device's thread, to confine
    /// it.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn new(root: ShareRoot, tag: &str, enter: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let mut config = [0; TAG_LENGTH + 4];
        let length = tag.len().min(TAG_LENGTH);
        config[..length].copy_from_slice(&tag.as_bytes()[..length]);
        // One queue for requests.
        config[TAG_LENGTH] = 1;
        let (first_thread, queues) = mpsc::sync_channel(1);
        thread::Builder::new().name("fs".to_owned()).spawn(move || {
            enter();
            let Ok(queues) = queues.recv() else { return };
            match Pool::new(root.0, queues) {
                Ok(pool) => pool.run(),
                Err(error) => crate::log_line!("the shared file system could not be started: {error}"),
            }
        })?;
        Ok(Fs { config, first_thread })
    }
}

impl VirtioDevice for Fs {
    fn id(&self) -> u32 {
        id::FS
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, queues: Vec<VirtQueue>, _features: u64) -> io::Result<()> {
        self.first_thread.try_send(queues).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
