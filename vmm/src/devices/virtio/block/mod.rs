//! Disks (section 5.2). Each is an image file or block device and has its own thread, so that a slow disk
//! delays nothing else.

mod request;
mod worker;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::thread;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::{VirtQueue, VirtioDevice, id, read_config_bytes};
use request::Disk;
use worker::Handle;
pub use worker::Worker;

const QUEUE_SIZES: [u16; 1] = [256];
/// Buffers in one request: all of a queue but header and status.
const SEG_MAX: u32 = 254;
/// The sector size of virtio-blk, in bytes.
const SECTOR: u64 = 512;
/// Sectors in one discard request.
const MAX_DISCARD_SECTORS: u32 = 1 << 22;
/// The granularity in which space is given back, in sectors (4 KiB).
const DISCARD_ALIGNMENT: u32 = 8;

/// A disk.
pub struct Block {
    config: [u8; 60],
    read_only: bool,
    worker: Handle,
}

/// A disk could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// Its size could not be determined.
    #[error("the size of disk {serial:?} could not be determined")]
    Size {
        /// The disk's serial.
        serial: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// Its thread could not be started.
    #[error("the thread of disk {serial:?} could not be started")]
    Thread {
        /// The disk's serial.
        serial: String,
        /// The kernel's error.
        source: io::Error,
    },
}

impl Block {
    /// A disk with the content of `file`. `enter` runs first on the disk's thread, to confine it.
    ///
    /// # Errors
    /// [`BlockError`] if the file cannot serve as a disk.
    pub fn new(
        mut file: File,
        serial: &str,
        read_only: bool,
        enter: impl FnOnce() + Send + 'static,
    ) -> Result<Self, BlockError> {
        let error = |source| BlockError::Size { serial: serial.to_owned(), source };
        let size = file.seek(SeekFrom::End(0)).map_err(error)?;
        let (block, worker) = Block::without_thread(file, size, serial, read_only);
        thread::Builder::new()
            .name(thread_name(serial))
            .spawn(move || {
                enter();
                worker.run();
            })
            .map_err(|source| BlockError::Thread { serial: serial.to_owned(), source })?;
        Ok(block)
    }

    /// A disk with the first `size` bytes of `file`, and what a thread must do for it.
    pub fn without_thread(file: File, size: u64, serial: &str, read_only: bool) -> (Self, Worker) {
        let sectors = size / SECTOR;
        let (worker, handle) = Worker::new(Disk::new(file, sectors, serial, read_only));
        (Block { config: config_space(sectors), read_only, worker: handle }, worker)
    }
}

/// What the thread of a disk is called.
pub fn thread_name(serial: &str) -> String {
    format!("blk-{serial}")
}

/// `struct virtio_blk_config` (section 5.2.4).
fn config_space(sectors: u64) -> [u8; 60] {
    let mut config = [0; 60];
    let mut put = |offset: usize, bytes: &[u8]| config[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    put(20, &(SECTOR as u32).to_le_bytes());
    put(36, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(40, &1u32.to_le_bytes()); // segments in a discard
    put(44, &DISCARD_ALIGNMENT.to_le_bytes());
    put(48, &MAX_DISCARD_SECTORS.to_le_bytes());
    put(52, &1u32.to_le_bytes()); // segments in a write of zeros
    put(56, &[1]); // a write of zeros may give the space back
    config
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        id::BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | 1 << VIRTIO_BLK_F_FLUSH;
        if self.read_only {
            common | 1 << VIRTIO_BLK_F_RO
        } else {
            common | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, queues: Vec<VirtQueue>, _features: u64) -> io::Result<()> {
        let queue = queues.into_iter().next().ok_or(io::ErrorKind::InvalidInput)?;
        self.worker.start(queue)
    }

    fn reset(&mut self) -> bool {
        self.worker.take_back()
    }
}
