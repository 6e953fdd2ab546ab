//! A directory of the host as a file system (section 5.11), served in this process.
//!
//! Guest memory is private to the process, so the file system cannot be served from outside it.
//! What the guest can reach is what the process's mount namespace shows: see [`crate::jail`].

mod descriptors;
mod known;
mod links;
mod locks;
mod set_id;
mod share;
mod worker;

use std::io;
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::Duration;

use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::passthrough::{CachePolicy, Config, PassthroughFs};

use super::{VirtQueue, VirtioDevice, id, read_config_bytes};
use crate::jail::confine::SHARE;
use share::Share;

/// The queues: one for requests that must not wait, one for all others.
const QUEUE_SIZES: [u16; 2] = [128, 256];
/// Bytes of the tag.
const TAG_LENGTH: usize = 36;
/// How long the guest may believe what it knows of a file that the host may change too.
const VALIDITY: Duration = Duration::from_secs(1);

/// The FUSE server behind the device.
type FuseServer = Server<Share>;

/// How many files a guest with so much memory keeps, if it behaves: with 3.3 KiB of the host kernel's
/// memory each, 27 MiB and a twentieth of the guest's. The host grants a container's cgroup that much
/// more (`HOST_OVERHEAD` of the host side).
pub fn files_kept(memory_mib: u32) -> usize {
    8192 + 16 * memory_mib as usize
}

/// The file system, before the process has confined itself to it.
pub struct ShareRoot(Share);

impl ShareRoot {
    /// Prepares to serve what will be the share to a guest with so much memory. It must be called while all of `/proc` is there:
    /// the server keeps descriptors of `/proc/self/fd` and `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// What opening `/proc/self/fd` says.
    pub fn new(memory_mib: u32) -> io::Result<Self> {
        let config = Config {
            root_dir: SHARE.to_owned(),
            // The root is opened when the guest mounts the file system: after the confinement.
            do_import: true,
            attr_timeout: VALIDITY,
            entry_timeout: VALIDITY,
            cache_policy: CachePolicy::Auto,
            xattr: true,
            // Or the guest asks before each first write to a file whether it has capabilities to lose.
            killpriv_v2: true,
            // Two bind mounts of one file system are two directories.
            enable_mntid: true,
            // Numbers of its own the server would keep for every file that ever was.
            use_host_ino: true,
            ..Config::default()
        };
        Share::new(PassthroughFs::new(config)?, files_kept(memory_mib)).map(ShareRoot)
    }
}

/// The file system device.
pub struct Fs {
    config: [u8; TAG_LENGTH + 4],
    worker: SyncSender<Vec<VirtQueue>>,
}

impl Fs {
    /// Serves `root` under the name `tag`. `enter` runs first on the device's thread, to confine
    /// it.
    ///
    /// # Errors
    /// What starting a thread says.
    pub fn new(root: ShareRoot, tag: &str, enter: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let mut config = [0; TAG_LENGTH + 4];
        let length = tag.len().min(TAG_LENGTH);
        config[..length].copy_from_slice(&tag.as_bytes()[..length]);
        // One queue for requests.
        config[TAG_LENGTH] = 1;
        let server = Server::new(root.0);
        let (worker, queues) = mpsc::sync_channel(1);
        thread::Builder::new().name("fs".to_owned()).spawn(move || {
            enter();
            if let Ok(queues) = queues.recv() {
                worker::run(&server, queues);
            }
        })?;
        Ok(Fs { config, worker })
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
        self.worker.try_send(queues).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
