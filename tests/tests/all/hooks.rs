//! Hooks of the specification: when, where and with what they are run.

use std::fs;
use std::path::Path;

use pouch_tests::bundle::unique_id;
use pouch_tests::{Bundle, Container, Invocation, Leftovers, eventually, processes, vm_only};
use serde_json::{Value, json};

/// A hook of a shell script, which finds the folder of the bundle in `$0`.
fn hook(folder: &Path, script: &str) -> Value {
    json!({"path": "/bin/sh", "args": [folder, "-c", script], "env": ["PATH=/usr/bin:/bin"]})
}

/// A hook that notes its point and the state that it gets.
fn note(folder: &Path, point: &str) -> Value {
    hook(folder, &format!("echo {point} $(cat | tr -d ' \\n') >> $0/notes"))
}

const ON_HOST: [&str; 5] = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];

/// What the hooks noted, as (point, state).
fn notes(folder: &Path) -> Vec<(String, Value)> {
    let text = fs::read_to_string(folder.join("notes")).unwrap_or_default();
    let parse = |line: &str| {
        let (point, state) = line.split_once(' ').unwrap();
        (point.to_owned(), serde_json::from_str(state).unwrap())
    };
    text.lines().map(parse).collect()
}

fn points(folder: &Path) -> Vec<String> {
    notes(folder).into_iter().map(|(point, _)| point).collect()
}

fn noting(bundle: Bundle) -> Bundle {
    let folder = bundle.path().to_owned();
    let all = ON_HOST.iter().map(|point| (point.to_string(), json!([note(&folder, point)]))).collect();
    bundle.set("/hooks", Value::Object(all))
}

#[test]
fn hooks_come_in_order_and_get_the_state() {
    // runc 1.1 runs those of poststart during `create`.
    vm_only!();
    let container = noting(Bundle::debian().args(["sleep", "1000"])).create();
    let folder = container.bundle.path().to_owned();
    let pid = container.pid();
    assert_eq!(points(&folder), ON_HOST[..3]);
    container.start();
    assert_eq!(points(&folder), ON_HOST[..4]);
    container.kill("KILL");
    container.reap(pid);
    container.await_status("stopped");
    assert_eq!(points(&folder), ON_HOST[..4]);
    container.delete();
    assert_eq!(points(&folder), ON_HOST);
    for ((point, state), status) in
        notes(&folder).iter().zip(["creating", "creating", "creating", "running", "stopped"])
    {
        assert_eq!(state["status"], status, "{point}");
        assert_eq!(state["id"], json!(container.id));
        assert_eq!(state["bundle"], json!(folder));
        assert!(state["ociVersion"].as_str().unwrap().starts_with("1."), "{state}");
        if status != "stopped" {
            assert_eq!(state["pid"], json!(pid), "{point}");
        }
    }
}

#[test]
fn run_has_them_all() {
    let bundle = noting(Bundle::busybox().args(["true"]));
    bundle.run().ok();
    assert_eq!(points(bundle.path()), ON_HOST);
}

#[test]
fn start_container_is_run_in_the_container() {
    let bundle = Bundle::debian().sh("cat /proof");
    let script = "grep -q '\"id\"' && hostname > /proof && echo $0 $A >> /proof";
    let hook =
        json!([{"path": "/bin/sh", "args": ["named", "-c", script], "env": ["PATH=/usr/bin:/bin", "A=b"]}]);
    let bundle = bundle.set("/hostname", json!("inside")).set("/hooks", json!({"startContainer": hook}));
    assert_eq!(bundle.run().ok(), "inside\nnamed b");
}

#[test]
fn create_container_is_in_the_containers_network_namespace_of_the_host() {
    let bundle = Bundle::busybox().args(["sleep", "1000"]);
    let folder = bundle.path().to_owned();
    let look = |name: &str| json!([hook(&folder, &format!("readlink /proc/self/ns/net > $0/{name}"))]);
    let hooks = json!({"createRuntime": look("runtime"), "createContainer": look("container")});
    let container = bundle.set("/hooks", hooks).create();
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap().display().to_string();
    let seen = |name| fs::read_to_string(folder.join(name)).unwrap().trim().to_owned();
    assert_eq!(seen("runtime"), namespace("self"));
    assert_eq!(seen("container"), namespace(&container.pid().to_string()));
    assert_ne!(seen("runtime"), seen("container"));
}

#[test]
fn nothing_left_when_a_hook_of_create_fails() {
    // runc does not name the hook's field, nor run those of poststop.
    vm_only!();
    for point in &ON_HOST[..3] {
        let bundle = noting(Bundle::busybox().args(["true"]));
        let folder = bundle.path().to_owned();
        let failing = json!([hook(&folder, "exit 0"), hook(&folder, "echo no luck >&2; exit 3")]);
        let bundle = bundle.set(&format!("/hooks/{point}"), failing);
        bundle.write();
        Invocation::new(["list"]).run();
        let _ = fs::create_dir("/run/pouch-vm");
        let before = Leftovers::picture();
        let id = unique_id();
        let output = Invocation::new(["create", "--bundle", folder.to_str().unwrap(), &id]).run();
        output.fails_naming(&[&format!("hooks.{point}[1]"), "status 3", "no luck"]);
        Invocation::new(["state", &id]).run().fails_naming(&["does not exist"]);
        before.check();
        assert_eq!(points(&folder).last().map(String::as_str), Some("poststop"));
        fs::remove_file(folder.join("notes")).unwrap();
    }
}

