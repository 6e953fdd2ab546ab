//! A FUSE file system that the test serves on the host, and that can stop responding.
//!
//! It has one directory. Each name that begins with `file` is a link to its one file, whose content is `text`. The names
//! `gone` and `stale` are listed, and looking them up fails. It says yes to changes; of these it makes new names only.
//! Numbers are those of include/uapi/linux/fuse.h.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What the kernel asks for.
pub mod op {
    #![allow(missing_docs, reason = "the kernel's names")]
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const INTERRUPT: u32 = 36;
    pub const BATCH_FORGET: u32 = 42;
}

const TEXT: &[u8] = b"text";
/// The nodes: the file, and a directory that is made. The kernel knows the directory itself as 1.
const FILE: u64 = 2;
const MADE: u64 = 3;
/// What is added to a node's number to make its inode number.
const BIG: u64 = 1 << 60;
/// The names in the directory.
const NAMES: [&[u8]; 3] = [b"file", b"gone", b"stale"];

/// The mounted file system. It is unmounted when it is dropped.
pub struct OwnMount {
    path: PathBuf,
    state: Arc<Mutex<State>>,
    /// The kernel's end; closed, the file system is dead.
    device: Option<File>,
}

#[derive(Default)]
struct State {
    /// The operation that gets no answer, and how many requests for it wait.
    hangs: Option<u32>,
    held: usize,
    /// The operation and the user of each request.
    asked: Vec<(u32, u32)>,
    /// New names, with the 0 at their ends, and what they name.
    made: Vec<(Vec<u8>, u64)>,
}

impl OwnMount {
    /// The inode number of the file.
    pub const INODE_NUMBER: u64 = BIG + FILE;

    /// Mounts it at `path`, an empty directory, for processes of this user and group alone.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn new(path: &Path, owner: u32) -> Self {
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id={owner},group_id={owner}", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("own"), path, Some("fuse"), flags, Some(options.as_str())).unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let (server, shared) = (device.try_clone().unwrap(), state.clone());
        thread::spawn(move || serve(server, owner, &shared));
        OwnMount { path: path.to_owned(), state, device: Some(device) }
    }

    /// Lets its connection end: who has it mounted still finds it dead (ENOTCONN).
    ///
    /// # Panics
    /// If it is not there.
    pub fn die(&self) {
        // It is in use, so it is not unmounted, which other namespaces would follow.
        let _held = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&self.path).unwrap();
        let _ = umount2(&self.path, MntFlags::MNT_FORCE);
    }

    /// Answers no request for this operation from now on, unless the kernel interrupts it, and all for others.
    pub fn hang(&self, operation: u32) {
        let mut state = self.state.lock().unwrap();
        (state.hangs, state.held) = (Some(operation), 0);
    }

    /// How many requests wait since it hangs.
    pub fn held(&self) -> usize {
        self.state.lock().unwrap().held
    }

    /// The operation and the user of each request since the last call.
    pub fn asked(&self) -> Vec<(u32, u32)> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }
}

impl Drop for OwnMount {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        self.device = None;
    }
}

