//! The runtime's files on the host, and their replacement by a newer build.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{has_vm, runtime};

/// The parts of pouch-vm as `make install` lays them out.
const PARTS: [&str; 5] = [
    "/usr/local/bin/pouch-vm",
    "/usr/local/bin/containerd-shim-pouch-vm-v2",
    "/usr/local/libexec/pouch-vm/pouch-vmm",
    "/usr/local/share/pouch-vm/vmlinux",
    "/usr/local/share/pouch-vm/guest-root.erofs",
];

/// Puts a new file with the same content in the place of each part of the runtime, as an upgrade does: what runs
/// keeps the old one, which has no name any more.
pub fn replace() {
    let parts = if has_vm() { PARTS.map(PathBuf::from).to_vec() } else { vec![program()] };
    for part in parts {
        let new = part.with_extension("new");
        fs::copy(&part, &new).unwrap_or_else(|error| panic!("{}: {error}", part.display()));
        fs::rename(&new, &part).unwrap();
    }
}

/// Whether the program of a process is no longer the one that is installed.
pub fn is_replaced(pid: i32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap().to_string_lossy().ends_with(" (deleted)")
}

fn program() -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut places = path.split(':').map(|folder| Path::new(folder).join(runtime()));
    places.find(|place| place.is_file()).unwrap_or_else(|| panic!("{} is not installed", runtime()))
}
