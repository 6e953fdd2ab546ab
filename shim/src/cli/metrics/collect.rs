//! Collects the metrics of all VMs and containers.
//!
//! There is no daemon: each collection reads the state files, asks the host processes, and reads `/proc`.

use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use procfs::process::Process;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use serde_json::Value;

use crate::container::lookup::list;
use crate::container::state::HostProcess;
use crate::container::{ContainerDir, State, StateError, Status};
use crate::host::client::HostAddress;
use crate::host::protocol::{Answer, Counters, Request};

/// How long host processes may take for their answers altogether. Prometheus waits ten seconds by default.
const PATIENCE: Duration = Duration::from_secs(5);

/// The metrics could not be collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The states.
    #[error(transparent)]
    State(#[from] StateError),
    /// The text.
    #[error("the metrics could not be written as text")]
    Text(#[from] std::fmt::Error),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfContainer {
    container: String,
    sandbox: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfStatus {
    container: String,
    sandbox: String,
    status: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfProcess {
    sandbox: String,
    process: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPhase {
    sandbox: String,
    phase: &'static str,
}

type Seconds = Counter<f64, AtomicU64>;
type Level = Gauge<f64, AtomicU64>;

/// The metrics, by their labels.
#[derive(Default)]
struct Tables {
    status: Family<OfStatus, Gauge>,
    answers: Family<OfContainer, Gauge>,
    cpu: Family<OfContainer, Seconds>,
    memory: Family<OfContainer, Level>,
    memory_limit: Family<OfContainer, Level>,
    processes: Family<OfContainer, Gauge>,
    oom_kills: Family<OfContainer, Counter>,
    exit_status: Family<OfContainer, Gauge>,
    host_cpu: Family<OfProcess, Seconds>,
    host_memory: Family<OfProcess, Level>,
    start: Family<OfPhase, Level>,
}

impl Tables {
    fn register(&self, registry: &mut Registry) {
        let (seconds, bytes) = (|| Unit::Seconds, || Unit::Bytes);
        registry.register("container_status", "1 for the status of the container", self.status.clone());
        registry.register(
            "container_answers",
            "1 if the container's host process answered in time, else 0",
            self.answers.clone(),
        );
        registry.register_with_unit(
            "container_cpu",
            "CPU time of the container in its guest",
            seconds(),
            self.cpu.clone(),
        );
        registry.register_with_unit(
            "container_memory",
            "Memory of the container in its guest",
            bytes(),
            self.memory.clone(),
        );
        registry.register_with_unit(
            "container_memory_limit",
            "Memory limit of the container in its guest",
            bytes(),
            self.memory_limit.clone(),
        );
        registry.register("container_processes", "Processes of the container", self.processes.clone());
        registry.register(
            "container_oom_kills",
            "Processes that the guest's out-of-memory killer killed",
            self.oom_kills.clone(),
        );
        registry.register(
            "container_exit_status",
            "Exit status of a container that has stopped and was not removed",
            self.exit_status.clone(),
        );
        registry.register_with_unit(
            "sandbox_host_cpu",
            "CPU time of the VM's processes on the host: the VMM, which runs the guest, and the host process",
            seconds(),
            self.host_cpu.clone(),
        );
        registry.register_with_unit(
            "sandbox_host_memory",
            "Memory of the VM's processes on the host (PSS); that of the VMM includes guest memory",
            bytes(),
            self.host_memory.clone(),
        );
        registry.register_with_unit(
            "sandbox_start",
            "Time from the start of the sandbox's host process to the end of a phase",
            seconds(),
            self.start.clone(),
        );
    }

    /// What the state tells.
    fn add(&self, dir: &ContainerDir, state: &State) {
        let labels = labels(dir);
        let OfContainer { container, sandbox } = labels.clone();
        let status = OfStatus { container, sandbox: sandbox.clone(), status: state.status.to_string() };
        self.status.get_or_create(&status).set(1);
        if let (Status::Stopped, Some(exit_status)) = (state.status, state.exit_status) {
            self.exit_status.get_or_create(&labels).set(exit_status.into());
        }
        if dir.pod().is_some() {
            return;
        }
        for (process, which) in [("vmm", state.vmm), ("host", state.host)] {
            let Some(found) = which.filter(HostProcess::alive).and_then(used) else { continue };
            let labels = OfProcess { sandbox: sandbox.clone(), process };
            self.host_cpu.get_or_create(&labels).inc_by(found.cpu.as_secs_f64());
            self.host_memory.get_or_create(&labels).set(found.memory as f64);
        }
        for (phase, milliseconds) in state.phases.iter().flat_map(|phases| phases.named()) {
            let labels = OfPhase { sandbox: sandbox.clone(), phase };
            self.start.get_or_create(&labels).set(milliseconds / 1e3);
        }
    }

    /// What the container's host process told.
    fn add_counters(&self, labels: &OfContainer, counters: Option<&Counters>) {
        self.answers.get_or_create(labels).set(counters.is_some().into());
        let Some(Counters { stats, oom_kills }) = counters else { return };
        let number = |pointer: &str| stats.pointer(pointer).and_then(Value::as_u64);
        if let Some(nanoseconds) = number("/data/cpu/usage/total") {
            self.cpu.get_or_create(labels).inc_by(nanoseconds as f64 / 1e9);
        }
        if let Some(bytes) = number("/data/memory/usage/usage") {
            self.memory.get_or_create(labels).set(bytes as f64);
        }
        if let Some(bytes) = number("/data/memory/usage/limit").filter(|bytes| *bytes != u64::MAX) {
            self.memory_limit.get_or_create(labels).set(bytes as f64);
        }
        if let Some(processes) = number("/data/pids/current") {
            self.processes.get_or_create(labels).set(i64::try_from(processes).unwrap_or(i64::MAX));
        }
        self.oom_kills.get_or_create(labels).inc_by(*oom_kills);
    }
}

fn labels(dir: &ContainerDir) -> OfContainer {
    let container = dir.id().to_string();
    let pod = dir.pod().and_then(Path::file_name).map(|pod| pod.to_string_lossy().into_owned());
    OfContainer { sandbox: pod.unwrap_or_else(|| container.clone()), container }
}

/// What a process has used.
struct Used {
    cpu: Duration,
    /// Bytes (PSS).
    memory: u64,
}

fn used(process: HostProcess) -> Option<Used> {
    let process = Process::new(process.pid).ok()?;
    let stat = process.stat().ok()?;
    let ticks = stat.utime.saturating_add(stat.stime) as f64;
    let cpu = Duration::from_secs_f64(ticks / procfs::ticks_per_second() as f64);
    // A process that just ended has none.
    let maps = process.smaps_rollup().ok()?;
    let memory = maps.memory_map_rollup.iter().filter_map(|map| map.extension.map.get("Pss")).sum();
    Some(Used { cpu, memory })
}

/// The metrics of all containers below the root of the states, as text.
///
/// # Errors
/// [`CollectError`] if the states cannot be listed.
pub fn collect(root: &Path) -> Result<String, CollectError> {
    let tables = Tables::default();
    let (sender, receiver) = mpsc::channel();
    let mut awaited = Vec::new();
    for dir in list(root)? {
        // Being created or deleted, or damaged.
        let Ok(state) = dir.load() else { continue };
        tables.add(&dir, &state);
        if ![Status::Running, Status::Paused].contains(&state.status) {
            continue;
        }
        let (address, labels, sender) = (HostAddress::of(&dir), labels(&dir), sender.clone());
        awaited.push(labels.clone());
        let ask = move || {
            // The receiver may have gone.
            let _ = sender.send((labels, counters(&address)));
        };
        // Without a thread it counts as silent.
        let _ = thread::Builder::new().name("metrics".to_owned()).stack_size(256 * 1024).spawn(ask);
    }
    drop(sender);
    let deadline = Instant::now() + PATIENCE;
    while let Ok((labels, counters)) =
        receiver.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        awaited.retain(|other| *other != labels);
        // The sandbox of a pod has no process, and refuses.
        if !matches!(counters, Err(Silence::Refused)) {
            tables.add_counters(&labels, counters.as_ref().ok());
        }
    }
    awaited.iter().for_each(|labels| tables.add_counters(labels, None));
    let mut registry = Registry::with_prefix("pouch_vm");
    tables.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Why there are no counters.
enum Silence {
    Refused,
    Gone,
}

fn counters(address: &HostAddress) -> Result<Counters, Silence> {
    use crate::host::client::ClientError;
    match address.connect().and_then(|host| host.ask(&Request::Stats)) {
        Ok((Answer::Stats(counters), _)) => Ok(counters),
        Err(ClientError::Refused(_)) => Err(Silence::Refused),
        _ => Err(Silence::Gone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::phases::Phases;
    use serde_json::json;

    fn text(tables: &Tables) -> String {
        let mut registry = Registry::with_prefix("pouch_vm");
        tables.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn a_container_has_its_counters_and_the_vm_its_processes() {
        let root = tempfile::tempdir().unwrap();
        let dir = ContainerDir::new(root.path(), &"a".parse().unwrap());
        let this = HostProcess::find(std::process::id() as i32);
        let state = serde_json::from_value::<State>(json!({
            "id": "a", "status": "running", "host": this, "vmm": null, "bundle": "/b", "rootfs": "/b/rootfs",
            "created": "", "owner": "root", "annotations": {}, "cgroup": null, "exitStatus": null, "vmEnd": null,
        }));
        let phases = Some(Phases { vmm_started: 5.0, guest_answered: 100.0, container_created: 250.0 });
        let state = State { phases, ..state.unwrap() };
        let tables = Tables::default();
        tables.add(&dir, &state);
        let stats = json!({"data": {
            "cpu": {"usage": {"total": 1_500_000_000_u64}},
            "memory": {"usage": {"usage": 4096, "limit": u64::MAX}},
            "pids": {"current": 3},
        }});
        tables.add_counters(&labels(&dir), Some(&Counters { stats, oom_kills: 2 }));
        let text = text(&tables);
        for line in [
            r#"pouch_vm_container_status{container="a",sandbox="a",status="running"} 1"#,
            r#"pouch_vm_container_answers{container="a",sandbox="a"} 1"#,
            r#"pouch_vm_container_cpu_seconds_total{container="a",sandbox="a"} 1.5"#,
            r#"pouch_vm_container_memory_bytes{container="a",sandbox="a"} 4096"#,
            r#"pouch_vm_container_processes{container="a",sandbox="a"} 3"#,
            r#"pouch_vm_container_oom_kills_total{container="a",sandbox="a"} 2"#,
            r#"pouch_vm_sandbox_start_seconds{sandbox="a",phase="container_created"} 0.25"#,
            r#"pouch_vm_sandbox_host_cpu_seconds_total{sandbox="a",process="host"}"#,
            r#"pouch_vm_sandbox_host_memory_bytes{sandbox="a",process="host"}"#,
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("pouch_vm_container_memory_limit_bytes{"), "there is no limit:\n{text}");
        assert!(!text.contains(r#"process="vmm""#), "there is no VMM:\n{text}");
    }

    #[test]
    fn one_that_has_stopped_has_its_status_and_one_that_is_silent_is_told() {
        let root = tempfile::tempdir().unwrap();
        let dir = ContainerDir::new(root.path(), &"a".parse().unwrap());
        let member = dir.of_member(&"b".parse().unwrap());
        let tables = Tables::default();
        let state = serde_json::from_value::<State>(json!({
            "id": "b", "status": "stopped", "host": null, "vmm": null, "bundle": "/b", "rootfs": "/b/rootfs",
            "created": "", "owner": "root", "annotations": {}, "cgroup": null, "exitStatus": 137, "vmEnd": null,
        }));
        tables.add(&member, &state.unwrap());
        tables.add_counters(&labels(&dir), None);
        let text = text(&tables);
        assert!(text.contains(r#"pouch_vm_container_exit_status{container="b",sandbox="a"} 137"#), "{text}");
        assert!(text.contains(r#"pouch_vm_container_answers{container="a",sandbox="a"} 0"#), "{text}");
    }

    #[test]
    fn without_containers_there_is_an_empty_text() {
        let root = tempfile::tempdir().unwrap();
        assert!(collect(&root.path().join("none")).unwrap().ends_with("# EOF\n"));
    }
}
