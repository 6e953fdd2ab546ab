//! The layout of the share tree, from which the VMM serves files to its guest.
//!
//! The tree has a directory for each file system of the host, `0`, `1` and so on. The mounts of that file system are
//! below it. The guest shows all of them as one file system, because a program recognises a file that it sees on two
//! mounts by its device and inode number. A directory that is the only mount of its file system may be mounted in place
//! of such a directory. The directory [`CONTAINERS`] has a directory for each container that joins a VM, and this is a
//! tree of the same layout.

/// The directory of the containers that join a VM.
pub const CONTAINERS: &str = "containers";
