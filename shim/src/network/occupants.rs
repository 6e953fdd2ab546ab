//! Finds the processes in a network namespace.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Path, PathBuf};

use super::namespace::identity;
use crate::PROCESS_NAME;

/// A process in the namespace.
#[derive(Debug, PartialEq, Eq)]
pub struct Occupant {
    /// Its number.
    pub pid: u32,
    /// Its name, fit for terminals and logs: it may be a container's own choice.
    pub name: String,
}

/// The first process that has all of its threads in the namespace and does not belong to pouch-vm: neither this one
/// nor one of a container with a VM. Tap devices show whether such a VM uses the network. An engine has only a
/// single thread in the namespace, which created it; Podman's may stay there.
///
/// # Errors
/// If processes cannot be listed.
pub fn find(namespace: &Metadata) -> io::Result<Option<Occupant>> {
    find_below(Path::new("/proc"), namespace)
}

fn find_below(processes: &Path, namespace: &Metadata) -> io::Result<Option<Occupant>> {
    for entry in fs::read_dir(processes)? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        if !is_in(&entry.path(), namespace) || !threads(&entry.path()).all(|thread| is_in(&thread, namespace))
        {
            continue;
        }
        let Ok(name) = fs::read(entry.path().join("comm")) else { continue };
        let name = name.trim_ascii_end();
        if name != PROCESS_NAME.to_bytes() {
            return Ok(Some(Occupant { pid, name: printable(name) }));
        }
    }
    Ok(None)
}

/// Whether a process or thread, given by its directory in /proc, is in the namespace. False if it has ended.
fn is_in(folder: &Path, namespace: &Metadata) -> bool {
    fs::metadata(folder.join("ns/net")).is_ok_and(|own| identity(&own) == identity(namespace))
}

fn threads(process: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(process.join("task")).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn printable(name: &[u8]) -> String {
    name.iter().map(|byte| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A folder as /proc is, with processes (number, namespace, name).
    fn folder(processes: &[(&str, &str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let proc = folder.path().join("proc");
        for namespace in ["ours", "theirs"] {
            fs::write(folder.path().join(namespace), "").unwrap();
        }
        for (pid, namespace, name) in processes {
            // Those of a process that is an engine are its first one and one elsewhere.
            let threads = if *name == "podman" { vec![*namespace, "ours"] } else { vec![*namespace; 2] };
            let folders = [proc.join(pid), proc.join(pid).join("task/1"), proc.join(pid).join("task/2")];
            for (thread, namespace) in folders.iter().zip([*namespace].into_iter().chain(threads)) {
                fs::create_dir_all(thread.join("ns")).unwrap();
                symlink(folder.path().join(namespace), thread.join("ns/net")).unwrap();
            }
            fs::write(proc.join(pid).join("comm"), format!("{name}\n")).unwrap();
        }
        (folder, proc)
    }

    fn occupant(processes: &[(&str, &str, &str)]) -> Option<Occupant> {
        let (folder, proc) = folder(processes);
        find_below(&proc, &fs::metadata(folder.path().join("theirs")).unwrap()).unwrap()
    }

    #[test]
    fn a_process_in_the_namespace_is_found() {
        let found = occupant(&[("1", "ours", "init"), ("77", "theirs", "ev\x1b[2Jil"), ("80", "ours", "x")]);
        assert_eq!(found, Some(Occupant { pid: 77, name: "ev?[2Jil".to_owned() }));
    }

    #[test]
    fn what_is_no_other_process_in_it_does_not_count() {
        let own = std::process::id().to_string();
        let others = [
            // Gone since it was listed.
            ("5", "no-such-namespace", "x"),
            ("6", "ours", "x"),
            ("self", "theirs", "x"),
            ("7", "theirs", "pouch-vm"),
            ("8", "theirs", "podman"),
            (own.as_str(), "theirs", "x"),
        ];
        assert_eq!(occupant(&others), None);
    }

    #[test]
    fn the_kernels_own_list_is_understood() {
        let own = fs::metadata("/proc/self/ns/net").unwrap();
        let found = find(&own).unwrap().unwrap();
        assert_ne!(found.pid, std::process::id());
        assert!(!found.name.is_empty());
    }
}
