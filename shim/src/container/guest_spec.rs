//! Translates a container's specification for the guest.
//!
//! Parts that the host handles are removed, and paths of the host become paths of the guest. What neither
//! side supports is an error that names the field.

use std::collections::HashMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use oci_spec::runtime::{Hooks, LinuxIdMapping, LinuxNamespace, LinuxNamespaceType, Mount, Root, Spec};
use pouch_protocol::{GUEST_RUN_DIR, SHARE_MOUNT_POINT};
use pouch_vmm_api::share::MAPPED;

use super::file_systems::FileSystems;
use super::pod_spec::Neighbors;
use super::{Bundle, devices, hooks, limits, overlay, pod_spec};
use crate::sandbox::disks::HostDisk;
use crate::sandbox::idmap::{IdMap, IdRange};
use crate::sandbox::share::{ROOTFS, SharedPath};
use crate::sandbox::{self, PidNamespace, PodSetup};

/// Bytes of the longest specification that the agent takes (`SPEC_MAX` in `agent/src/container/spec/mod.rs`).
const MAX_DOCUMENT: usize = 2 << 20;

/// The place of a container in the VM of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of its directories in the share tree.
    pub slot: usize,
    /// The pod with which it shares network, IPC and UTS namespaces and `/dev/shm`.
    pub pod: Neighbors,
}

/// The path in the guest of what is at `target` of the share tree.
pub fn guest_path(target: &Path) -> PathBuf {
    Path::new(SHARE_MOUNT_POINT).join(target)
}

/// How the guest gets the root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootSource {
    /// A directory, through the share tree.
    Directory,
    /// An image file or a block device, as a disk.
    Disk {
        /// The file.
        path: PathBuf,
        /// What kind of file system is on it.
        filesystem: &'static str,
        /// Without writing.
        read_only: bool,
    },
}

/// A specification for the guest, and what the host must provide for it.
#[derive(Debug)]
pub struct GuestSpec {
    /// The specification, in the guest's terms.
    pub spec: Spec,
    /// What must be in the share tree.
    pub shared: Vec<SharedPath>,
    /// Where the root file system is.
    pub root: RootSource,
    /// The block devices of the host that it uses.
    pub devices: Vec<HostDisk>,
    /// The network namespace that the container is to be in; none for a new one.
    pub network_namespace: Option<PathBuf>,
    /// What the containers of a pod share, if this is its sandbox.
    pub pod: Option<PodSetup>,
    /// Its PID namespace.
    pub pids: PidNamespace,
    /// Warnings for the user: parts that have no effect.
    pub warnings: Vec<String>,
}

/// A specification that is not supported in a VM.
#[derive(Debug, thiserror::Error)]
pub enum TranslateError {
    /// A field asks for something that a VM does not support.
    #[error("{field}: {problem}")]
    Unsupported {
        /// The field.
        field: String,
        /// The problem, and what to do.
        problem: String,
    },
    /// A source on the host cannot be used.
    #[error("{field} {path} cannot be used")]
    Source {
        /// The field.
        field: String,
        /// The path.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The agent would refuse it.
    #[error(
        "the specification has {0} bytes as the guest gets it, but may have {MAX_DOCUMENT}; shorten the longest of \
         its lists, such as process.env, mounts or linux.seccomp.syscalls"
    )]
    TooLong(usize),
    /// It is not JSON.
    #[error("the specification cannot be written for the guest")]
    Serialize(#[source] serde_json::Error),
}

impl GuestSpec {
    /// The specification as the agent gets it.
    ///
    /// # Errors
    /// [`TranslateError`] if it is longer than the agent takes.
    pub fn document(&self) -> Result<Vec<u8>, TranslateError> {
        let document = serde_json::to_vec(&self.spec).map_err(TranslateError::Serialize)?;
        if document.len() > MAX_DOCUMENT {
            Err(TranslateError::TooLong(document.len()))
        } else {
            Ok(document)
        }
    }
}

pub(super) fn unsupported(field: impl Into<String>, problem: impl Into<String>) -> TranslateError {
    TranslateError::Unsupported { field: field.into(), problem: problem.into() }
}