#[test]
fn a_hook_that_hangs_is_killed_after_its_time() {
    // runc waits for whoever has the hook's output open: here for the `sleep` that it leaves.
    vm_only!();
    let bundle = Bundle::busybox().args(["true"]);
    let mut hook = hook(bundle.path(), "echo $$ > $0/pid; sleep 1000 & wait");
    hook["timeout"] = json!(2);
    let bundle = bundle.set("/hooks", json!({"createRuntime": [hook]}));
    bundle.run().fails_naming(&["hooks.createRuntime[0]", "after 2 s"]);
    let pid: i32 = fs::read_to_string(bundle.path().join("pid")).unwrap().trim().parse().unwrap();
    eventually("the hook is gone", || !processes::runs(pid));
}

#[test]
fn a_failure_after_the_end_is_a_warning() {
    // runc 1.1 takes the first for the error of `delete`.
    vm_only!();
    let bundle = Bundle::busybox().args(["sleep", "1000"]);
    let folder = bundle.path().to_owned();
    let fail = json!([hook(&folder, "exit 4"), note(&folder, "next")]);
    let bundle = bundle.set("/hooks", json!({"poststop": fail}));
    let log = folder.join("log");
    let container = Container::create(bundle, &[]);
    let pid = container.pid();
    container.start();
    container.kill("KILL");
    container.reap(pid);
    container.await_status("stopped");
    Invocation::new(["--log", log.to_str().unwrap(), "delete", &container.id]).run().ok();
    assert_eq!(points(&folder), ["next"]);
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("hooks.poststop[0]") && log.contains("status 4"), "{log}");
}

#[test]
fn hooks_run_once_when_several_delete_at_once() {
    // runc runs them for each.
    vm_only!();
    let bundle = Bundle::busybox().args(["true"]);
    let folder = bundle.path().to_owned();
    let container = bundle
        .set("/hooks", json!({"poststop": [hook(&folder, "echo poststop {} >> $0/notes; sleep 1")]}))
        .create();
    let pid = container.pid();
    container.start();
    container.reap(pid);
    container.await_status("stopped");
    let delete = || container.invocation(&["delete", "--force", &container.id]).run().ok();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(delete);
        }
    });
    assert_eq!(points(&folder), ["poststop"]);
    container.operation(&["delete"]).fails_naming(&["does not exist"]);
}

#[test]
fn nothing_left_when_a_hook_after_the_start_fails() {
    // runc 1.1 runs it in `create`.
    vm_only!();
    let bundle = Bundle::busybox().args(["sleep", "1000"]);
    let folder = bundle.path().to_owned();
    let hooks = json!({
        "poststart": [hook(&folder, "echo no luck >&2; exit 4"), note(&folder, "next")],
        "poststop": [note(&folder, "poststop")],
    });
    let bundle = bundle.set("/hooks", hooks);
    Invocation::new(["list"]).run();
    let _ = fs::create_dir("/run/pouch-vm");
    let before = Leftovers::picture();
    let container = bundle.create();
    let pid = container.pid();
    container.operation(&["start"]).fails_naming(&["hooks.poststart[0]", "status 4", "no luck"]);
    container.operation(&["state"]).fails_naming(&["does not exist"]);
    assert_eq!(points(&folder), ["poststop"]);
    container.reap(pid);
    before.check();
}

#[test]
fn nothing_left_of_hooks_that_cannot_be() {
    // runc does not name the field.
    vm_only!();
    for (hooks, field) in [
        (json!({"prestart": [{"path": "relative"}]}), "hooks.prestart[0].path"),
        (
            json!({"poststop": [{"path": "/bin/true"}, {"path": "/bin/true", "timeout": 0}]}),
            "hooks.poststop[1].timeout",
        ),
        (json!({"createRuntime": [{"path": "/no/such"}]}), "hooks.createRuntime[0]"),
    ] {
        let bundle = Bundle::busybox().args(["true"]).set("/hooks", hooks);
        let before = Leftovers::picture();
        bundle.run().fails_naming(&[field]);
        before.check();
    }
}

#[test]
fn nothing_left_of_a_create_that_is_killed_in_a_hook() {
    // runc leaves the hook.
    vm_only!();
    let bundle = Bundle::busybox().args(["true"]);
    let file = bundle.path().join("pid");
    let hook = hook(bundle.path(), "echo $$ > $0/new; mv $0/new $0/pid; exec sleep 1000");
    let bundle = bundle.set("/hooks", json!({"createRuntime": [hook]}));
    bundle.write();
    Invocation::new(["list"]).run();
    let _ = fs::create_dir("/run/pouch-vm");
    let before = Leftovers::picture();
    let id = unique_id();
    let create = Invocation::new(["create", "--bundle", bundle.path().to_str().unwrap(), &id]);
    let mut create = create.into_command().spawn().unwrap();
    eventually("the hook runs", || file.exists());
    let hook: i32 = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    Invocation::new(["start", &id]).run().fails_naming(&["is creating"]);
    create.kill().unwrap();
    create.wait().unwrap();
    eventually("the hook is gone", || !processes::runs(hook));
    Invocation::new(["start", &id]).run().fails_naming(&["is creating"]);
    Invocation::new(["delete", "--force", &id]).run().ok();
    before.check();
}
