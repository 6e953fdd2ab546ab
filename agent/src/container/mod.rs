//! Containers: their life from CreateContainer to DeleteContainer.

pub mod cgroup;
pub mod copyup;
pub mod create;
pub mod delete;
pub mod devices_bpf;
pub mod exec;
pub mod launch;
pub mod list;
mod pid_namespace;
pub mod refresh;
mod registry;
mod runtime;
pub mod spec;
pub mod start;
mod tmpfs;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use ttrpc::proto::Code;

use crate::error::{Coded, RequestError};
use crate::process::Process;
use cgroup::Cgroup;
use devices_bpf::Attached;
use launch::Report;
pub use registry::{CONTAINERS_MAX, Containers, check_id};
pub use runtime::{Runtime, watch_out_of_memory};
use spec::{ForExec, Renumbered};

/// How many ended processes of exec are remembered: an engine that runs a health check every second must not
/// fill the guest's memory.
const ENDED_EXECS_MAX: usize = 128;
/// Processes of exec that may run at once.
const EXECS_MAX: usize = 4096;

/// Why there is no such container or process, or none in the right state.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The ID is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// No container has the id.
    #[error("container_id: no container {0:?}")]
    NoContainer(String),
    /// The container has no such process.
    #[error("exec_id: no process {0:?}")]
    NoProcess(String),
    /// A container has the id already.
    #[error("container_id: {0:?} exists already")]
    ContainerExists(String),
    /// A process has the id already.
    #[error("exec_id: {0:?} exists already")]
    ProcessExists(String),
    /// The guest has too many containers.
    #[error("the guest already has {CONTAINERS_MAX} containers")]
    TooMany,
    /// The container has too many processes.
    #[error("the container already has {EXECS_MAX} processes of exec")]
    TooManyProcesses,
    /// The container is in another state.
    #[error("container {id:?} is {state}, not {wanted}")]
    State {
        /// The container.
        id: String,
        /// Its state.
        state: State,
        /// The state that the request needs.
        wanted: &'static str,
    },
}

impl Coded for LookupError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::NoContainer(_) | Self::NoProcess(_) => Code::NOT_FOUND,
            Self::ContainerExists(_) | Self::ProcessExists(_) => Code::ALREADY_EXISTS,
            Self::TooMany | Self::TooManyProcesses => Code::RESOURCE_EXHAUSTED,
            Self::State { .. } => Code::FAILED_PRECONDITION,
        }
    }
}

/// The state of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Created; its first process waits.
    Created,
    /// Its first process runs.
    Running,
    /// Frozen.
    Paused,
    /// Its first process has ended.
    Stopped,
}

