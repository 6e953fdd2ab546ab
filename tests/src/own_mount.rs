//! A FUSE file system that the test serves on the host, and that can stop responding.
//!
//! It has one directory with one file, `file`, with the content `text`. Numbers are those of
//! include/uapi/linux/fuse.h.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const RELEASEDIR: u32 = 29;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const TEXT: &[u8] = b"text";

/// The mounted file system. It is unmounted when it is dropped.
pub struct OwnMount {
    path: PathBuf,
    hangs: Arc<AtomicBool>,
    /// The kernel's end; closed, the file system is dead.
    device: Option<File>,
}

impl OwnMount {
    /// Mounts it at `path`, an empty directory, for processes of this user and group alone.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn new(path: &Path, owner: u32) -> Self {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id={owner},group_id={owner}", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("own"), path, Some("fuse"), flags, Some(options.as_str())).unwrap();
        let hangs = Arc::new(AtomicBool::new(false));
        let (server, stop) = (device.try_clone().unwrap(), hangs.clone());
        thread::spawn(move || serve(server, owner, &stop));
        OwnMount { path: path.to_owned(), hangs, device: Some(device) }
    }

    /// Lets its connection end: who has it mounted still, in another namespace, finds it dead (ENOTCONN).
    pub fn die(&self) {
        let _ = umount2(&self.path, MntFlags::MNT_FORCE);
    }

    /// Answers no request to read from now on.
    pub fn hang(&self) {
        self.hangs.store(true, Ordering::SeqCst);
    }
}

impl Drop for OwnMount {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        self.device = None;
    }
}

/// Integers of a message, one after the other.
fn words<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// `struct fuse_attr` of the directory (1) or the file (2).
fn attributes(node: u64, owner: u32) -> Vec<u8> {
    let (mode, size) = if node == 1 { (0o040_755_u64, 0) } else { (0o100_644, TEXT.len() as u64) };
    let owner = u64::from(owner);
    let mut bytes = words([node, size, 1, 0, 0, 0, 0]);
    // Nanoseconds of the last time, and the mode; links and user; group and device; block size and flags.
    bytes.extend(words([mode << 32, 1 | owner << 32, owner, 4096]));
    bytes
}

fn serve(mut device: File, owner: u32, hangs: &AtomicBool) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(length) = device.read(&mut buffer) {
        let word = |at: usize| u32::from_le_bytes(buffer[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(buffer[at..at + 8].try_into().unwrap());
        let (operation, unique, node) = (word(4), long(8), long(16));
        let body = &buffer[40..length];
        let answer = match operation {
            INIT => {
                let mut bytes = Vec::new();
                // Version, read-ahead and flags; then the largest write.
                [7_u32, 31, 0, 0, 0, 4096, 1].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
                bytes.resize(64, 0);
                Ok(bytes)
            }
            GETATTR => Ok([words([0, 0]), attributes(node, owner)].concat()),
            LOOKUP if body.starts_with(b"file\0") => {
                Ok([words([2, 0, 0, 0, 0]), attributes(2, owner)].concat())
            }
            LOOKUP => Err(libc::ENOENT),
            OPEN | OPENDIR => Ok(words([1, 0])),
            READ if hangs.load(Ordering::SeqCst) => continue,
            READ if long(48) >= TEXT.len() as u64 => Ok(Vec::new()),
            READ => Ok(TEXT.to_vec()),
            READDIR if long(48) > 0 => Ok(Vec::new()),
            READDIR => {
                let mut bytes = words([2, 1, 4 | 8 << 32]);
                bytes.extend(b"file\0\0\0\0");
                Ok(bytes)
            }
            RELEASE | RELEASEDIR | FLUSH => Ok(Vec::new()),
            FORGET | BATCH_FORGET | INTERRUPT => continue,
            _ => Err(libc::ENOSYS),
        };
        let (error, bytes) = answer.map_or_else(|error| (-error, Vec::new()), |bytes| (0, bytes));
        let mut reply = (16 + bytes.len() as u32).to_le_bytes().to_vec();
        reply.extend(error.to_le_bytes());
        reply.extend(unique.to_le_bytes());
        reply.extend(bytes);
        if device.write_all(&reply).is_err() {
            return;
        }
    }
}
