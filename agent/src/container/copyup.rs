//! The mount option `tmpcopyup`: a tmpfs that initially contains the image's files at its mount point.
//!
//! Podman and crun define it, and libcontainer does not support it. The agent fills a tmpfs before the
//! container is created, and the container gets a bind mount of it.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};
use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use ttrpc::proto::Code;

use crate::error::Coded;

/// The option.
const OPTION: &str = "tmpcopyup";
/// The limit of the copied data.
const ENTRIES_MAX: usize = 100_000;
const DEPTH_MAX: usize = 64;

/// Why a tmpfs could not be filled.
#[derive(Debug, thiserror::Error)]
#[error("mounts[{index}].options of {}: tmpcopyup: cannot {action}", destination.display())]
pub struct CopyUpError {
    index: usize,
    // Users of an engine know this, not the index.
    destination: PathBuf,
    action: String,
    #[source]
    source: io::Error,
}

impl Coded for CopyUpError {
    fn code(&self) -> Code {
        Code::INTERNAL
    }
}

/// The created tmpfs mounts, unmounted when this is dropped: by then the container has its own mounts, or
/// has failed.
#[derive(Default)]
pub struct CopiedUp(Vec<PathBuf>);

impl Drop for CopiedUp {
    fn drop(&mut self) {
        for directory in &self.0 {
            if let Err(error) = umount2(directory, MntFlags::MNT_DETACH) {
                log::warn!("cannot unmount {}: {error}", directory.display());
            }
        }
    }
}

/// Whether there is anything to do.
pub fn wanted(spec: &Spec) -> bool {
    spec.mounts().iter().flatten().any(asks)
}

fn asks(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("tmpfs") && mount.options().iter().flatten().any(|option| option == OPTION)
}

/// Makes and fills every tmpfs that asks for it below `bundle`, and points its mount there.
pub fn prepare(spec: &mut Spec, bundle: &Path) -> Result<CopiedUp, CopyUpError> {
    let root = spec.root().as_ref().map(|root| root.path().clone()).unwrap_or_default();
    let owner = root_of(spec);
    let mut done = CopiedUp::default();
    for (index, mount) in spec.mounts_mut().iter_mut().flatten().enumerate().filter(|(_, mount)| asks(mount))
    {
        let destination = mount.destination().clone();
        let error = |action: &str| {
            let (action, destination) = (action.to_owned(), destination.clone());
            move |source| CopyUpError { index, destination, action, source }
        };
        let directory = bundle.join(format!("tmpfs-{index}"));
        let (flags, options) = split(mount.options().as_deref().unwrap_or(&[]));
        fs::create_dir(&directory).map_err(error("make its directory"))?;
        mount_tmpfs(&directory, &options)
            .map_err(error(&format!("mount a tmpfs with the options {:?}", options.join(","))))?;
        done.0.push(directory.clone());
        let own_mode = options.iter().any(|option| option.starts_with("mode="));
        fill(&root, mount.destination(), &directory, own_mode, owner)
            .map_err(error("copy the image's files"))?;
        mount.set_typ(Some("bind".to_owned())).set_source(Some(directory));
        mount.set_options(Some(flags));
    }
    Ok(done)
}

/// The UID and GID in the guest of the container's root: the agent mounts the tmpfs outside its user namespace.
fn root_of(spec: &Spec) -> (u32, u32) {
    let linux = spec.linux().as_ref();
    let of = |mappings: Option<&Vec<LinuxIdMapping>>| {
        let root = mappings?.iter().find(|mapping| mapping.container_id() == 0)?;
        Some(root.host_id())
    };
    let (users, groups) = (
        linux.and_then(|linux| linux.uid_mappings().as_ref()),
        linux.and_then(|linux| linux.gid_mappings().as_ref()),
    );
    (of(users).unwrap_or(0), of(groups).unwrap_or(0))
}

/// Flags stay with the container's mount; the rest is the tmpfs's.
fn split(options: &[String]) -> (Vec<String>, Vec<String>) {
    const OF_TMPFS: &[&str] =
        &["size=", "mode=", "nr_inodes=", "nr_blocks=", "uid=", "gid=", "huge=", "mpol="];
    let (tmpfs, mut flags): (Vec<_>, Vec<_>) = options
        .iter()
        .filter(|option| *option != OPTION)
        .cloned()
        .partition(|option| OF_TMPFS.iter().any(|prefix| option.starts_with(prefix)));
    flags.push("rbind".to_owned());
    (flags, tmpfs)
}