/// Translates the bundle's specification for a container at `place` of a pod, or for the only container of a VM.
///
/// # Errors
/// [`TranslateError`] names the field.
pub fn translate(bundle: &Bundle, place: Option<&Place>) -> Result<GuestSpec, TranslateError> {
    let mut spec = bundle.spec.clone();
    let mut warnings = bundle.warnings.clone();
    if let Some((field, problem)) = spec.hooks().as_ref().and_then(hooks::check) {
        return Err(unsupported(field, problem));
    }
    // The others are run on the host.
    let in_container = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().clone());
    spec.set_hooks(in_container.map(|list| {
        let mut hooks = Hooks::default();
        hooks.set_start_container(Some(list));
        hooks
    }));
    let devices = devices::of_host(&spec)?;
    let (root, device) = root_source(bundle)?;
    let mut shared = Vec::new();
    let mut systems = FileSystems::of(place.map(|place| place.slot));
    let guest_root = match &root {
        RootSource::Directory => {
            // As under runc, the mount table of the container shows the root of the file system where it can.
            let is_alone =
                !spec.mounts().iter().flatten().any(|mount| is_bind_of(&bundle.path, mount, device));
            let directory = if is_alone { systems.own_directory() } else { systems.directory(device) };
            let target = directory.join(ROOTFS);
            let guest_root = guest_path(&target);
            shared.push(SharedPath {
                read_only: bundle.root().readonly().unwrap_or(false),
                directory: true,
                recursive: true,
                ..SharedPath::new(bundle.root_path(), target)
            });
            guest_root
        }
        RootSource::Disk { .. } => Path::new(GUEST_RUN_DIR).join(ROOTFS),
    };
    let mut new_root: Root = bundle.root();
    new_root.set_path(guest_root);
    spec.set_root(Some(new_root));
    let own_ids = own_ids(&spec);
    if let Some(mounts) = spec.mounts_mut() {
        for (index, mount) in mounts.iter_mut().enumerate() {
            // A relative destination is old, and means one below the root (config.md, "Mounts").
            let destination = Path::new("/").join(mount.destination());
            mount.set_destination(destination);
            if is_bind(mount) {
                shared.extend(bind_source(&bundle.path, index, mount, &own_ids, &mut systems)?);
            } else if mount.typ().as_deref() == Some("overlay") {
                shared.push(overlay::redirect(index, mount, &mut systems)?);
            }
        }
    }
    if let Some(process) = spec.process_mut() {
        let mut limits = process.rlimits().clone().unwrap_or_default();
        limits::inherit(&mut limits);
        process.set_rlimits(Some(limits));
    }
    if let Some(process) = spec.process_mut()
        && process.apparmor_profile().is_some()
    {
        process.set_apparmor_profile(None);
        warnings.push("process.apparmorProfile has no effect: the VM confines the container".to_owned());
    }
    if let Some(process) = spec.process_mut()
        && process.selinux_label().is_some()
    {
        process.set_selinux_label(None);
        warnings.push("process.selinuxLabel has no effect: the VM confines the container".to_owned());
    }
    if spec.linux().as_ref().is_some_and(|linux| linux.mount_label().is_some()) {
        warnings.push("linux.mountLabel has no effect: the VM confines the container".to_owned());
    }
    let (network_namespace, pids) = match place {
        Some(place) => (None, pod_spec::translate_linux(&mut spec, &place.pod)?),
        None => (translate_linux(&mut spec)?, PidNamespace::Own),
    };
    Ok(GuestSpec { spec, shared, root, devices, network_namespace, pod: None, pids, warnings })
}

/// The linux section; returns the network namespace to be in.
pub(super) fn translate_linux(spec: &mut Spec) -> Result<Option<PathBuf>, TranslateError> {
    let Some(linux) = spec.linux_mut() else { return Ok(None) };
    let namespaces = linux.namespaces().clone().unwrap_or_default();
    let mut network = None;
    let mut kept = Vec::new();
    for namespace in namespaces {
        let kind = namespace.typ();
        if kind == LinuxNamespaceType::Network {
            if namespace.path().as_ref().is_some_and(|path| !path.is_absolute()) {
                return Err(unsupported("linux.namespaces network", "its path must be absolute"));
            }
            network = Some(namespace.path().clone());
        } else if namespace.path().is_some() {
            return Err(unsupported(
                format!("linux.namespaces {kind}"),
                "a container in a VM cannot join a namespace of the host; omit the path",
            ));
        } else {
            kept.push(namespace);
        }
    }
    let Some(network) = network else {
        return Err(unsupported(
            "linux.namespaces",
            "there is no network namespace, and a container in a VM cannot use the host's network; give it \
             one of its own, and publish ports instead",
        ));
    };
    require_namespaces(&kept)?;
    linux.set_namespaces(Some(kept));
    // The guest has a hierarchy of its own.
    linux.set_cgroups_path(None);
    if linux.mount_label().is_some() {
        linux.set_mount_label(None);
    }
    Ok(network)
}

