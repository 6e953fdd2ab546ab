//! Pods: which containers belong to one, and how a container joins the VM of its pod.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use nix::sys::memfd::{MFdFlags, memfd_create};
use pouch_vmm_api::config::SHARE_DIRECTORY;
use serde_json::Value;

use super::joint::Directories;
use super::sandbox_files::{self, PodFiles};
use crate::container::bundle::CONFIG_FILE;
use crate::container::guest_spec::{self, GuestSpec, Place, RootSource, TranslateError};
use crate::container::hooks::{self, HookError};
use crate::container::pod_spec::Neighbors;
use crate::container::state::HostProcess;
use crate::container::{
    Bundle, BundleError, ContainerDir, ContainerId, State, StateError, Status, mount_points,
};
use crate::failure::Failure;
use crate::host::client::{ClientError, HostAddress, HostClient};
use crate::host::protocol::{CreateRequest, Request};
use crate::host::proxy::{self, ProxyTask};
use crate::logging::rfc3339;
use crate::sandbox::disks::{DiskError, HostDisk};
use crate::sandbox::later::{self, LaterError, SLOTS, VmmMounts};
use crate::sandbox::share::SharedPath;
use crate::streams::Ends;

/// CRI's annotation of a container's part in a pod.
pub(super) const TYPE: &str = "io.kubernetes.cri.container-type";
/// CRI's annotation with the ID of the pod's sandbox.
pub(super) const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// The part of a container in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// It is in none.
    Alone,
    /// It is the sandbox.
    Sandbox,
    /// It joins this sandbox.
    Member(String),
}

impl Part {
    /// What the specification of the bundle says. One that cannot be read is reported later.
    pub fn of(bundle: &Path) -> Self {
        let text = std::fs::read(bundle.join(CONFIG_FILE)).unwrap_or_default();
        let spec: Value = serde_json::from_slice(&text).unwrap_or_default();
        let annotation = |name: &str| spec["annotations"][name].as_str();
        match (annotation(TYPE), annotation(SANDBOX)) {
            (Some("sandbox"), _) => Part::Sandbox,
            (Some("container"), Some(sandbox)) => Part::Member(sandbox.to_owned()),
            _ => Part::Alone,
        }
    }
}

