//! Containers: their life from CreateContainer to DeleteContainer.

pub mod cgroup;
pub mod copyup;
pub mod create;
pub mod delete;
pub mod devices_bpf;
pub mod exec;
pub mod launch;
pub mod list;
pub mod spec;
pub mod start;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use ttrpc::proto::Code;

use crate::error::{Coded, RequestError};
use crate::process::Process;
use cgroup::Cgroup;
use devices_bpf::Attached;
use launch::Report;
use spec::ForExec;

/// The longest id that the protocol allows.
const ID_MAX: usize = 1024;
/// Ends of later processes that are remembered; an engine that probes a container every
/// second must not fill the guest's memory.
const ENDED_EXECS_MAX: usize = 128;
/// How many containers one guest may hold.
pub const CONTAINERS_MAX: usize = 1024;

/// Why there is no such container or process, or none in the right state.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// The id is wrong in itself.
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
    /// The guest is full.
    #[error("the guest holds {CONTAINERS_MAX} containers already")]
    TooMany,
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
            Self::TooMany => Code::RESOURCE_EXHAUSTED,
            Self::State { .. } => Code::FAILED_PRECONDITION,
        }
    }
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, its first process waits.
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
    /// What later processes take over.
    pub for_exec: ForExec,
    /// Requests that change it take turns.
    pub turn: tokio::sync::Mutex<()>,
    /// The out-of-memory kills that have been told already.
    pub oom_kills: Mutex<u64>,
    changing: Mutex<Changing>,
}

struct Changing {
    started: bool,
    paused: bool,
    execs: HashMap<String, Arc<Process>>,
    /// The order in which later processes were added.
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
        devices: Attached,
        report: Report,
    ) -> Self {
        Self {
            id: id.to_owned(),
            cgroup: Cgroup::of(&paths.name),
            paths,
            init,
            for_exec,
            turn: tokio::sync::Mutex::new(()),
            oom_kills: Mutex::new(0),
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

    /// Notes that it is frozen or not.
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

    /// Adds a later process, and forgets the oldest that have ended.
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

    /// Sets the device rules anew.
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

/// Checks a container's or process's id; `field` is its name in the request.
pub fn check_id(field: &str, id: &str) -> Result<(), RequestError> {
    if id.is_empty() || id.len() > ID_MAX {
        return Err(RequestError::new(
            field,
            format!("must have 1 to {ID_MAX} characters, not {}", id.len()),
        ));
    }
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if !id.bytes().all(good) || !id.as_bytes()[0].is_ascii_alphanumeric() {
        let reason = "must be letters, digits and _ + - . only, starting with a letter or digit";
        return Err(RequestError::new(field, reason));
    }
    Ok(())
}

/// The containers of the guest.
#[derive(Default)]
pub struct Containers(Mutex<HashMap<String, Slot>>);

enum Slot {
    /// Its id is taken while it is being made.
    Reserved,
    Ready(Arc<Container>),
}

/// An id that is taken; freed again when this is dropped.
struct Reservation<'a> {
    containers: &'a Containers,
    id: String,
    done: bool,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.containers.lock().remove(&self.id);
        }
    }
}

impl Reservation<'_> {
    fn fill(mut self, container: Arc<Container>) {
        self.containers.lock().insert(self.id.clone(), Slot::Ready(container));
        self.done = true;
    }
}

impl Containers {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn reserve(&self, id: &str) -> Result<Reservation<'_>, LookupError> {
        let mut containers = self.lock();
        if containers.contains_key(id) {
            return Err(LookupError::ContainerExists(id.to_owned()));
        }
        if containers.len() >= CONTAINERS_MAX {
            return Err(LookupError::TooMany);
        }
        containers.insert(id.to_owned(), Slot::Reserved);
        Ok(Reservation { containers: self, id: id.to_owned(), done: false })
    }

    /// The container with `id`.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, LookupError> {
        check_id("container_id", id)?;
        match self.lock().get(id) {
            Some(Slot::Ready(container)) => Ok(container.clone()),
            _ => Err(LookupError::NoContainer(id.to_owned())),
        }
    }

    fn remove(&self, id: &str) {
        self.lock().remove(id);
    }

    /// Every container that is ready.
    pub fn all(&self) -> Vec<Arc<Container>> {
        self.lock()
            .values()
            .filter_map(|slot| match slot {
                Slot::Ready(container) => Some(container.clone()),
                Slot::Reserved => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked() {
        for good in ["a", "0", "a_b+c-d.e", &"x".repeat(1024)] {
            assert!(check_id("container_id", good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", "a/b", "ä", "a b", "a\0", &"x".repeat(1025)] {
            let error = check_id("exec_id", bad).unwrap_err().to_string();
            assert!(error.starts_with("exec_id: "), "{bad}");
        }
    }

    #[test]
    fn names_fit_into_a_directory() {
        assert_eq!(Paths::of("abc").name, "abc");
        let (a, b) = (Paths::of(&("x".repeat(500) + "a")), Paths::of(&("x".repeat(500) + "b")));
        assert!(a.name != b.name && a.name.len() == 128);
    }

    #[test]
    fn an_id_is_free_again_when_its_making_fails() {
        let containers = Containers::default();
        let reservation = containers.reserve("a").unwrap();
        assert!(matches!(containers.reserve("a"), Err(LookupError::ContainerExists(_))));
        assert!(matches!(containers.get("a"), Err(LookupError::NoContainer(_))));
        drop(reservation);
        assert!(containers.reserve("a").is_ok());
    }
}