/// Refuses a container that shares the host's mounts or processes.
pub(super) fn require_namespaces(kept: &[LinuxNamespace]) -> Result<(), TranslateError> {
    for (kind, what) in [(LinuxNamespaceType::Mount, "mounts"), (LinuxNamespaceType::Pid, "processes")] {
        if !kept.iter().any(|namespace| namespace.typ() == kind) {
            return Err(unsupported(
                "linux.namespaces",
                format!(
                    "there is no {kind} namespace, and a container in a VM cannot share the host's {what}"
                ),
            ));
        }
    }
    Ok(())
}

/// Whether a mount binds a path of the host.
fn is_bind(mount: &Mount) -> bool {
    let option = |name: &str| mount.options().iter().flatten().any(|option| option == name);
    mount.typ().as_deref() == Some("bind") || option("bind") || option("rbind")
}

/// Whether a mount binds a path of the host's file system with this device number.
fn is_bind_of(bundle: &Path, mount: &Mount, device: u64) -> bool {
    let source = mount.source().as_ref().map(|source| bundle.join(source));
    let metadata = source.filter(|_| is_bind(mount)).and_then(|source| fs::metadata(source).ok());
    metadata.is_some_and(|metadata| metadata.dev() == device)
}

/// Redirects a bind mount to the share tree; returns the entry that it needs there.
fn bind_source(
    bundle: &Path,
    index: usize,
    mount: &mut Mount,
    own_ids: &(Vec<LinuxIdMapping>, Vec<LinuxIdMapping>),
    systems: &mut FileSystems,
) -> Result<Option<SharedPath>, TranslateError> {
    let field = format!("mounts[{index}].source");
    let Some(given) = mount.source().clone() else {
        return Err(unsupported(field, "a bind mount needs a source"));
    };
    let path = bundle.join(given);
    let error = |source| TranslateError::Source { field: field.clone(), path: path.clone(), source };
    let metadata = fs::metadata(&path).map_err(error)?;
    let kind = metadata.file_type();
    if kind.is_socket() {
        return Err(unsupported(
            field,
            format!("{} is a socket, which cannot be passed into a VM", path.display()),
        ));
    }
    if kind.is_block_device() || kind.is_char_device() || kind.is_fifo() {
        let text = format!("{} is a device or FIFO, which cannot be passed into a VM", path.display());
        return Err(unsupported(field, text));
    }
    if mount.destination() == Path::new("/dev/shm")
        && let Some(size) = tmpfs_size(&path)
    {
        // Shared memory must be in the guest, so that its processes can share it.
        if systems.is_of_pod() {
            mount.set_source(Some(sandbox::pod_shm()));
            return Ok(None);
        }
        let options = ["nosuid", "noexec", "nodev", "mode=1777"].map(str::to_owned).to_vec();
        mount.set_typ(Some("tmpfs".to_owned()));
        mount.set_source(Some("shm".into()));
        mount.set_options(Some([options, vec![format!("size={size}")]].concat()));
        return Ok(None);
    }
    let idmap = take_idmap(index, mount, own_ids)?;
    let system = systems.directory(metadata.dev());
    let system = if idmap.is_some() { system.join(MAPPED) } else { system };
    let target = share_target(system.join(index.to_string()), &path, metadata.is_dir());
    mount.set_source(Some(guest_path(&target)));
    let has =
        |names: &[&str]| mount.options().iter().flatten().any(|option| names.contains(&option.as_str()));
    Ok(Some(SharedPath {
        read_only: has(&["ro", "rro"]),
        directory: metadata.is_dir(),
        recursive: has(&["rbind"]),
        follows: has(&["slave", "rslave"]),
        idmap,
        ..SharedPath::new(path, target)
    }))
}

/// Where a source goes, in the directory `target` of the share tree. The mount table of the container shows a file's
/// place below its mount's root: programs find the container's name in there, in the path of the engine's `hostname` or
/// `hosts`.
fn share_target(target: PathBuf, source: &Path, directory: bool) -> PathBuf {
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::RootDir);
    match source.strip_prefix("/") {
        Ok(below) if !directory && source.components().all(plain) => target.join(below),
        _ => target,
    }
}

/// The users and groups of the container's user namespace.
fn own_ids(spec: &Spec) -> (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>) {
    let linux = spec.linux().as_ref();
    let users = linux.and_then(|linux| linux.uid_mappings().clone()).unwrap_or_default();
    (users, linux.and_then(|linux| linux.gid_mappings().clone()).unwrap_or_default())
}

