//! Creates a container in a VM whose guest is set up.

use std::path::{Path, PathBuf};

use pouch_protocol::agent::Storage;
use pouch_protocol::{GUEST_RUN_DIR, SHARE_MOUNT_POINT};

use super::guest_spec::RootSource;
use crate::failure::Failure;
use crate::sandbox::GuestParts;
use crate::sandbox::agent::Agent;
use crate::sandbox::share::ROOTFS;
use crate::sandbox::streams::{GuestStreams, Tokens};
use crate::sandbox::vm::Vm;
use crate::sandbox::vm_files::Disk;
use crate::streams::Ends;

/// Creates the container `id` from its specification in the guest's terms; returns the guest's ends of its streams.
///
/// # Errors
/// [`Failure`] names what the guest refuses.
pub fn create(
    vm: &Vm,
    agent: &Agent,
    id: &str,
    document: Vec<u8>,
    parts: GuestParts,
    ends: &Ends,
) -> Result<GuestStreams, Failure> {
    let tokens =
        Tokens::new(ends.is_terminal(), ends.size(), ends.null()).map_err(|error| error.failure())?;
    agent.create(id, document, tokens.stdio(), parts)?;
    tokens.connect(vm).map_err(|error| error.failure())
}

/// What the guest forgets with a container whose files are in these directories of the share tree.
pub fn submounts<'a>(directories: impl IntoIterator<Item = &'a PathBuf>) -> Vec<Storage> {
    let storage = |directory: &PathBuf| {
        let mut storage = Storage::new();
        storage.driver = "submount".to_owned();
        storage.mount_point = Path::new(SHARE_MOUNT_POINT).join(directory).display().to_string();
        storage
    };
    directories.into_iter().map(storage).collect()
}

/// What the guest mounts for a container with this root.
pub fn storages(root: &RootSource) -> Vec<Storage> {
    let RootSource::Disk { filesystem, read_only, .. } = root else { return Vec::new() };
    let mut storage = Storage::new();
    storage.driver = "block".to_owned();
    storage.source = ROOTFS.to_owned();
    storage.mount_point = Path::new(GUEST_RUN_DIR).join(ROOTFS).display().to_string();
    storage.filesystem = (*filesystem).to_owned();
    storage.options = if *read_only { vec!["ro".to_owned()] } else { Vec::new() };
    vec![storage]
}

/// The disks that the VM needs for the container.
pub fn disks(root: &RootSource) -> Vec<Disk> {
    match root {
        RootSource::Directory => Vec::new(),
        RootSource::Disk { path, read_only, .. } => {
            vec![Disk { path: path.clone(), serial: ROOTFS.to_owned(), read_only: *read_only }]
        }
    }
}