impl std::fmt::Display for State {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// One container.
pub struct Container {
    /// The host's name for it.
    pub id: String,
    /// Where its files are.
    pub paths: Paths,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Its first process.
    pub init: Arc<Process>,
    /// What processes of exec inherit.
    pub for_exec: ForExec,
    /// Its bind mounts.
    pub bound: Vec<PathBuf>,
    /// Serialises requests that change it.
    pub turn: tokio::sync::Mutex<()>,
    /// The number of out-of-memory kills that have been reported.
    pub oom_kills: Mutex<u64>,
    /// Its PID namespace is not its own, so the kernel does not end its processes with the first one.
    pub shares_pids: bool,
    /// The disks that it uses as devices.
    pub disks: Vec<Renumbered>,
    changing: Mutex<Changing>,
}

struct Changing {
    started: bool,
    paused: bool,
    execs: HashMap<String, Arc<Process>>,
    /// The order in which processes of exec were added.
    order: Vec<String>,
    devices: Option<Attached>,
    report: Option<Report>,
}

impl Container {
    /// A container that has just been made.
    fn new(
        id: &str,
        paths: Paths,
        init: Arc<Process>,
        for_exec: ForExec,
        bound: Vec<PathBuf>,
        devices: Attached,
        report: Report,
    ) -> Self {
        Self {
            id: id.to_owned(),
            cgroup: Cgroup::of(&paths.name),
            paths,
            init,
            for_exec,
            bound,
            turn: tokio::sync::Mutex::new(()),
            oom_kills: Mutex::new(0),
            shares_pids: false,
            disks: Vec::new(),
            changing: Mutex::new(Changing {
                started: false,
                paused: false,
                execs: HashMap::new(),
                order: Vec::new(),
                devices: Some(devices),
                report: Some(report),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Its state now.
    pub fn state(&self) -> State {
        let changing = self.lock();
        match (self.init.exit().is_some(), changing.started, changing.paused) {
            (true, ..) => State::Stopped,
            (_, false, _) => State::Created,
            (_, _, true) => State::Paused,
            _ => State::Running,
        }
    }

    /// Fails unless the state is one of `states`.
    pub fn require(&self, states: &[State], wanted: &'static str) -> Result<(), LookupError> {
        let state = self.state();
        if states.contains(&state) {
            return Ok(());
        }
        Err(LookupError::State { id: self.id.clone(), state, wanted })
    }

    /// Records whether it is frozen.
    pub fn set_paused(&self, paused: bool) {
        self.lock().paused = paused;
    }

    /// The process with `exec_id`; the first one if that is empty.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, LookupError> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        self.lock().execs.get(exec_id).cloned().ok_or_else(|| LookupError::NoProcess(exec_id.to_owned()))
    }

    /// Fails if a later process cannot be called `exec_id`, or there are too many.
    fn check_new_exec(&self, exec_id: &str) -> Result<(), LookupError> {
        let changing = self.lock();
        if changing.execs.get(exec_id).is_some_and(|process| process.exit().is_none()) {
            return Err(LookupError::ProcessExists(exec_id.to_owned()));
        }
        if changing.execs.len() >= EXECS_MAX + ENDED_EXECS_MAX {
            return Err(LookupError::TooManyProcesses);
        }
        Ok(())
    }

    /// Adds a process of exec, and removes the oldest ended ones.
    fn add_exec(&self, process: Arc<Process>) {
        let mut changing = self.lock();
        let id = process.exec_id.clone();
        changing.order.retain(|other| *other != id);
        changing.order.push(id.clone());
        changing.execs.insert(id, process);
        let Changing { execs, order, .. } = &mut *changing;
        let ended = |execs: &HashMap<String, Arc<Process>>, id: &String| {
            execs.get(id).is_none_or(|process| process.exit().is_some())
        };
        let mut surplus = order.iter().filter(|id| ended(execs, id)).count().saturating_sub(ENDED_EXECS_MAX);
        order.retain(|id| {
            let forget = surplus > 0 && ended(execs, id);
            if forget {
                surplus -= 1;
                execs.remove(id);
            }
            !forget
        });
    }

    /// Every process that was started in it by the host.
    fn processes(&self) -> Vec<Arc<Process>> {
        let mut all: Vec<_> = self.lock().execs.values().cloned().collect();
        all.push(self.init.clone());
        all
    }

    /// Replaces the device rules.
    pub fn set_devices(&self, rules: &[devices_bpf::Rule]) -> Result<(), devices_bpf::DeviceRulesError> {
        let mut changing = self.lock();
        let attached = devices_bpf::attach(self.cgroup.directory(), rules, changing.devices.as_ref())?;
        changing.devices = Some(attached);
        Ok(())
    }

    fn take_report(&self) -> Option<Report> {
        self.lock().report.take()
    }

    fn mark_started(&self) {
        self.lock().started = true;
    }
}

/// A container's files in the guest.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The container's name in paths: its id, shortened if it is too long for one.
    pub name: String,
}

impl Paths {
    /// The directory above all containers' own.
    pub const CONTAINERS: &'static str = "/run/pouch/containers";
    /// The directory of libcontainer's own state.
    pub const STATE: &'static str = "/run/pouch/state";

    /// The paths of the container with `id`.
    pub fn of(id: &str) -> Self {
        const NAME_MAX: usize = 128;
        if id.len() <= NAME_MAX {
            return Self { name: id.to_owned() };
        }
        // FNV-1a: ids of one guest come from one engine, which does not look for collisions;
        // one would be refused as an existing directory.
        let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self { name: format!("{}-{hash:016x}", &id[..NAME_MAX - 17]) }
    }

    /// The container's directory, which is its bundle as well.
    pub fn bundle(&self) -> PathBuf {
        Path::new(Self::CONTAINERS).join(&self.name)
    }

    /// libcontainer's directory for it.
    pub fn state(&self) -> PathBuf {
        Path::new(Self::STATE).join(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_a_directory() {
        assert_eq!(Paths::of("abc").name, "abc");
        let (a, b) = (Paths::of(&("x".repeat(500) + "a")), Paths::of(&("x".repeat(500) + "b")));
        assert!(a.name != b.name && a.name.len() == 128);
    }
}
