//! The mode of a tmpfs without a mode option: that of the directory on which it is mounted, as with runc.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

use super::copyup::open_in_root;

/// Whether a mount is a tmpfs without a mode.
fn modeless(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("tmpfs")
        && !mount.options().iter().flatten().any(|option| option.starts_with("mode="))
}

/// Whether there is anything to do.
pub fn wanted(spec: &Spec) -> bool {
    spec.mounts().iter().flatten().any(modeless)
}

/// Names the modes.
pub fn settle_modes(spec: &mut Spec) {
    let root = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for index in 0..mounts.len() {
        let (before, rest) = mounts.split_at_mut(index);
        let Some(mount) = rest.first_mut().filter(|mount| modeless(mount)) else { continue };
        let Some((base, path)) = place(&root, before, mount.destination()) else { continue };
        match mode(&base, &path) {
            Ok(mode) => mount.options_mut().get_or_insert_default().insert(0, format!("mode={mode:04o}")),
            // A mount point that is made for it, which says nothing of its mode.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {}
            Err(error) => {
                log::warn!("cannot look at the mount point {}: {error}", mount.destination().display())
            }
        }
    }
    spec.set_mounts(Some(mounts));
}

/// Where a mount point is to be found before anything is mounted: a directory, and the path in it. None for one in
/// a file system that is still to be made, where it will be new.
fn place(root: &Path, before: &[Mount], destination: &Path) -> Option<(PathBuf, PathBuf)> {
    let Some(above) = before.iter().rev().find(|mount| destination.starts_with(mount.destination())) else {
        return Some((root.to_owned(), destination.to_owned()));
    };
    let below = destination.strip_prefix(above.destination()).ok()?.to_owned();
    let source = above.source().clone().filter(|source| source.is_absolute())?;
    let bind = above.typ().as_deref() == Some("bind")
        || above.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
    bind.then_some((source, below))
}

fn mode(base: &Path, path: &Path) -> io::Result<u32> {
    let directory = File::from(open_in_root(base, path)?);
    Ok(directory.metadata()?.permissions().mode() & 0o7777)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    #[test]
    fn a_tmpfs_takes_the_mode_of_its_mount_point() {
        let (root, volume) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (directory, mode) in [
            (root.path().join("root"), 0o700),
            (root.path().join("data"), 0o711),
            (volume.path().join("sub"), 0o1750),
        ] {
            fs::create_dir(&directory).unwrap();
            fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut spec: Spec = serde_json::from_value(json!({
            "ociVersion": "1.2.0",
            "root": {"path": root.path()},
            "mounts": [
                {"destination": "/root", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]},
                {"destination": "/data", "type": "bind", "source": volume.path(), "options": ["rbind"]},
                {"destination": "/data/sub", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/root/new", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/missing", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/root", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            ],
        }))
        .unwrap();
        assert!(wanted(&spec));
        settle_modes(&mut spec);
        let options =
            |index: usize| spec.mounts().as_ref().unwrap()[index].options().clone().unwrap_or_default();
        assert_eq!(options(0), ["mode=0700", "size=1m"]);
        assert_eq!(options(2), ["mode=1750"]);
        assert!(options(3).is_empty() && options(4).is_empty());
        assert_eq!(options(5), ["mode=755"]);
    }
}