fn mount_tmpfs(directory: &Path, options: &[String]) -> io::Result<()> {
    let options = options.join(",");
    Ok(mount(Some("tmpfs"), directory, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?)
}

/// Copies the image's files at `destination`; if there is no such directory, `into` gets this owner.
fn fill(root: &Path, destination: &Path, into: &Path, own_mode: bool, owner: (u32, u32)) -> io::Result<()> {
    let source = match open_in_root(root, destination) {
        Ok(source) => source,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            // The mount point is made for it: it has the mode of a new tmpfs.
            return std::os::unix::fs::chown(into, Some(owner.0), Some(owner.1));
        }
        Err(error) => return Err(error),
    };
    let from = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    let metadata = fs::metadata(&from)?;
    std::os::unix::fs::chown(into, Some(metadata.uid()), Some(metadata.gid()))?;
    if !own_mode {
        fs::set_permissions(into, metadata.permissions())?;
    }
    let mut left = ENTRIES_MAX;
    copy_directory(&from, into, 0, &mut left)
}

/// Opens a directory as the container will see it: links stay inside its root.
pub(super) fn open_in_root(root: &Path, path: &Path) -> io::Result<OwnedFd> {
    let root = fs::File::open(root)?;
    let relative = path.strip_prefix("/").unwrap_or(path);
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    Ok(openat2(&root, relative, how)?)
}

fn copy_directory(from: &Path, into: &Path, depth: usize, left: &mut usize) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if *left == 0 || depth == DEPTH_MAX {
            return Err(io::Error::other("too much to copy"));
        }
        *left -= 1;
        let target = into.join(entry.file_name());
        copy_entry(&entry.path(), &target, depth, left)?;
    }
    Ok(())
}

fn copy_entry(from: &Path, target: &Path, depth: usize, left: &mut usize) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    let kind = metadata.file_type();
    if kind.is_symlink() {
        symlink(fs::read_link(from)?, target)?;
    } else if kind.is_dir() {
        fs::create_dir(target)?;
        copy_directory(from, target, depth + 1, left)?;
    } else if kind.is_file() {
        fs::copy(from, target)?;
    } else {
        let node = if kind.is_fifo() {
            SFlag::S_IFIFO
        } else if kind.is_socket() {
            SFlag::S_IFSOCK
        } else if kind.is_block_device() {
            SFlag::S_IFBLK
        } else {
            SFlag::S_IFCHR
        };
        mknod(target, node, Mode::empty(), metadata.rdev())?;
    }
    lchown(target, Some(metadata.uid()), Some(metadata.gid()))?;
    if !kind.is_symlink() {
        // After chown, which takes the set-user-id bit away.
        fs::set_permissions(target, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_parted() {
        let options = ["rw", "tmpcopyup", "size=5m", "nosuid", "mode=755"].map(str::to_owned);
        let (flags, tmpfs) = split(&options);
        assert_eq!(flags, ["rw", "nosuid", "rbind"]);
        assert_eq!(tmpfs, ["size=5m", "mode=755"]);
    }

    #[test]
    fn an_error_names_the_place_and_the_options() {
        let bundle = tempfile::tempdir().unwrap();
        let options = [OPTION, "size=nonsense"].map(str::to_owned).to_vec();
        let mut mount = Mount::default();
        mount.set_destination("/scratch".into()).set_typ(Some("tmpfs".to_owned()));
        mount.set_options(Some(options));
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![mount]));
        // Without the right to mount it fails as well.
        let text = prepare(&mut spec, bundle.path()).err().unwrap().to_string();
        assert!(text.contains("mounts[0]") && text.contains("/scratch"), "{text}");
        assert!(text.contains("size=nonsense"), "{text}");
    }

    #[test]
    fn a_tree_is_copied_and_links_stay_inside() {
        let (image, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let run = image.path().join("run/deep");
        fs::create_dir_all(&run).unwrap();
        fs::write(run.join("file"), "text").unwrap();
        fs::set_permissions(run.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink("nowhere", image.path().join("run/link")).unwrap();
        // As in most images: /var/run leads to /run, absolutely.
        fs::create_dir(image.path().join("var")).unwrap();
        symlink("/run", image.path().join("var/run")).unwrap();
        fill(image.path(), Path::new("/var/run"), into.path(), false, (0, 0)).unwrap();
        let copied = into.path().join("deep/file");
        assert_eq!(fs::read_to_string(&copied).unwrap(), "text");
        assert_eq!(fs::metadata(&copied).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_link(into.path().join("link")).unwrap(), Path::new("nowhere"));
        assert!(fill(image.path(), Path::new("/none"), into.path(), false, (0, 0)).is_ok());
    }
}
