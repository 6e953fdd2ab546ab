//! The FUSE server: dispatches requests and builds responses.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};
use vm_memory::ByteValued;

use super::abi::{
    self, BatchForgetIn, Dirent, EntryOut, ForgetIn, ForgetOne, InitIn, InitOut, InterruptIn, OpenOut, init,
    op,
};
use super::attributes::{Status, status};
use super::budget::Budget;
use super::flights::{Flight, Flights, Used};
use super::handles::{Handle, Handles};
use super::inodes::{Inode, Inodes};
use super::locks::Locks;
use super::message::{Caller, MAX_WRITE, Reply, Request, object};
use super::{ATTRIBUTE_TIMEOUT, credentials};
use crate::devices::virtio::queue::Chain;
use crate::memory::Memory;

/// The features that the server accepts from a guest kernel. Cached data is invalidated when the host changes a file; the
/// guest checks access control lists; every mount of the host is a mount in the guest.
const WANTED: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::MAX_PAGES
    | init::SUBMOUNTS
    | init::HANDLE_KILLPRIV_V2
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::DIRECT_IO_ALLOW_MMAP
    | init::SHIFT_RANGE
    | init::CALLER_CREDENTIALS
    | init::LOCK_RETRY;
/// Pages that one request moves at most.
const MAX_PAGES: u16 = (MAX_WRITE / 4096) as u16;
/// The guest's limit of background requests, and its congestion threshold.
const BACKGROUND: (u16, u16) = (64, 48);

/// The server of one share.
pub struct Server {
    /// Where the root directory is.
    root: PathBuf,
    pub(super) inodes: Inodes,
    pub(super) handles: Handles,
    pub(super) locks: Locks,
    pub(super) flights: Flights,
    /// Whether the guest kernel retries locks.
    pub(super) locks_are_retried: AtomicBool,
}

/// What follows a request's header.
pub struct Body<'a>(pub &'a [u8]);

impl<'a> Body<'a> {
    /// The next structure.
    ///
    /// # Errors
    /// `EINVAL` if it is not there.
    pub fn take<T: ByteValued + Default>(&mut self) -> io::Result<T> {
        let taken = object(self.0).ok_or_else(invalid)?;
        self.0 = &self.0[size_of::<T>()..];
        Ok(taken)
    }

    /// The next text.
    ///
    /// # Errors
    /// `EINVAL` if it does not end.
    pub fn text(&mut self) -> io::Result<&'a CStr> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| invalid())?;
        self.0 = &self.0[text.to_bytes_with_nul().len()..];
        Ok(text)
    }

    /// The next text, which names an entry of a directory.
    ///
    /// # Errors
    /// `EINVAL` for a name with a slash, `.` or `..`, which a guest kernel never sends.
    pub fn name(&mut self) -> io::Result<&'a CStr> {
        let name = self.text()?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(invalid()),
            bytes if bytes.contains(&b'/') => Err(invalid()),
            _ => Ok(name),
        }
    }

    /// All that is left.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
}

/// The error for a request that no Linux kernel would send.
pub fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

