//! Messages of the FUSE protocol, version 7.40 (include/uapi/linux/fuse.h of Linux 6.12).

use vm_memory::ByteValued;

/// Defines structures of the protocol with their sizes in bytes.
macro_rules! messages {
    ($($(#[$doc:meta])* $name:ident ($size:literal) { $($(#[$note:meta])* $field:ident: $kind:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, Default)]
            #[allow(dead_code)]
            pub struct $name {
                $($(#[$note])* pub $field: $kind,)*
            }

            const _: () = assert!(size_of::<$name>() == $size);

            // SAFETY: the structure has integers only, and no padding: its size is the sum of theirs, as the
            // protocol lays it out.
            unsafe impl ByteValued for $name {}
        )*
    };
}

messages! {
    /// Before each request.
    InHeader (40) {
        len: u32, opcode: u32, unique: u64, node: u64, uid: u32, gid: u32, pid: u32,
        /// Extensions at the end of the request, in units of 8 bytes.
        extension_units: u16,
        padding: u16,
    }
    /// Before each answer.
    OutHeader (16) { len: u32, error: i32, unique: u64 }
    InitIn (64) {
        major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11],
    }
    InitOut (64) {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_granularity: u32, max_pages: u16, map_alignment: u16, flags2: u32,
        max_stack_depth: u32, unused: [u16; 12],
    }
    Attr (88) {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atime_ns: u32, mtime_ns: u32,
        ctime_ns: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, block_size: u32, flags: u32,
    }
    EntryOut (128) {
        node: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_ns: u32, attr_valid_ns: u32,
        attr: Attr,
    }
    AttrOut (104) { attr_valid: u64, attr_valid_ns: u32, dummy: u32, attr: Attr }
    GetattrIn (16) { flags: u32, dummy: u32, handle: u64 }
    StatxIn (24) { getattr_flags: u32, reserved: u32, handle: u64, flags: u32, mask: u32 }
    StatxTime (16) { seconds: i64, nanoseconds: u32, reserved: i32 }
    Statx (256) {
        mask: u32, block_size: u32, attributes: u64, nlink: u32, uid: u32, gid: u32, mode: u16, spare0: u16,
        ino: u64, size: u64, blocks: u64, attributes_mask: u64, atime: StatxTime, btime: StatxTime,
        ctime: StatxTime, mtime: StatxTime, rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32,
        spare2: [u64; 14],
    }
    StatxOut (288) { attr_valid: u64, attr_valid_ns: u32, flags: u32, spare: [u64; 2], stat: Statx }
    SetattrIn (88) {
        valid: u32, padding: u32, handle: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atime_ns: u32, mtime_ns: u32, ctime_ns: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    MknodIn (16) { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn (8) { mode: u32, umask: u32 }
    RenameIn (8) { new_parent: u64 }
    Rename2In (16) { new_parent: u64, flags: u32, padding: u32 }
    LinkIn (8) { node: u64 }
    OpenIn (8) { flags: u32, open_flags: u32 }
    OpenOut (16) { handle: u64, open_flags: u32, backing_id: i32 }
    CreateIn (16) { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    ReleaseIn (24) { handle: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    FlushIn (24) { handle: u64, unused: u32, padding: u32, lock_owner: u64 }
    ReadIn (40) {
        handle: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    WriteIn (40) {
        handle: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    WriteOut (8) { size: u32, padding: u32 }
    StatfsOut (80) {
        blocks: u64, free_blocks: u64, available_blocks: u64, files: u64, free_files: u64, block_size: u32,
        name_length: u32, fragment_size: u32, padding: u32, spare: [u32; 6],
    }
    FsyncIn (16) { handle: u64, flags: u32, padding: u32 }
    SetxattrIn (16) { size: u32, flags: u32, setxattr_flags: u32, padding: u32 }
    GetxattrIn (8) { size: u32, padding: u32 }
    GetxattrOut (8) { size: u32, padding: u32 }
    FileLock (24) { start: u64, end: u64, lock_type: u32, pid: u32 }
    LockIn (48) { handle: u64, owner: u64, lock: FileLock, flags: u32, padding: u32 }
    InterruptIn (8) { unique: u64 }
    ForgetIn (8) { count: u64 }
    BatchForgetIn (8) { count: u32, dummy: u32 }
    ForgetOne (16) { node: u64, count: u64 }
    FallocateIn (32) { handle: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    LseekIn (24) { handle: u64, offset: u64, whence: u32, padding: u32 }
    LseekOut (8) { offset: u64 }
    CopyFileRangeIn (56) {
        handle: u64, offset: u64, to_node: u64, to_handle: u64, to_offset: u64, length: u64, flags: u64,
    }
    IoctlIn (32) { handle: u64, flags: u32, command: u32, argument: u64, in_size: u32, out_size: u32 }
    IoctlOut (16) { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    /// Before each entry of a directory; the name follows.
    Dirent (24) { ino: u64, offset: u64, name_length: u32, kind: u32 }
    /// Before each extension of a request.
    ExtensionHeader (8) { size: u32, kind: u32 }
    /// The caller's credentials (kernel-config, "fuse: tell the server of the caller's credentials"); the groups
    /// follow, 4 bytes each.
    CallerIn (16) { capabilities: u64, flags: u32, groups: u32 }
}

/// The version of the protocol.
pub const VERSION: (u32, u32) = (7, 40);
/// The node of the root directory.
pub const ROOT: u64 = 1;

/// Operations (`enum fuse_opcode`).
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
}

/// Flags that are negotiated in `FUSE_INIT`.
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    /// `FUSE_FALLOCATE` can collapse and insert ranges: from our guest kernel's patches.
    pub const SHIFT_RANGE: u64 = 1 << 60;
    /// Requests have the caller's groups and capabilities: from our guest kernel's patches.
    pub const CALLER_CREDENTIALS: u64 = 1 << 61;
    /// The guest kernel retries locks and records granted ones: from our guest kernel's
    /// patches.
    pub const LOCK_RETRY: u64 = 1 << 62;
}

/// `FUSE_ATTR_SUBMOUNT`: the directory is the root of another mount.
pub const ATTR_SUBMOUNT: u32 = 1;
/// `FUSE_GETATTR_FH`: the request has a handle.
pub const GETATTR_HANDLE: u32 = 1;
/// `FUSE_FSYNC_FDATASYNC`: contents only.
pub const FSYNC_DATA: u32 = 1;
/// `FUSE_WRITE_CACHE`: not by a process, but by the guest's page cache.
pub const WRITE_CACHE: u32 = 1;
/// `FUSE_WRITE_KILL_SUIDGID`: the writer may not keep set-id bits.
pub const WRITE_KILL_SET_ID: u32 = 1 << 2;
/// `FUSE_OPEN_KILL_SUIDGID`: the same for a file that is truncated.
pub const OPEN_KILL_SET_ID: u32 = 1;
/// `FUSE_LK_FLOCK`: a lock of flock(2), or else of fcntl(2).
pub const LOCK_FLOCK: u32 = 1;
/// The kind of extension that [`CallerIn`](self::CallerIn) is.
pub const EXTENSION_CALLER: u32 = 48;
/// The capabilities in [`CallerIn`](self::CallerIn) count; otherwise the caller is in a user namespace that the
/// host knows nothing of.
pub const CALLER_CAPABILITIES: u32 = 1;

/// What an open file is to the guest (`FOPEN_*`).
pub mod fopen {
    pub const DIRECT_IO: u32 = 1 << 0;
    pub const NOFLUSH: u32 = 1 << 5;
}

/// What `FUSE_SETATTR` changes (`FATTR_*`).
pub mod setattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const HANDLE: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SET_ID: u32 = 1 << 11;
    /// Those that change something by themselves.
    pub const CHANGES: u32 = MODE | UID | GID | SIZE | ATIME | MTIME;
}
