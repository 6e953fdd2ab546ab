//! The state of containers: a directory each, with a state file.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

use oci_spec::runtime::Hooks;
use procfs::process::Process;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::phases::Phases;
use super::progress;
use super::{ContainerId, Progress};
use crate::cgroup::Cgroup;
use crate::sandbox::VmSize;

/// Where the directories are unless `--root` says otherwise.
pub const DEFAULT_ROOT: &str = "/run/pouch-vm";
/// The newest version of the OCI runtime specification that is known, as a literal.
macro_rules! oci_version {
    () => {
        "1.3.0"
    };
}
pub(crate) use oci_version;

/// The version of the state's format (OCI runtime specification, runtime.md, "State").
pub const OCI_VERSION: &str = oci_version!();

const STATE_FILE: &str = "state.json";
/// The directories of a pod's containers, in that of the pod.
pub(super) const MEMBERS: &str = "containers";

/// The container's status, as `state` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// `create` is under way.
    Creating,
    /// Created, and its process not started.
    Created,
    /// Its process runs.
    Running,
    /// All its processes are frozen.
    Paused,
    /// Its process has ended.
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// A process on the host, identified by PID and start time, because PIDs are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostProcess {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start_time: u64,
}

impl HostProcess {
    /// The process with this number, if there is one.
    pub fn find(pid: i32) -> Option<Self> {
        process_stat(pid).map(|(_, start_time)| HostProcess { pid, start_time })
    }

    /// Whether it still runs: it exists, is the same, and is no zombie.
    pub fn alive(&self) -> bool {
        process_stat(self.pid)
            .is_some_and(|(state, start_time)| start_time == self.start_time && !matches!(state, 'Z' | 'X'))
    }
}

/// State letter and start time of a process, if there is one.
fn process_stat(pid: i32) -> Option<(char, u64)> {
    let stat = Process::new(pid).and_then(|process| process.stat()).ok()?;
    Some((stat.state, stat.starttime))
}

/// What the state file holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The container's name.
    pub id: String,
    /// Its status when the file was written; see [`ContainerDir::load`].
    pub status: Status,
    /// The sandbox host process.
    pub host: Option<HostProcess>,
    /// The host proxy process, if the container is in a pod.
    #[serde(default)]
    pub proxy: Option<HostProcess>,
    /// The VMM's process.
    pub vmm: Option<HostProcess>,
    /// The bundle directory.
    pub bundle: PathBuf,
    /// The root file system.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    /// The user who created it.
    pub owner: String,
    /// The specification's annotations.
    pub annotations: HashMap<String, String>,
    /// The host's cgroup.
    pub cgroup: Option<Cgroup>,
    /// The size of the VM, if the limits of the cgroup follow from those of the container.
    #[serde(default)]
    pub size: Option<VmSize>,
    /// Whether the host's kernel is to move the frames of its interfaces.
    #[serde(default)]
    pub vhost_net: bool,
    /// How long its start took; only for the sandbox.
    #[serde(default)]
    pub phases: Option<Phases>,
    /// The exit status of its process.
    pub exit_status: Option<i32>,
    /// Why its VM ended, if not because its process did.
    pub vm_end: Option<String>,
    /// The specification's hooks, as they were when it was created.
    #[serde(default)]
    pub hooks: Option<Hooks>,
}

impl State {
    /// The state as `state` prints it and hooks get it (runtime.md, "State"), with the members
    /// that runc adds.
    pub fn to_oci(&self) -> Value {
        let pid = match self.status {
            Status::Stopped => 0,
            _ => self.proxy.or(self.host).map_or(0, |process| process.pid),
        };
        json!({
            "ociVersion": OCI_VERSION,
            "id": self.id,
            "pid": pid,
            "status": self.status,
            "bundle": self.bundle,
            "rootfs": self.rootfs,
            "created": self.created,
            "annotations": self.annotations,
            "owner": self.owner,
        })
    }
}

/// A state file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// There is no such container.
    #[error("container {0} does not exist")]
    NotFound(ContainerId),
    /// There is one already.
    #[error("container {0} exists already")]
    Exists(ContainerId),
    /// The file or directory could not be used.
    #[error("the state directory {path} cannot be used")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The file is malformed.
    #[error("the state {path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
}

/// A container's directory below the root of all states.
#[derive(Clone, Debug)]
pub struct ContainerDir {
    id: ContainerId,
    path: PathBuf,
    /// The directory of its pod, if it has joined one.
    pod: Option<PathBuf>,
}

impl ContainerDir {
    /// The directory of a container, which need not exist.
    pub fn new(root: &Path, id: &ContainerId) -> Self {
        ContainerDir { id: id.clone(), path: root.join(id.as_str()), pod: None }
    }

    /// The directory of a container of the pod that has this directory. It need not exist.
    pub fn of_member(&self, id: &ContainerId) -> Self {
        let path = self.path.join(MEMBERS).join(id.as_str());
        ContainerDir { id: id.clone(), path, pod: Some(self.path.clone()) }
    }

