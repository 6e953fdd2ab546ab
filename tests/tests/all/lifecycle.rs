//! create, start, kill, delete and what lies between them.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pouch_tests::bundle::unique_id;
use pouch_tests::invocation::{code, wait};
use pouch_tests::{Bundle, Container, HANG, Invocation, eventually, has_vm, processes};
use serde_json::{Value, json};

/// A process that says when it is ready, and ends with 7 on SIGTERM.
const POLITE: &str = "trap 'echo asked to end; exit 7' TERM; echo ready; while :; do sleep 0.1; done";

#[test]
fn a_container_goes_through_its_states() {
    let container = Bundle::debian().sh("echo hello; exit 5").create();
    let pid = container.pid();
    let state = container.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], json!(container.id));
    assert_eq!(state["bundle"], json!(container.bundle.path()));
    assert!(state["ociVersion"].as_str().unwrap().starts_with("1."), "{state}");
    assert!(processes::runs(pid));
    assert_eq!(container.stdout(), "", "nothing of the user's runs before start");

    container.start();
    assert_eq!(container.reap(pid), 5, "the process on the host ends with the container's status");
    container.await_status("stopped");
    assert_eq!(container.stdout(), "hello\n");
    container.delete();
    container.operation(&["state"]).fails_naming(&["does not exist"]);
}

#[test]
fn the_pid_file_has_the_process_of_the_container() {
    let bundle = Bundle::debian().args(["sleep", "1000"]);
    let file = bundle.path().join("pid");
    let container = Container::create(bundle, &["--pid-file", file.to_str().unwrap()]);
    let pid: i32 = fs::read_to_string(&file).unwrap().parse().unwrap();
    assert_eq!(pid, container.pid());
    container.start();
    assert!(processes::runs(pid));
    container.kill("KILL");
    assert_eq!(container.reap(pid), 137);
}

#[test]
fn a_container_that_was_never_started_can_be_killed_and_deleted() {
    let container = Bundle::debian().args(["sleep", "1000"]).create();
    let pid = container.pid();
    container.kill("SIGKILL");
    assert_ne!(container.reap(pid), 0);
    container.await_status("stopped");
    container.delete();
}

#[test]
fn signals_reach_the_process_by_any_name() {
    for signal in ["TERM", "SIGTERM", "15"] {
        let container = Bundle::debian().sh(POLITE).start();
        let pid = container.pid();
        container.await_output("ready");
        container.kill(signal);
        assert_eq!(container.reap(pid), 7, "{signal}");
        assert!(container.stdout().contains("asked to end"));
    }
}

#[test]
fn sigkill_needs_no_consent() {
    let container =
        Bundle::debian().sh("trap '' TERM INT HUP; echo ready; while :; do sleep 0.1; done").start();
    let pid = container.pid();
    container.await_output("ready");
    container.kill("TERM");
    container.kill("INT");
    assert_eq!(container.sh("echo still there"), "still there");
    container.kill("KILL");
    assert_eq!(container.reap(pid), 137);
}

#[test]
fn real_time_signals_reach_the_process() {
    let script = "trap 'exit 9' RTMIN+3; echo ready; while :; do sleep 0.1; done";
    let container = Bundle::debian().args(["bash", "-c", script]).start();
    let pid = container.pid();
    container.await_output("ready");
    // runc knows it by its number only.
    container.kill(if has_vm() { "SIGRTMIN+3" } else { "37" });
    assert_eq!(container.reap(pid), 9);
}

#[test]
fn signals_to_the_process_on_the_host_reach_the_container() {
    let container = Bundle::debian().sh(POLITE).start();
    let pid = container.pid();
    container.await_output("ready");
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert_eq!(container.reap(pid), 7);
}

#[test]
fn run_passes_signals_on() {
    let bundle = Bundle::debian().sh(POLITE);
    let out = bundle.path().join("out");
    let mut command = bundle.run_invocation(&[]).into_command();
    command.stdin(Stdio::null()).stdout(fs::File::create(&out).unwrap()).stderr(Stdio::inherit());
    let mut child = command.spawn().unwrap();
    eventually("the container is ready", || fs::read_to_string(&out).unwrap().contains("ready"));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(code(wait(&mut child, "run", HANG)), 7);
}

#[test]
fn run_can_be_detached() {
    let bundle = Bundle::debian().sh("echo started; sleep 1000");
    bundle.write();
    let (id, path) = (unique_id(), bundle.path().to_str().unwrap());
    let pid_file = bundle.path().join("pid");
    let arguments = ["run", "--detach", "--pid-file", pid_file.to_str().unwrap(), "--bundle", path, &id];
    Invocation::new(arguments).leaves_something_behind().run().ok();
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let state: Value = serde_json::from_str(&Invocation::new(["state", &id]).run().ok()).unwrap();
    assert_eq!((state["status"].as_str(), state["pid"].as_i64()), (Some("running"), Some(pid.into())));
    Invocation::new(["delete", "--force", &id]).run().ok();
    eventually("the container's process is gone", || !processes::runs(pid));
}

#[test]
fn run_removes_the_container() {
    let bundle = Bundle::debian().args(["true"]);
    bundle.run().ok();
    let list = Invocation::new(["list", "-q"]).run().ok();
    assert!(!list.contains(&format!("test-{}-", std::process::id())), "{list}");
}

#[test]
fn delete_refuses_a_running_container() {
    let container = Bundle::debian().args(["sleep", "1000"]).start();
    container.operation(&["delete"]).fails_naming(&[]);
    assert_eq!(container.status(), "running");
    container.delete_by_force();
    container.operation(&["state"]).fails_naming(&["does not exist"]);
}

#[test]
fn delete_by_force_does_not_mind_if_there_is_nothing() {
    Invocation::new(["delete", "--force", "no-such-container"]).run().ok();
    Invocation::new(["delete", "no-such-container"]).run().fails_naming(&["does not exist"]);
}

#[test]
fn a_container_can_be_started_once() {
    let container = Bundle::debian().args(["sleep", "1000"]).start();
    container.operation(&["start"]).fails_naming(&[]);
    assert_eq!(container.status(), "running");
    let pid = container.pid();
    container.kill("KILL");
    container.reap(pid);
    container.await_status("stopped");
    container.operation(&["start"]).fails_naming(&[]);
}

#[test]
fn an_id_is_used_once() {
    let container = Bundle::debian().args(["sleep", "1000"]).start();
    let other = Bundle::debian().args(["true"]);
    other.write();
    let arguments = ["create", "--bundle", other.path().to_str().unwrap(), &container.id];
    Invocation::new(arguments).run().fails_naming(&["exist"]);
    assert_eq!(container.sh("echo unharmed"), "unharmed");
}

#[test]
fn states_can_be_kept_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let bundle = Bundle::debian().args(["sleep", "1000"]);
    let container = Container::create_with(bundle, &["--root", root.path().to_str().unwrap()], &[]);
    container.start();
    assert_eq!(container.status(), "running");
    assert!(!Invocation::new(["list", "-q"]).run().ok().contains(&container.id));
    assert!(container.invocation(&["list", "-q"]).run().ok().contains(&container.id));
    container.delete_by_force();
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
}
