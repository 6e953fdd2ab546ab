//! The layout of the share tree, from which the VMM serves files to its guest.
//!
//! The tree has a directory for each file system of the host, `0`, `1` and so on. The mounts of that file system are
//! below it. The guest shows all of them as one file system, because a program recognises a file that it sees on two
//! mounts by its device and inode number. A directory that is the only mount of its file system may be mounted in place
//! of such a directory. Mounts with an ID mapping are in the directory [`MAPPED`] of their file system: a file has
//! another owner there.
//!
//! The containers of a pod are in [`CONTAINERS`]. They have file systems in common. So the directories of file systems
//! are in `containers/systems` there, and are named `MAJOR-MINOR`, by the device number. Each container has a directory in
//! each, named by its slot, a number. What only one container has is in `containers/SLOT`, and this is a tree of the
//! layout above.

/// The directory of the containers that join a VM. It is a mount of its own.
pub const CONTAINERS: &str = "containers";

/// The directory of file systems that the containers of a pod have in common, in [`CONTAINERS`].
pub const SYSTEMS: &str = "systems";

/// The directory of mounts with an ID mapping.
pub const MAPPED: &str = "mapped";