    /// The directory of its pod, if it has joined one.
    pub fn pod(&self) -> Option<&Path> {
        self.pod.as_deref()
    }

    /// The directory in which the sandbox host process writes.
    pub fn progress(&self) -> PathBuf {
        self.pod.as_ref().unwrap_or(&self.path).join(progress::DIRECTORY)
    }

    fn progress_file(&self) -> PathBuf {
        self.progress().join(format!("{}.json", self.id))
    }

    /// Makes the directory.
    ///
    /// # Errors
    /// [`StateError::Exists`] if the name is in use.
    pub fn create(&self) -> Result<(), StateError> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        builder.recursive(true).create(parent).map_err(|source| self.error(parent, source))?;
        match builder.recursive(false).create(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StateError::Exists(self.id.clone()));
            }
            other => other.map_err(|source| self.error(&self.path, source))?,
        }
        if self.pod.is_some() {
            return Ok(());
        }
        let progress = self.progress();
        builder.create(&progress).map_err(|source| self.error(&progress, source))
    }

    /// Opens the directory, to distinguish it from a later one with the same name; `None` if it does not
    /// exist.
    ///
    /// # Errors
    /// [`StateError::Io`] if it cannot be opened.
    pub fn open(&self) -> Result<Option<File>, StateError> {
        match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some).map_err(|source| self.error(&self.path, source)),
        }
    }

    /// Whether the directory is the one that was opened.
    ///
    /// # Errors
    /// [`StateError::Io`] if the kernel does not tell.
    pub fn is(&self, opened: &File) -> Result<bool, StateError> {
        let error = |source| self.error(&self.path, source);
        let opened = opened.metadata().map_err(error)?;
        match fs::metadata(&self.path) {
            Ok(now) => Ok((now.dev(), now.ino()) == (opened.dev(), opened.ino())),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(error(source)),
        }
    }

    /// Locks the opened directory against others that take it over or remove it, until the file is dropped. Returns
    /// whether it still exists.
    ///
    /// # Errors
    /// [`StateError::Io`] if it cannot be locked.
    pub fn lock(&self, opened: &File) -> Result<bool, StateError> {
        opened.lock().map_err(|source| self.error(&self.path, source))?;
        // The previous owner may have removed it, and another may have created it again.
        self.is(opened)
    }

    /// The container's name.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of the sandbox host process.
    pub fn socket(&self) -> PathBuf {
        self.pod.as_ref().unwrap_or(&self.path).join("host.sock")
    }

    fn error(&self, path: &Path, source: io::Error) -> StateError {
        StateError::Io { path: path.to_owned(), source }
    }

    /// Writes the state file, so that a reader sees the old one or the new one. What changes after that is written by
    /// [`note`](Self::note).
    ///
    /// # Errors
    /// [`StateError::Io`] if it cannot be written.
    pub fn save(&self, state: &State) -> Result<(), StateError> {
        let file = self.path.join(STATE_FILE);
        let new = self.path.join(".state.json.new");
        let text =
            serde_json::to_vec(state).map_err(|source| StateError::Damaged { path: file.clone(), source })?;
        fs::write(&new, text).map_err(|source| self.error(&new, source))?;
        fs::rename(&new, &file).map_err(|source| self.error(&file, source))
    }

    /// Writes what changes of a state after the creation.
    ///
    /// # Errors
    /// [`StateError::Io`] if it cannot be written.
    pub fn note(&self, state: &State) -> Result<(), StateError> {
        let file = self.progress_file();
        Progress::of(state).write(&file).map_err(|source| self.error(&file, source))
    }

    /// Reads the state. A container whose host process is gone is stopped, whatever the file
    /// says.
    ///
    /// # Errors
    /// [`StateError::NotFound`] if there is no such container.
    pub fn load(&self) -> Result<State, StateError> {
        let file = self.path.join(STATE_FILE);
        let text = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::NotFound(self.id.clone()));
            }
            other => other.map_err(|source| self.error(&file, source))?,
        };
        let mut state: State =
            serde_json::from_slice(&text).map_err(|source| StateError::Damaged { path: file, source })?;
        if let Some(progress) = Progress::read(&self.progress_file()) {
            progress.apply(&mut state);
        }
        if !state.host.is_some_and(|host| host.alive()) {
            state.status = Status::Stopped;
        }
        Ok(state)
    }

    /// Whether the directory is there, with or without a state in it.
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Removes the directory and all in it.
    ///
    /// # Errors
    /// [`StateError::Io`] if it cannot be removed.
    pub fn remove(&self) -> Result<(), StateError> {
        // That of a pod's container is not in its directory. There is none before its first change.
        let _ = fs::remove_file(self.progress_file());
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.error(&self.path, error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lookup::list;
    use super::*;

    fn state(host: Option<HostProcess>) -> State {
        State {
            id: "a".into(),
            status: Status::Running,
            host,
            proxy: None,
            vmm: None,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: String::new(),
            owner: "root".into(),
            annotations: HashMap::new(),
            cgroup: None,
            size: None,
            vhost_net: false,
            phases: None,
            exit_status: None,
            vm_end: None,
            hooks: None,
        }
    }

    #[test]
    fn a_container_without_its_host_process_is_stopped() {
        let root = tempfile::tempdir().unwrap();
        let dir = ContainerDir::new(root.path(), &"a".parse().unwrap());
        dir.create().unwrap();
        let this = HostProcess::find(std::process::id() as i32).unwrap();
        dir.save(&state(Some(this))).unwrap();
        assert_eq!(dir.load().unwrap().status, Status::Running);
        let earlier = HostProcess { start_time: this.start_time + 1, ..this };
        dir.save(&state(Some(earlier))).unwrap();
        assert_eq!(dir.load().unwrap().status, Status::Stopped);
    }

    #[test]
    fn what_changed_after_the_creation_is_told() {
        let root = tempfile::tempdir().unwrap();
        let dir = ContainerDir::new(root.path(), &"a".parse().unwrap());
        let member = dir.of_member(&"b".parse().unwrap());
        let this = HostProcess::find(std::process::id() as i32);
        for (dir, status) in [(&dir, Status::Running), (&member, Status::Paused)] {
            dir.create().unwrap();
            dir.save(&state(this)).unwrap();
            dir.note(&State { status, exit_status: Some(7), owner: "another".into(), ..state(this) })
                .unwrap();
            let loaded = dir.load().unwrap();
            assert_eq!((loaded.status, loaded.exit_status, loaded.owner), (status, Some(7), "root".into()));
        }
        member.remove().unwrap();
        assert_eq!(fs::read_dir(dir.progress()).unwrap().count(), 1);
        assert_eq!(dir.load().unwrap().status, Status::Running);
    }

    #[test]
    fn a_name_is_used_once() {
        let root = tempfile::tempdir().unwrap();
        let dir = ContainerDir::new(&root.path().join("deep"), &"a".parse().unwrap());
        assert!(matches!(dir.load(), Err(StateError::NotFound(_))));
        dir.create().unwrap();
        assert!(matches!(dir.create(), Err(StateError::Exists(_))));
        assert_eq!(list(&root.path().join("deep")).unwrap().len(), 1);
        dir.remove().unwrap();
        dir.remove().unwrap();
        assert_eq!(list(&root.path().join("deep")).unwrap().len(), 0);
    }

    #[test]
    fn a_directory_is_removed_by_one_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let dir = ContainerDir::new(root.path(), &"a".parse().unwrap());
        assert!(dir.open().unwrap().is_none());
        dir.create().unwrap();
        let held = dir.open().unwrap().unwrap();
        assert!(dir.lock(&held).unwrap());
        let (other, (sender, receiver)) = (dir.clone(), std::sync::mpsc::channel());
        let opened = dir.open().unwrap().unwrap();
        let waiting = std::thread::spawn(move || sender.send(other.lock(&opened).unwrap()).unwrap());
        assert!(receiver.recv_timeout(std::time::Duration::from_millis(50)).is_err());
        dir.remove().unwrap();
        dir.create().unwrap();
        drop(held);
        // It waited for a directory that is gone; the one with its name is another's.
        assert!(!receiver.recv().unwrap());
        waiting.join().unwrap();
        assert!(dir.lock(&dir.open().unwrap().unwrap()).unwrap());
    }

    /// A newer build must be able to read it. Otherwise it cannot stop or remove containers that run during an upgrade.
    #[test]
    fn the_file_of_an_earlier_build_is_read() {
        let root = tempfile::tempdir().unwrap();
        let dir = ContainerDir::new(root.path(), &"a".parse().unwrap());
        dir.create().unwrap();
        let this = HostProcess::find(std::process::id() as i32).unwrap();
        let host = json!({"pid": this.pid, "start_time": this.start_time});
        let cgroup =
            json!({"driver": "unified", "specified": "docker/a", "path": "docker/a", "container": "a"});
        let file = json!({
            "id": "a", "status": "paused", "host": host, "vmm": host, "bundle": "/b", "rootfs": "/b/rootfs",
            "created": "2026-01-01T00:00:00Z", "owner": "root", "annotations": {"k": "v"}, "cgroup": cgroup,
            "exitStatus": null, "vmEnd": null, "ofTomorrow": 1,
        });
        fs::write(dir.path().join(STATE_FILE), file.to_string()).unwrap();
        let state = dir.load().unwrap();
        assert_eq!((state.status, state.host, state.vmm), (Status::Paused, Some(this), Some(this)));
        assert_eq!(state.annotations["k"], "v");
        assert!(state.cgroup.is_some() && state.hooks.is_none());
    }

    #[test]
    fn a_damaged_file_is_named() {
        let root = tempfile::tempdir().unwrap();
        let dir = ContainerDir::new(root.path(), &"a".parse().unwrap());
        dir.create().unwrap();
        fs::write(dir.path().join(STATE_FILE), "{").unwrap();
        assert!(dir.load().unwrap_err().to_string().contains("state.json is damaged"));
    }
}