/// A container could not join its pod.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// Its bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Its specification.
    #[error(transparent)]
    Translate(#[from] TranslateError),
    /// A mount point in a read-only root file system.
    #[error(transparent)]
    MountPoint(#[from] mount_points::MountPointError),
    /// Its root file system is a disk.
    #[error("root.path {0} is a disk, which a container that joins a pod cannot have yet")]
    Disk(PathBuf),
    /// A block device of the host.
    #[error(transparent)]
    Device(#[from] DiskError),
    /// There are too many.
    #[error("a pod has at most {SLOTS} containers at a time")]
    Full,
    /// The share tree.
    #[error(transparent)]
    Files(#[from] LaterError),
    /// A hook.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The state of the pod.
    #[error(transparent)]
    State(#[from] StateError),
    /// The pod ended.
    #[error("the VM of the pod has ended")]
    Ended,
    /// The host process.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Its process on the host.
    #[error("{}", .0.message)]
    Proxy(Failure),
    /// A file in memory.
    #[error("the specification could not be passed on")]
    Pass(#[from] io::Error),
}

/// What the containers of a pod have in common on the host.
pub struct Pod {
    mounts: VmmMounts,
    slots: Slots,
    directories: Mutex<Directories>,
    /// The files that its containers share, if the engine leaves them to the shim.
    files: Option<PodFiles>,
    /// When it was created.
    pub created: SystemTime,
}

impl Pod {
    /// The pod whose sandbox was just created in this directory.
    ///
    /// # Errors
    /// Its VM has ended.
    pub fn new(dir: &ContainerDir, files: Option<PodFiles>) -> Result<Self, JoinError> {
        let vmm = dir.load()?.vmm.ok_or(JoinError::Ended)?;
        let mounts = VmmMounts::of(vmm.pid, Path::new(SHARE_DIRECTORY), &dir.path().join("joining"))?;
        // It was this process when it was opened, and not a later one with its number.
        if vmm.alive() {
            let (slots, directories) = (Slots::default(), Mutex::default());
            Ok(Pod { mounts, slots, directories, files, created: SystemTime::now() })
        } else {
            Err(JoinError::Ended)
        }
    }

    fn directories(&self) -> MutexGuard<'_, Directories> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the files of the container in a slot to the share tree.
    fn add_files(&self, slot: usize, scratch: &Path, guest: &mut GuestSpec) -> Result<Files, LaterError> {
        // A container that uses the same directories waits until they are there.
        let mut directories = self.directories();
        let used = directories.take(guest);
        let added = self.mounts.add(slot, scratch, &guest.shared);
        let own = guest.shared.iter().filter(|entry| !used.contains(&entry.target)).cloned().collect();
        let files = Files { own, used };
        if added.is_err() {
            self.remove_with(&mut directories, slot, &files);
        }
        added.map(|()| files)
    }

    fn remove_files(&self, slot: usize, files: &Files) {
        self.remove_with(&mut self.directories(), slot, files);
    }

    fn remove_with(&self, directories: &mut Directories, slot: usize, files: &Files) {
        let shared = [files.own.clone(), directories.release(&files.used)].concat();
        match self.mounts.remove(slot, &shared) {
            // The VM may have ended, and then so have its mounts.
            Ok(()) | Err(LaterError::Enter(_)) => {}
            Err(error) => log::warn!("files are left in the share tree: {}", pouch_errors::chain(&error)),
        }
    }
}

/// What a container has in the share tree.
struct Files {
    own: Vec<SharedPath>,
    /// The places of directories that other containers may use too.
    used: Vec<PathBuf>,
}

impl Files {
    fn joint_directories(&self) -> Vec<PathBuf> {
        later::joint_directories(self.own.iter().map(|entry| &entry.target).chain(&self.used))
    }
}

/// Which slots of the share tree are used, and which one was given out last.
struct Slots(Mutex<([bool; SLOTS], usize)>);

impl Default for Slots {
    fn default() -> Self {
        Slots(Mutex::new(([false; SLOTS], 0)))
    }
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, ([bool; SLOTS], usize)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next free slot after the last one: the guest may remember for a second what was in one.
    fn take(&self) -> Option<usize> {
        let mut slots = self.lock();
        let free = (1..=SLOTS).map(|step| (slots.1 + step) % SLOTS).find(|slot| !slots.0[*slot])?;
        slots.0[free] = true;
        slots.1 = free;
        Some(free)
    }

    fn free(&self, slot: usize) {
        self.lock().0[slot] = false;
    }
}

/// A container in the VM of its pod.
pub struct Membership {
    slot: usize,
    files: Files,
}

impl Membership {
    /// Creates a container in the pod whose sandbox is in the directory `sandbox`. Returns its proxy process on the
    /// host too.
    ///
    /// # Errors
    /// [`JoinError`] names the part; nothing is left then.
    pub fn join(
        pod: &Pod,
        sandbox: &ContainerDir,
        id: &ContainerId,
        bundle: &Path,
        ends: Ends,
        neighbors: Neighbors,
    ) -> Result<(Self, Child), JoinError> {
        let slot = pod.slots.take().ok_or(JoinError::Full)?;
        let dir = sandbox.of_member(id);
        let joined = dir.create().map_err(JoinError::from).and_then(|()| {
            let joining = Joining { pod, sandbox, dir: &dir, slot };
            let joined = joining.join(bundle, ends, neighbors);
            if joined.is_err() {
                // What is left goes with the pod.
                let _ = dir.remove();
            }
            joined
        });
        if joined.is_err() {
            pod.slots.free(slot);
        }
        joined
    }

    /// Removes what the host has for a container that the guest has no more.
    pub fn leave(&self, pod: &Pod) {
        pod.remove_files(self.slot, &self.files);
        pod.slots.free(self.slot);
    }
}

/// A container that joins a pod.
struct Joining<'a> {
    pod: &'a Pod,
    sandbox: &'a ContainerDir,
    dir: &'a ContainerDir,
    slot: usize,
}

impl Joining<'_> {
    fn join(self, bundle: &Path, ends: Ends, neighbors: Neighbors) -> Result<(Membership, Child), JoinError> {
        let id = self.dir.id();
        let place = Place { slot: self.slot, pod: neighbors };
        let (bundle, mut guest) = self.specification(bundle, &place)?;
        guest.warnings.iter().for_each(|warning| log::warn!("container {id}: {warning}"));
        // What cannot be had ends this before anything is done for the container.
        let devices = guest.devices.iter_mut().map(HostDisk::open).collect::<Result<Vec<_>, _>>()?;
        let of_pod = self.sandbox.load()?;
        if of_pod.status == Status::Stopped {
            return Err(JoinError::Ended);
        }
        let state = State { id: id.to_string(), ..state_of(&bundle, &of_pod) };
        self.dir.save(&state)?;
        for point in hooks::OF_CREATE {
            hooks::run(point, &state)?;
        }
        let scratch = self.sandbox.path().join(format!("joining-{}", self.slot));
        let files = self.pod.add_files(self.slot, &scratch, &mut guest)?;
        let created = self.create(state, of_pod, &guest, &files, devices, ends);
        if created.is_err() {
            self.pod.remove_files(self.slot, &files);
        }
        Ok((Membership { slot: self.slot, files }, created?))
    }

    /// Creates the container in the guest, and starts its proxy process.
    fn create(
        &self,
        mut state: State,
        of_pod: State,
        guest: &GuestSpec,
        files: &Files,
        devices: Vec<File>,
        ends: Ends,
    ) -> Result<Child, JoinError> {
        let document = document_file(&guest.document()?)?;
        let (terminal, null) = (ends.is_terminal(), ends.null());
        let streams = ends.into_files();
        let fds: Vec<BorrowedFd<'_>> =
            std::iter::once(&document).chain(&streams).chain(&devices).map(AsFd::as_fd).collect();
        let request = Request::Create(Box::new(CreateRequest {
            state: state.clone(),
            directory: later::directory(self.slot),
            joint_directories: files.joint_directories(),
            pids: guest.pids.clone(),
            terminal,
            null,
            disks: guest.devices.clone(),
        }));
        let host = HostClient::connect(&self.sandbox.socket())?;
        host.ask_with(&request, &fds)?;
        let task = ProxyTask {
            address: HostAddress::of(self.dir),
            cgroup: of_pod.cgroup,
            host: of_pod.host.as_ref().map_or(0, |host| host.pid),
        };
        let started = proxy::start(&task).map_err(JoinError::Proxy).and_then(|child| {
            state.proxy = i32::try_from(child.id()).ok().and_then(HostProcess::find);
            self.dir.save(&state)?;
            Ok(child)
        });
        if started.is_err() {
            // The first error is reported. A proxy process ends with its container.
            let container = Request::Container(self.dir.id().to_string());
            let _ = host.ask(&container).and_then(|_| host.ask(&Request::Remove));
        }
        started
    }

    /// The bundle of a container, and its specification for the guest.
    fn specification(&self, bundle: &Path, place: &Place) -> Result<(Bundle, GuestSpec), JoinError> {
        let mut bundle = Bundle::load(bundle)?;
        if let Some(files) = &self.pod.files {
            files.add_to(&mut bundle.spec);
        }
        let mut guest = guest_spec::translate(&bundle, Some(place))?;
        if self.pod.files.is_some() {
            sandbox_files::share_memory(&mut guest.spec);
        }
        if let RootSource::Disk { path, .. } = guest.root {
            return Err(JoinError::Disk(path));
        }
        if bundle.root().readonly().unwrap_or(false) {
            mount_points::make(&bundle.root_path(), &mut guest.spec, &guest.shared)?;
        }
        Ok((bundle, guest))
    }
}

/// Removes a container of a pod whose shim was killed. If the VM has ended, so has the container.
pub fn remove(sandbox: &ContainerDir, id: &ContainerId) {
    let ask = || {
        let host = HostClient::connect(&sandbox.socket())?;
        host.ask(&Request::Container(id.to_string()))?;
        let kill = Request::Signal { exec_id: None, signal: libc::SIGKILL as u32, all: true };
        // It may have ended already, or never have been started.
        if host.ask(&kill).is_ok() {
            host.ask(&Request::AwaitExit)?;
        }
        host.ask(&Request::Remove)
    };
    if let Err(error) = ask() {
        log::warn!("container {id} was not removed from its pod: {}", pouch_errors::chain(&error));
    }
    let _ = sandbox.of_member(id).remove();
}

fn state_of(bundle: &Bundle, of_pod: &State) -> State {
    State {
        id: String::new(),
        status: Status::Creating,
        host: of_pod.host,
        proxy: None,
        vmm: of_pod.vmm,
        bundle: bundle.path.clone(),
        rootfs: bundle.root_path(),
        created: rfc3339(std::time::SystemTime::now()),
        owner: of_pod.owner.clone(),
        annotations: guest_spec::annotations(&bundle.spec),
        cgroup: None,
        size: None,
        vhost_net: false,
        phases: None,
        exit_status: None,
        vm_end: None,
        hooks: bundle.spec.hooks().clone(),
    }
}

/// A file in memory with the specification.
fn document_file(document: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"pouch-vm-spec", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(document)?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_in_a_pod_is_told_by_annotations() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(Part::of(bundle.path()), Part::Alone);
        let part = |annotations: &str| {
            let text = format!("{{\"annotations\": {annotations}}}");
            std::fs::write(bundle.path().join(CONFIG_FILE), text).unwrap();
            Part::of(bundle.path())
        };
        assert_eq!(part(r#"{"other": "sandbox"}"#), Part::Alone);
        assert_eq!(part(&format!(r#"{{"{TYPE}": "sandbox", "{SANDBOX}": "a"}}"#)), Part::Sandbox);
        let member = format!(r#"{{"{TYPE}": "container", "{SANDBOX}": "a"}}"#);
        assert_eq!(part(&member), Part::Member("a".to_owned()));
    }

    #[test]
    fn slots_are_given_out_in_turn_and_run_out() {
        let slots = Slots::default();
        let first = slots.take().unwrap();
        slots.free(first);
        assert_ne!(slots.take(), Some(first), "the one that was free last comes last");
        let rest = (1..SLOTS).filter_map(|_| slots.take()).count();
        assert_eq!((rest, slots.take()), (SLOTS - 1, None));
    }
}
