//! Where containers are found: the directories of their states below the root of all states.

use std::path::{Path, PathBuf};
use std::{fs, io};

use super::state::MEMBERS;
use super::{ContainerDir, ContainerId, StateError};

/// The directory of containers that containerd's shim made, by namespace of containerd. No container has this name,
/// because an ID cannot start with a dot.
const OF_CONTAINERD: &str = ".containerd";

/// The root of the states of a namespace of containerd, below the root of all states.
pub fn root_of_containerd(root: &Path, namespace: &str) -> PathBuf {
    root.join(OF_CONTAINERD).join(namespace)
}

/// The directory of a container: the command line's own, or one that containerd's shim made, also in a pod. If there is
/// none, it is where the command line would create it.
///
/// # Errors
/// [`StateError::Io`] if a directory cannot be read.
pub fn find(root: &Path, id: &ContainerId) -> Result<ContainerDir, StateError> {
    let own = ContainerDir::new(root, id);
    if own.exists() {
        return Ok(own);
    }
    for root in namespaces(root)? {
        let alone = ContainerDir::new(&root, id);
        if alone.exists() {
            return Ok(alone);
        }
        let member = list_one(&root)?.iter().map(|pod| pod.of_member(id)).find(ContainerDir::exists);
        if let Some(member) = member {
            return Ok(member);
        }
    }
    Ok(own)
}

/// All containers, by name: those of the command line, and then those of each namespace of containerd. Those of a pod
/// follow its sandbox.
///
/// # Errors
/// [`StateError::Io`] if a directory cannot be read.
pub fn list(root: &Path) -> Result<Vec<ContainerDir>, StateError> {
    let mut found = list_one(root)?;
    for root in namespaces(root)? {
        for dir in list_one(&root)? {
            let members = list_one(&dir.path().join(MEMBERS))?;
            found.push(dir.clone());
            found.extend(members.iter().map(|member| dir.of_member(member.id())));
        }
    }
    Ok(found)
}

/// The roots of the states of containerd's namespaces.
fn namespaces(root: &Path) -> Result<Vec<PathBuf>, StateError> {
    let path = root.join(OF_CONTAINERD);
    let entries = match fs::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| StateError::Io { path, source })?,
    };
    let mut roots: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    roots.sort();
    Ok(roots)
}

fn list_one(root: &Path) -> Result<Vec<ContainerDir>, StateError> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| StateError::Io { path: root.to_owned(), source })?,
    };
    let mut ids: Vec<ContainerId> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    ids.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    Ok(ids.iter().map(|id| ContainerDir::new(root, id)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_of_containerd_are_found_too() {
        let root = tempfile::tempdir().unwrap();
        let id: ContainerId = "a".parse().unwrap();
        assert_eq!(find(root.path(), &id).unwrap().path(), root.path().join("a"), "there is none");
        let theirs = ContainerDir::new(&root_of_containerd(root.path(), "k8s.io"), &id);
        theirs.create().unwrap();
        assert_eq!(find(root.path(), &id).unwrap().path(), theirs.path());
        let own = ContainerDir::new(root.path(), &id);
        own.create().unwrap();
        assert_eq!(find(root.path(), &id).unwrap().path(), own.path());
        let listed = list(root.path()).unwrap();
        let paths: Vec<&Path> = listed.iter().map(ContainerDir::path).collect();
        assert_eq!(paths, [own.path(), theirs.path()]);
        let member = theirs.of_member(&"b".parse().unwrap());
        member.create().unwrap();
        let found = find(root.path(), member.id()).unwrap();
        assert_eq!((found.path(), found.pod()), (member.path(), Some(theirs.path())));
        assert_eq!(found.socket(), theirs.socket());
        assert_eq!(list(root.path()).unwrap().last().unwrap().path(), member.path());
    }
}
