//! containerd, used through its command line `ctr`.

use std::fs;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::bundle::unique_id;
use crate::{Invocation, Output, eventually, has_vm, processes};

/// The image that tests use unless they name another.
pub const IMAGE: &str = "docker.io/pouch-test/busybox:latest";

/// The runtime that is tested, by containerd's name.
pub fn runtime() -> &'static str {
    if has_vm() { "io.containerd.pouch-vm.v2" } else { "io.containerd.runc.v2" }
}

/// `ctr` with these arguments.
pub fn ctr(arguments: &[&str]) -> Invocation {
    Invocation::of("ctr", arguments)
}

/// `ctr run` with the runtime that is tested.
pub fn ctr_run(options: &[&str], image: &str, id: &str, command: &[&str]) -> Invocation {
    ctr(&[&["run", "--runtime", runtime()], options, &[image, id], command].concat())
}

/// Runs a shell script in a container of the image busybox, which is removed then.
pub fn sh(options: &[&str], script: &str) -> Output {
    ctr_run(&[&["--rm"], options].concat(), IMAGE, &unique_id(), &["/bin/sh", "-c", script]).run()
}

/// A container of containerd. It is removed by force when it is dropped.
pub struct CtrContainer {
    /// Its ID.
    pub id: String,
}

impl CtrContainer {
    /// Starts a shell script in the background.
    #[track_caller]
    pub fn start(options: &[&str], script: &str) -> Self {
        let container = CtrContainer { id: unique_id() };
        let command = ["/bin/sh", "-c", script];
        let run = ctr_run(&[&["--detach"], options].concat(), IMAGE, &container.id, &command);
        run.leaves_something_behind().run().ok();
        container
    }

    /// Starts a container that does nothing until it is told to end.
    #[track_caller]
    pub fn idle(options: &[&str]) -> Self {
        Self::start(options, "trap 'exit 7' TERM; while :; do sleep 1000 & wait; done")
    }

    /// A container that something else makes, to be removed in the end.
    pub fn named(id: &str) -> Self {
        CtrContainer { id: id.to_owned() }
    }

    /// `ctr task` with this container as the last argument.
    pub fn task(&self, arguments: &[&str]) -> Invocation {
        ctr(&[&["task"], arguments, &[&self.id]].concat())
    }

    /// Runs a command in it, with these options.
    pub fn exec(&self, options: &[&str], command: &[&str]) -> Invocation {
        let all = ["task", "exec", "--exec-id", &unique_id()];
        ctr(&[&all, options, &[&self.id], command].concat())
    }

    /// Its line of `ctr task ls`: PID and status; none if it has no task.
    pub fn listed(&self) -> Option<(i32, String)> {
        let list = ctr(&["task", "ls"]).run().ok();
        let line = list.lines().find(|line| line.split_whitespace().next() == Some(&self.id))?;
        let mut fields = line.split_whitespace().skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.to_owned()))
    }

    /// The status of its task.
    #[track_caller]
    pub fn status(&self) -> String {
        self.listed().expect("it has a task").1
    }

    /// The PID of its task.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        self.listed().expect("it has a task").0
    }

    /// Waits for its task to stop.
    #[track_caller]
    pub fn await_stopped(&self) {
        eventually("the task stops", || self.status() == "STOPPED");
    }

    /// Removes its stopped task; returns what `ctr` says.
    pub fn remove_task(&self) -> Output {
        self.task(&["rm"]).run()
    }

    /// The PID of its shim.
    #[track_caller]
    pub fn shim(&self) -> i32 {
        let wanted = ["-id", &self.id];
        let found = processes::all().into_iter().find(|(_, process)| {
            process.arguments.first().is_some_and(|program| program.contains("containerd-shim"))
                && process.arguments.windows(2).any(|pair| pair == wanted)
        });
        found.expect("it has a shim").0
    }
}

impl Drop for CtrContainer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string("/var/log/containerd.log").unwrap_or_default();
            let lines: Vec<&str> = log.lines().rev().take(20).collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            eprintln!("--- {}: {:?}\n--- containerd's log:\n{}", self.id, self.listed(), lines.join("\n"));
        }
        let _ = self.task(&["kill", "--signal", "SIGKILL"]).run();
        let _ = self.task(&["rm", "--force"]).run();
        let _ = ctr(&["container", "rm", &self.id]).run();
    }
}

/// The events of containerd, from the start of this on.
pub struct Events {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Events {
    /// Follows events. Returns when containerd sends them.
    pub fn follow() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut command = ctr(&["events"]).into_command();
        let output = file.reopen().unwrap();
        let child = command.stdin(Stdio::null()).stdout(output).stderr(Stdio::null()).spawn().unwrap();
        let events = Events { child, file };
        // Whether they are sent shows when one arrives.
        let probe = unique_id();
        eventually("containerd sends events", || {
            ctr(&["namespaces", "label", "default", &format!("probe={probe}")]).run().ok();
            events.text().contains(&probe)
        });
        events
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file.path()).unwrap_or_default()
    }

    /// The topics of a container's task, and what they say, in their order.
    pub fn of(&self, container: &str) -> Vec<(String, Value)> {
        let text = self.text();
        // TIME ZONE … NAMESPACE TOPIC JSON
        let lines = text.lines().filter_map(|line| {
            let (head, json) = line.split_once(" {")?;
            let topic = head.split_whitespace().next_back()?;
            let value: Value = serde_json::from_str(&format!("{{{json}")).ok()?;
            let ours = value["container_id"] == container && topic.starts_with("/tasks/");
            ours.then(|| (topic.to_owned(), value))
        });
        lines.collect()
    }

    /// Waits until a topic of a container arrives; returns all its topics then.
    pub fn until(&self, container: &str, topic: &str) -> Vec<String> {
        let mut topics = Vec::new();
        eventually(&format!("the event {topic}"), || {
            topics = self.of(container).into_iter().map(|(topic, _)| topic).collect();
            topics.iter().any(|found| found == topic)
        });
        topics
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