/// A small tmpfs of the host with a file `mark`. It is unmounted when it is dropped.
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// Mounts it at `path`, which is made.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn new(path: &Path) -> Self {
        std::fs::create_dir_all(path).unwrap();
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        std::fs::write(path.join("mark"), "").unwrap();
        Tmpfs(path.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A directory of the host that is bound to a second place. It is unmounted when it is dropped.
pub struct BindMount(PathBuf);

impl BindMount {
    /// Binds the directory `source` to the directory `place`.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn new(source: &Path, place: &Path) -> Self {
        mount(Some(source), place, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        BindMount(place.to_owned())
    }
}

impl Drop for BindMount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Integers of a message, one after the other.
fn words<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// `struct fuse_attr` of a node.
fn attributes(node: u64, owner: u32) -> Vec<u8> {
    let (mode, size) = if node == FILE { (0o100_644_u64, TEXT.len() as u64) } else { (0o040_755, 0) };
    let owner = u64::from(owner);
    let mut bytes = words([BIG + node, size, 1, 0, 0, 0, 0]);
    // Nanoseconds of the last time, and the mode; links and user; group and device; block size and flags.
    bytes.extend(words([mode << 32, 1 | owner << 32, owner, 4096]));
    bytes
}

/// All of the directory, as `struct fuse_dirent`.
fn listing() -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, name) in (1_u64..).zip(NAMES) {
        bytes.extend(words([BIG + FILE, index, name.len() as u64 | 8 << 32]));
        bytes.extend(name);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

/// The answer to a request whose body this is; none if it takes none.
fn answer(
    state: &mut State,
    (operation, node): (u32, u64),
    body: &[u8],
    owner: u32,
) -> Option<Result<Vec<u8>, i32>> {
    let offset = || u64::from_le_bytes(body[8..16].try_into().unwrap());
    let entry = |node| Ok([words([node, 0, 0, 0, 0]), attributes(node, owner)].concat());
    Some(match operation {
        op::INIT => {
            // Version, read-ahead and flags; then the largest write.
            let mut bytes: Vec<u8> =
                [7_u32, 31, 0, 0, 0, 4096, 1].iter().flat_map(|w| w.to_le_bytes()).collect();
            bytes.resize(64, 0);
            Ok(bytes)
        }
        op::GETATTR | op::SETATTR => Ok([words([0, 0]), attributes(node, owner)].concat()),
        op::LOOKUP if body.starts_with(b"file") => entry(FILE),
        op::LOOKUP if body == b"stale\0" => Err(libc::ESTALE),
        op::LOOKUP => state
            .made
            .iter()
            .find(|(name, _)| name == body)
            .map_or(Err(libc::ENOENT), |(_, node)| entry(*node)),
        // A mode and a mask, or a node, come before the name.
        op::MKDIR | op::LINK => {
            let node = if operation == op::MKDIR { MADE } else { FILE };
            state.made.push((body[8..].to_owned(), node));
            entry(node)
        }
        op::OPEN | op::OPENDIR => Ok(words([1, 0])),
        op::READ if offset() >= TEXT.len() as u64 => Ok(Vec::new()),
        op::READ => Ok(TEXT.to_vec()),
        op::READDIR if offset() > 0 => Ok(Vec::new()),
        op::READDIR => Ok(listing()),
        op::RELEASE | op::RELEASEDIR | op::FLUSH | op::FSYNC => Ok(Vec::new()),
        op::UNLINK | op::RENAME | op::SETXATTR => Ok(Vec::new()),
        op::FORGET | op::BATCH_FORGET => return None,
        _ => Err(libc::ENOSYS),
    })
}

fn serve(mut device: File, owner: u32, state: &Mutex<State>) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(length) = device.read(&mut buffer) {
        let word = |at: usize| u32::from_le_bytes(buffer[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(buffer[at..at + 8].try_into().unwrap());
        let (operation, mut unique, node, user) = (word(4), long(8), long(16), word(24));
        let body = &buffer[40..length];
        let answer = if operation == op::INTERRUPT {
            unique = long(40);
            Some(Err(libc::EINTR))
        } else {
            let mut state = state.lock().unwrap();
            state.asked.push((operation, user));
            if state.hangs == Some(operation) {
                state.held += 1;
                continue;
            }
            answer(&mut state, (operation, node), body, owner)
        };
        let Some(answer) = answer else { continue };
        let (error, bytes) = answer.map_or_else(|error| (-error, Vec::new()), |bytes| (0, bytes));
        let mut reply = (16 + bytes.len() as u32).to_le_bytes().to_vec();
        reply.extend(error.to_le_bytes());
        reply.extend(unique.to_le_bytes());
        reply.extend(bytes);
        // A request that was interrupted may have been answered, and then the kernel knows it no more.
        if device.write_all(&reply).is_err() && operation != op::INTERRUPT {
            return;
        }
    }
}
