//! Creates mount points in a read-only root file system.
//!
//! The guest creates mount points in other root file systems itself. A read-only root is read-only in the
//! share tree, so the host creates missing mount points in it beforehand.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use pathrs::Root;
use pathrs::error::Error;
use pathrs::flags::OpenFlags;

use crate::container::guest_spec::SharedPath;

/// A mount point could not be created.
#[derive(Debug, thiserror::Error)]
pub enum MountPointError {
    /// The root file system cannot be opened.
    #[error("root.path {path} cannot be opened")]
    Root {
        /// The path.
        path: PathBuf,
        /// The kernel's error.
        source: Error,
    },
    /// The kernel refuses.
    #[error("the mount point {path} could not be created in the root file system")]
    Make {
        /// The path in the container.
        path: PathBuf,
        /// The kernel's error.
        source: Error,
    },
}

/// Makes the mount points that are missing in the directory `root`, and the working directory. `spec` is the guest's,
/// `shared` what its bind mounts refer to.
///
/// # Errors
/// [`MountPointError`] names the mount point.
pub fn make(root: &Path, spec: &Spec, shared: &[SharedPath]) -> Result<(), MountPointError> {
    let opened =
        Root::open(root).map_err(|source| MountPointError::Root { path: root.to_owned(), source })?;
    let mut above: Vec<&Path> = Vec::new();
    let mounts = spec.mounts().iter().flatten().map(|mount| (mount.destination().as_path(), Some(mount)));
    let directory = spec.process().iter().map(|process| (process.cwd().as_path(), None));
    for (destination, mount) in mounts.chain(directory) {
        // What is below another mount is not in the root.
        let hidden = above.iter().any(|upper| destination != *upper && destination.starts_with(upper));
        above.push(destination);
        if hidden || opened.resolve(destination).is_ok() {
            continue;
        }
        let of_file = mount.and_then(|mount| mount.source().as_ref()).is_some_and(|source| {
            shared.iter().any(|entry| !entry.directory && source.ends_with(&entry.target))
        });
        make_one(&opened, destination, of_file)
            .map_err(|source| MountPointError::Make { path: destination.to_owned(), source })?;
    }
    Ok(())
}

/// Links in the root are followed inside it only.
fn make_one(root: &Root, path: &Path, file: bool) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let mode = |mode| std::fs::Permissions::from_mode(mode);
    if !file {
        return root.mkdir_all(path, &mode(0o755)).map(drop);
    }
    if let Some(parent) = path.parent() {
        root.mkdir_all(parent, &mode(0o755))?;
    }
    root.create_file(path, OpenFlags::O_WRONLY | OpenFlags::O_CLOEXEC, &mode(0o644)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::MountBuilder;
    use std::os::unix::fs::symlink;

    fn spec(mounts: &[(&str, &str)]) -> Spec {
        let mounts = mounts.iter().map(|(source, destination)| {
            MountBuilder::default().source(*source).destination(*destination).build().unwrap()
        });
        let mut spec = Spec::default();
        spec.set_mounts(Some(mounts.collect()));
        spec
    }

    fn shared(target: &str, directory: bool) -> SharedPath {
        SharedPath {
            source: "/source".into(),
            target: target.into(),
            read_only: false,
            directory,
            recursive: false,
            follows: false,
            idmap: None,
        }
    }

    #[test]
    fn what_is_missing_is_made() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("there")).unwrap();
        let mut spec = spec(&[
            ("tmpfs", "/there"),
            ("tmpfs", "/there/inside"),
            ("/run/share/mounts/2", "/new/folder"),
            ("/run/share/mounts/3", "/etc/file"),
        ]);
        let mut process = oci_spec::runtime::Process::default();
        process.set_cwd("/work/here".into());
        spec.set_process(Some(process));
        make(root.path(), &spec, &[shared("mounts/2", true), shared("mounts/3", false)]).unwrap();
        assert!(root.path().join("work/here").is_dir());
        assert!(root.path().join("new/folder").is_dir());
        assert!(root.path().join("etc/file").is_file());
        assert!(!root.path().join("there/inside").exists(), "it is made in the tmpfs");
    }

    #[test]
    fn a_link_is_no_way_out() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), root.path().join("trap")).unwrap();
        symlink("/real", root.path().join("link")).unwrap();
        std::fs::create_dir(root.path().join("real")).unwrap();
        let result = make(root.path(), &spec(&[("tmpfs", "/trap/made")]), &[]);
        assert!(!outside.path().join("made").exists(), "{result:?}");
        make(root.path(), &spec(&[("tmpfs", "/link/made")]), &[]).unwrap();
        assert!(root.path().join("real/made").is_dir());
    }

    #[test]
    fn what_cannot_be_made_is_named() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        let error = make(root.path(), &spec(&[("tmpfs", "/file/below")]), &[]).unwrap_err();
        assert!(error.to_string().contains("/file/below"), "{error}");
        let error = make(&root.path().join("missing"), &spec(&[]), &[]).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
