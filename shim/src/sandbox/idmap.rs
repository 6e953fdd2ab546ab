//! ID-mapped mounts (mount_setattr(2), Linux 5.12).

use std::fmt::Write;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use pouch_vmm_api::mount_attributes::{self, Depth};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// The ID mapping of a mount: an owner with a range's `inside` on disk appears with its `outside`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// Users.
    pub users: Vec<IdRange>,
    /// Groups.
    pub groups: Vec<IdRange>,
    /// Also for the mounts below it.
    pub recursive: bool,
}

/// A range of IDs and what they are mapped to (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first ID in the user namespace.
    pub inside: u32,
    /// The first ID outside it.
    pub outside: u32,
    /// The number of IDs.
    pub count: u32,
}

/// Mounts `source` at `target` with the ids of `map`, with what is mounted below it if `recursive`.
///
/// # Errors
/// What the kernel says: EINVAL if it cannot do so for the file system of `source`.
pub fn mount(source: &Path, target: &Path, recursive: bool, map: &IdMap) -> io::Result<()> {
    let namespace = user_namespace(map)?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let deep = if recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    let tree = open_tree(CWD, source, clone | deep)?;
    let depth = if map.recursive { Depth::All } else { Depth::One };
    mount_attributes::set(&tree, Path::new(""), depth, libc::MOUNT_ATTR_IDMAP, Some(&namespace))?;
    Ok(move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// A user namespace with these ids; it lives as long as its file is open.
fn user_namespace(map: &IdMap) -> io::Result<File> {
    let (mut until, ours) = io::pipe()?;
    // SAFETY: this is a fork, into a new user namespace. The child only waits and ends, which needs nothing that
    // another thread of this process could hold.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD, 0, 0, 0, 0) };
    match pid {
        ..0 => return Err(io::Error::last_os_error()),
        0 => {
            drop(ours);
            let _ = io::Read::read(&mut until, &mut [0]);
            // SAFETY: nothing of this copy of the process is to be cleaned up.
            unsafe { libc::_exit(0) }
        }
        1.. => {}
    }
    let process = format!("/proc/{pid}");
    let namespace = fs::write(format!("{process}/uid_map"), lines(&map.users))
        .and_then(|()| fs::write(format!("{process}/gid_map"), lines(&map.groups)))
        .and_then(|()| File::open(format!("{process}/ns/user")));
    drop(ours);
    // It has nothing to say.
    let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid as i32), None);
    namespace
}

/// The file of user_namespaces(7).
fn lines(map: &[IdRange]) -> String {
    map.iter().fold(String::new(), |mut text, entry| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{} {} {}", entry.inside, entry.outside, entry.count);
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_written_as_the_kernel_reads_them() {
        let entry = |inside, outside, count| IdRange { inside, outside, count };
        assert_eq!(lines(&[entry(0, 100_000, 10), entry(20, 5, 1)]), "0 100000 10\n20 5 1\n");
    }
}