/// Removes the ID mapping of a mount, which the host applies. Without explicit mappings it is that of the container's
/// user namespace.
fn take_idmap(
    index: usize,
    mount: &mut Mount,
    own_ids: &(Vec<LinuxIdMapping>, Vec<LinuxIdMapping>),
) -> Result<Option<IdMap>, TranslateError> {
    let is_option = |option: &str| option == "idmap" || option == "ridmap" || option.starts_with("idmap=");
    let options = mount.options().clone().unwrap_or_default();
    let asked: Vec<_> = options.iter().filter(|option| is_option(option)).collect();
    let recursive = asked.iter().any(|option| *option == "ridmap");
    let users = mount.uid_mappings().clone().unwrap_or_default();
    let groups = mount.gid_mappings().clone().unwrap_or_default();
    if asked.is_empty() && users.is_empty() && groups.is_empty() {
        return Ok(None);
    }
    let named = !users.is_empty() || !groups.is_empty();
    let (users, groups) = if named { (users, groups) } else { own_ids.clone() };
    if users.is_empty() || groups.is_empty() {
        return Err(unsupported(
            format!("mounts[{index}].uidMappings"),
            "an ID-mapped mount needs uidMappings and gidMappings, or a container with a user namespace",
        ));
    }
    let kept: Vec<_> = options.iter().filter(|option| !is_option(option)).cloned().collect();
    mount.set_options(Some(kept)).set_uid_mappings(None).set_gid_mappings(None);
    Ok(Some(IdMap { users: ranges(&users), groups: ranges(&groups), recursive }))
}

fn ranges(mappings: &[LinuxIdMapping]) -> Vec<IdRange> {
    let range = |mapping: &LinuxIdMapping| IdRange {
        inside: mapping.container_id(),
        outside: mapping.host_id(),
        count: mapping.size(),
    };
    mappings.iter().map(range).collect()
}

/// The size of the tmpfs that a path is on, in bytes.
pub(super) fn tmpfs_size(path: &Path) -> Option<u64> {
    let stat = statfs(path).ok()?;
    let size = stat.blocks().checked_mul(u64::try_from(stat.block_size()).ok()?)?;
    (stat.filesystem_type() == TMPFS_MAGIC && size > 0).then_some(size)
}

/// How the guest gets the root file system, and the device number of the file system that it is on.
fn root_source(bundle: &Bundle) -> Result<(RootSource, u64), TranslateError> {
    let path = bundle.root_path();
    let error = |source| TranslateError::Source { field: "root.path".into(), path: path.clone(), source };
    let metadata = fs::metadata(&path).map_err(error)?;
    if metadata.is_dir() {
        return Ok((RootSource::Directory, metadata.dev()));
    }
    if !metadata.is_file() && !metadata.file_type().is_block_device() {
        let text = format!("{} is not a directory, image file or block device", path.display());
        return Err(unsupported("root.path", text));
    }
    let filesystem = detect_filesystem(&path).map_err(error)?.ok_or_else(|| {
        unsupported("root.path", format!("{} has no ext4 or EROFS file system", path.display()))
    })?;
    let read_only = bundle.root().readonly().unwrap_or(false);
    if filesystem == "erofs" && !read_only {
        let text = format!("{} is EROFS, which cannot be written: set root.readonly", path.display());
        return Err(unsupported("root.path", text));
    }
    Ok((RootSource::Disk { path, filesystem, read_only }, metadata.dev()))
}

/// The file system on a disk, by its superblock's magic number.
fn detect_filesystem(path: &Path) -> io::Result<Option<&'static str>> {
    use std::os::unix::fs::FileExt;
    const EROFS: (u64, [u8; 4]) = (1024, 0xe0f5_e1e2_u32.to_le_bytes());
    const EXT: (u64, [u8; 2]) = (1024 + 56, 0xef53_u16.to_le_bytes());
    let file = fs::File::open(path)?;
    let found = |offset, magic: &[u8]| {
        let mut bytes = vec![0; magic.len()];
        file.read_exact_at(&mut bytes, offset).is_ok_and(|()| bytes == magic)
    };
    if found(EROFS.0, &EROFS.1) {
        Ok(Some("erofs"))
    } else if found(EXT.0, &EXT.1) {
        Ok(Some("ext4"))
    } else {
        Ok(None)
    }
}

/// The specification's annotations.
pub fn annotations(spec: &Spec) -> HashMap<String, String> {
    spec.annotations().clone().unwrap_or_default()
}

#[cfg(test)]
#[path = "guest_spec_tests.rs"]
mod tests;