/// The number of errno(3) that an error is to the guest.
pub fn number(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

impl Server {
    /// Serves the directory `root`, which is opened when the guest mounts the file system. The guest holds at most
    /// `descriptors` descriptors, and keeps at most `kept` files that it does not use.
    pub fn new(root: PathBuf, descriptors: u64, kept: usize) -> Self {
        let budget = Arc::new(Budget::new(descriptors));
        // Half is left for files that are in use.
        let bound = kept.min(usize::try_from(descriptors / 2).unwrap_or(kept));
        Server {
            root,
            inodes: Inodes::new(budget.clone(), bound),
            handles: Handles::new(budget),
            locks: Locks::default(),
            flights: Flights::default(),
            locks_are_retried: AtomicBool::new(false),
        }
    }

    /// Serves one request from the queue of this index. Returns the buffers for the driver: usually its own, and those of
    /// a request that it interrupts.
    pub fn serve(&self, memory: &Memory, queue: usize, chain: Chain) -> [Option<Used>; 2] {
        let flight = Flight::new(queue, chain.clone());
        let Some(request) = Request::read(memory, chain) else {
            crate::log_line!("malformed FUSE request");
            return [Some(flight.used(0)), None];
        };
        let unique = request.header.unique;
        match request.header.opcode {
            op::FORGET | op::BATCH_FORGET => {
                self.forget(&request);
                return [Some(flight.used(0)), None];
            }
            op::INTERRUPT => return [Some(flight.used(0)), self.interrupt(memory, &request)],
            _ => {}
        }
        if !self.flights.begin(unique, &flight) {
            return [Some(flight.used(request.reply.error(libc::EINTR))), None];
        }
        let written = match request.header.opcode {
            op::READ => self.read(request, &flight),
            op::WRITE => self.write(request, &flight),
            _ => self.answer_unless_interrupted(request, &flight),
        };
        self.flights.end(unique);
        [written.map(|written| flight.used(written)), None]
    }

    /// Answers a request that is neither a read nor a write; `None` if it was interrupted.
    fn answer_unless_interrupted(&self, request: Request<'_>, flight: &Flight) -> Option<u32> {
        // A lock is granted at once or not at all. If the guest does not get the answer, the lock must be released.
        let at_once = matches!(request.header.opcode, op::SETLK | op::SETLKW | op::INIT | op::DESTROY);
        if at_once && !flight.claim() {
            return None;
        }
        let answer = self.answer(&request);
        if !at_once && !flight.claim() {
            if let Ok(bytes) = answer {
                self.take_back(request.header.opcode, request.header.node, &bytes);
            }
            return None;
        }
        Some(match answer {
            Ok(bytes) => request.reply.parts(&[&bytes]),
            Err(error) => request.reply.error(number(&error)),
        })
    }

    /// Interrupts the request that another one names, because its process was killed.
    fn interrupt(&self, memory: &Memory, request: &Request<'_>) -> Option<Used> {
        let InterruptIn { unique } = Body(&request.body).take().ok()?;
        let flight = self.flights.interrupted(unique)?;
        if !flight.claim() {
            return None;
        }
        let written = Reply::of_chain(memory, flight.chain.clone(), unique)?.error(libc::EINTR);
        Some(flight.used(written))
    }

    /// Undoes the lookups of an answer that the guest does not get.
    pub(super) fn take_back(&self, operation: u32, node: u64, answer: &[u8]) {
        let mut answer = Body(answer);
        match operation {
            op::LOOKUP | op::SYMLINK | op::MKNOD | op::MKDIR | op::LINK => {
                if let Ok(EntryOut { node, .. }) = answer.take() {
                    self.forget_one(node, 1);
                }
            }
            op::CREATE | op::TMPFILE => {
                if let (Ok(EntryOut { node, .. }), Ok(OpenOut { handle, .. })) =
                    (answer.take(), answer.take())
                {
                    self.handles.remove(node, handle);
                    self.forget_one(node, 1);
                }
            }
            op::OPEN | op::OPENDIR => {
                if let Ok(OpenOut { handle, .. }) = answer.take() {
                    self.handles.remove(node, handle);
                }
            }
            op::READDIRPLUS => {
                while let Ok(EntryOut { node, .. }) = answer.take() {
                    self.forget_one(node, 1);
                    let Ok(Dirent { name_length, .. }) = answer.take() else { return };
                    let length = (name_length as usize).next_multiple_of(8);
                    answer = Body(answer.rest().get(length..).unwrap_or_default());
                }
            }
            _ => {}
        }
    }

    /// The answer to a request that is neither a read nor a write.
    fn answer(&self, request: &Request<'_>) -> io::Result<Vec<u8>> {
        let node = request.header.node;
        let caller = &request.caller;
        let mut body = Body(&request.body);
        let none = Vec::new;
        match request.header.opcode {
            op::INIT => self.init(&mut body),
            op::DESTROY => {
                self.destroy();
                Ok(none())
            }
            op::LOOKUP => self.lookup(caller, node, body.name()?),
            op::SYMLINK => self.symlink(caller, node, body),
            op::MKNOD => self.mknod(caller, node, body),
            op::MKDIR => self.mkdir(caller, node, body),
            op::UNLINK => self.unlink(caller, node, body.name()?, false).map(|()| none()),
            op::RMDIR => self.unlink(caller, node, body.name()?, true).map(|()| none()),
            op::RENAME | op::RENAME2 => {
                self.rename(caller, node, body, request.header.opcode).map(|()| none())
            }
            op::LINK => self.link(caller, node, body),
            op::CREATE => self.create(caller, node, body),
            op::TMPFILE => self.tmpfile(caller, node, body),
            op::READLINK => self.readlink(caller, node),
            op::GETATTR => self.getattr(caller, node, body),
            op::STATX => self.statx(caller, node, body),
            op::SETATTR => self.setattr(caller, node, body),
            op::STATFS => self.statfs(caller, node),
            op::SYNCFS => self.syncfs(caller, node).map(|()| none()),
            op::SETXATTR => self.setxattr(caller, node, body).map(|()| none()),
            op::GETXATTR => self.getxattr(caller, node, body),
            op::LISTXATTR => self.listxattr(caller, node, body),
            op::REMOVEXATTR => self.removexattr(caller, node, body).map(|()| none()),
            op::OPEN => self.open(caller, node, body),
            op::OPENDIR => self.opendir(caller, node, body),
            op::READDIR => self.readdir(request, body, false),
            op::READDIRPLUS => self.readdir(request, body, true),
            op::RELEASE | op::RELEASEDIR => self.release(node, body).map(|()| none()),
            op::FLUSH => self.flush(caller, node, body).map(|()| none()),
            op::FSYNC | op::FSYNCDIR => self.fsync(caller, node, body).map(|()| none()),
            op::FALLOCATE => self.fallocate(caller, node, body).map(|()| none()),
            op::LSEEK => self.lseek(caller, node, body),
            op::COPY_FILE_RANGE => self.copy_file_range(caller, node, body),
            op::IOCTL => self.ioctl(caller, node, body),
            op::GETLK => self.getlk(caller, node, body),
            // The guest kernel retries, so this does not wait for the lock.
            op::SETLK | op::SETLKW => self.setlk(caller, node, body).map(|()| none()),
            _ => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
        }
    }

    fn init(&self, body: &mut Body<'_>) -> io::Result<Vec<u8>> {
        let offer: InitIn = body.take()?;
        if offer.major != abi::VERSION.0 {
            return Err(io::Error::from_raw_os_error(libc::EPROTO));
        }
        let offered = u64::from(offer.flags) | u64::from(offer.flags2) << 32;
        let mut taken = offered & WANTED;
        let retried = taken & init::LOCK_RETRY != 0;
        if retried {
            taken |= offered & (init::POSIX_LOCKS | init::FLOCK_LOCKS);
        }
        self.destroy();
        self.locks_are_retried.store(retried, Ordering::Relaxed);
        credentials::assume_own()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, &self.root, flags, Mode::empty())?;
        let status = status(&root)?;
        self.inodes.set_root(root, &status)?;
        let (max_background, congestion_threshold) = BACKGROUND;
        let answer = InitOut {
            major: abi::VERSION.0,
            minor: abi::VERSION.1,
            max_readahead: offer.max_readahead,
            flags: taken as u32,
            flags2: (taken >> 32) as u32,
            max_background,
            congestion_threshold,
            max_write: MAX_WRITE as u32,
            time_granularity: 1,
            max_pages: MAX_PAGES,
            ..InitOut::default()
        };
        Ok(answer.as_slice().to_vec())
    }

    /// Drops the state of a guest that unmounts or mounts again.
    fn destroy(&self) {
        self.flights.clear_early();
        self.locks.clear();
        self.handles.clear();
        self.inodes.clear();
    }

    fn forget(&self, request: &Request<'_>) {
        let mut body = Body(&request.body);
        if request.header.opcode == op::FORGET {
            if let Ok(ForgetIn { count }) = body.take() {
                self.forget_one(request.header.node, count);
            }
            return;
        }
        let Ok(BatchForgetIn { count, .. }) = body.take() else { return };
        for _ in 0..count {
            let Ok(ForgetOne { node, count }) = body.take() else { return };
            self.forget_one(node, count);
        }
    }

    fn forget_one(&self, node: u64, count: u64) {
        // The guest may know the file by another number too, from another mount.
        if let Some(file) = self.inodes.forget(node, count)
            && self.locks.have(file)
            && !self.inodes.know(file)
        {
            self.locks.forget(file);
        }
    }

    /// The file `node`, for a request of `caller`, whose identity this thread then has.
    ///
    /// # Errors
    /// `ESTALE` if it is not in the inode table; the error of changing the identity.
    pub(super) fn inode_for(&self, caller: &Caller, node: u64) -> io::Result<Arc<Inode>> {
        credentials::assume(caller)?;
        self.inodes.get(node)
    }

    /// The open file `handle` of `node`, for a request of `caller`, whose identity this thread then has. A file system
    /// may account what is written to it, and keep space for root.
    ///
    /// # Errors
    /// `EBADF` if it is not open; the error of changing the identity.
    pub(super) fn handle_for(&self, caller: &Caller, node: u64, handle: u64) -> io::Result<Arc<Handle>> {
        credentials::assume(caller)?;
        self.handles.get(node, handle)
    }

    /// Adds the file `name` of the directory `parent` to the inode table, for an answer.
    ///
    /// # Errors
    /// `ENFILE` if no descriptor is left.
    pub(super) fn entry(
        &self,
        parent: &Inode,
        name: &CStr,
        file: OwnedFd,
        status: &Status,
    ) -> io::Result<(EntryOut, Arc<Inode>)> {
        let (inode, timeout) = self.inodes.tell(parent, name, file, status)?;
        Ok((status.entry_out(parent, &inode, timeout, ATTRIBUTE_TIMEOUT), inode))
    }
}

/// A negative entry, with its timeout.
pub fn no_entry(timeout: Duration) -> EntryOut {
    EntryOut { entry_valid: timeout.as_secs(), entry_valid_ns: timeout.subsec_nanos(), ..EntryOut::default() }
}
