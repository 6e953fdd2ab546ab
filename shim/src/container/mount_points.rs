//! Creates mount points in a read-only root file system.
//!
//! The guest creates mount points in other root file systems itself. A read-only root is read-only in the
//! share tree, so the host creates missing mount points in it beforehand.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use pathrs::Root;
use pathrs::error::Error;
use pathrs::flags::OpenFlags;

use crate::sandbox::share::SharedPath;

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
/// `shared` what its bind mounts refer to. A tmpfs on one that is made keeps its own mode.
///
/// # Errors
/// [`MountPointError`] names the mount point.
pub fn make(root: &Path, spec: &mut Spec, shared: &[SharedPath]) -> Result<(), MountPointError> {
    let opened =
        Root::open(root).map_err(|source| MountPointError::Root { path: root.to_owned(), source })?;
    let mut above: Vec<PathBuf> = Vec::new();
    let mut make = |destination: &Path, file: bool| {
        // What is below another mount is not in the root.
        let hidden = above.iter().any(|upper| destination != upper && destination.starts_with(upper));
        above.push(destination.to_owned());
        if hidden || opened.resolve(destination).is_ok() {
            return Ok(false);
        }
        make_one(&opened, destination, file)
            .map_err(|source| MountPointError::Make { path: destination.to_owned(), source })?;
        Ok(true)
    };
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let of_file = mount.source().as_ref().is_some_and(|source| {
            shared.iter().any(|entry| !entry.directory && source.ends_with(&entry.target))
        });
        if make(mount.destination(), of_file)? {
            keep_mode(mount);
        }
    }
    if let Some(process) = spec.process() {
        make(process.cwd(), false)?;
    }
    Ok(())
}

/// A tmpfs gets the mode of its mount point, unless the mount point is missing: then it has the kernel's default.
fn keep_mode(mount: &mut Mount) {
    let options = mount.options().iter().flatten();
    if mount.typ().as_deref() == Some("tmpfs") && !options.clone().any(|option| option.starts_with("mode=")) {
        mount.options_mut().get_or_insert_default().insert(0, "mode=1777".to_owned());
    }
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
        SharedPath { directory, ..SharedPath::new("/source".into(), target.into()) }
    }

    #[test]
    fn what_is_missing_is_made() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("there")).unwrap();
        let mut spec = spec(&[
            ("tmpfs", "/there"),
            ("tmpfs", "/there/inside"),
            ("/run/share/0/2", "/new/folder"),
            ("/run/share/0/3", "/etc/file"),
        ]);
        let mut process = oci_spec::runtime::Process::default();
        process.set_cwd("/work/here".into());
        spec.set_process(Some(process));
        make(root.path(), &mut spec, &[shared("0/2", true), shared("0/3", false)]).unwrap();
        assert!(root.path().join("work/here").is_dir());
        assert!(root.path().join("new/folder").is_dir());
        assert!(root.path().join("etc/file").is_file());
        assert!(!root.path().join("there/inside").exists(), "it is made in the tmpfs");
    }

    #[test]
    fn a_tmpfs_on_a_new_mount_point_is_for_all() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("there")).unwrap();
        let mut spec =
            spec(&[("tmpfs", "/there"), ("tmpfs", "/new"), ("tmpfs", "/own"), ("/source", "/bound")]);
        for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
            mount.set_typ(Some(if index == 3 { "bind" } else { "tmpfs" }.to_owned()));
            mount.set_options((index == 2).then(|| vec!["mode=700".to_owned()]));
        }
        make(root.path(), &mut spec, &[]).unwrap();
        let options = spec.mounts().iter().flatten().map(|mount| mount.options().clone().unwrap_or_default());
        let expected = [vec![], vec!["mode=1777"], vec!["mode=700"], vec![]];
        assert_eq!(options.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_link_is_no_way_out() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), root.path().join("trap")).unwrap();
        symlink("/real", root.path().join("link")).unwrap();
        std::fs::create_dir(root.path().join("real")).unwrap();
        let result = make(root.path(), &mut spec(&[("tmpfs", "/trap/made")]), &[]);
        assert!(!outside.path().join("made").exists(), "{result:?}");
        make(root.path(), &mut spec(&[("tmpfs", "/link/made")]), &[]).unwrap();
        assert!(root.path().join("real/made").is_dir());
    }

    #[test]
    fn what_cannot_be_made_is_named() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        let error = make(root.path(), &mut spec(&[("tmpfs", "/file/below")]), &[]).unwrap_err();
        assert!(error.to_string().contains("/file/below"), "{error}");
        let error = make(&root.path().join("missing"), &mut spec(&[]), &[]).unwrap_err();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
