//! `events`: counters, and being out of memory.

use std::fs::File;
use std::process::{Child, Stdio};

use pouch_tests::invocation::{code, wait};
use pouch_tests::{Bundle, Container, HANG, eventually};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// `events` of a container with these options, whose output goes to a file.
fn follow(container: &Container, options: &[&str]) -> Child {
    let words = [&["events"], options, &[&container.id]].concat();
    let mut command = container.invocation(&words).into_command();
    command.stdin(Stdio::null()).stdout(File::create(container.file("events")).unwrap());
    command.spawn().unwrap()
}

/// What `events` has printed so far.
fn printed(container: &Container) -> Vec<Value> {
    let text = std::fs::read_to_string(container.file("events")).unwrap();
    let complete = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
    complete.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn kinds(container: &Container) -> Vec<String> {
    printed(container).iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_counters_have_runcs_shape() {
    let bundle = Bundle::debian().sh("sleep 1000 & wait");
    let container = bundle.set("/linux/resources/memory", json!({"limit": 128 * MIB})).start();
    eventually("both processes run", || container.operation(&["ps"]).ok().lines().count() == 3);
    let event: Value = serde_json::from_str(&container.operation(&["events", "--stats"]).ok()).unwrap();
    assert_eq!((event["type"].as_str(), event["id"].as_str()), (Some("stats"), Some(container.id.as_str())));
    let data = &event["data"];
    let number = |pointer: &str| {
        data.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer}: {event}"))
    };
    assert!(number("/cpu/usage/total") >= number("/cpu/usage/user"));
    assert!(number("/cpu/usage/total") > 1000, "nanoseconds: {event}");
    number("/cpu/usage/kernel");
    assert_eq!(number("/memory/usage/limit"), 128 * MIB);
    assert!((1..128 * MIB).contains(&number("/memory/usage/usage")), "{event}");
    assert!(number("/memory/usage/max") >= number("/memory/usage/usage"));
    for pointer in ["/memory/raw/anon", "/memory/raw/file", "/memory/swap/usage"] {
        number(pointer);
    }
    assert_eq!(number("/pids/current"), 2);
    for pointer in ["/cpu/throttling", "/blkio", "/hugetlb", "/intel_rdt"] {
        assert!(data.pointer(pointer).is_some_and(Value::is_object), "{pointer}: {event}");
    }
}

#[test]
fn the_stream_goes_on_until_the_container_ends() {
    let container = Bundle::debian().args(["sleep", "1000"]).start();
    let mut events = follow(&container, &["--interval", "500ms"]);
    eventually("three prints", || printed(&container).len() >= 3);
    assert!(kinds(&container).iter().all(|kind| kind == "stats"));
    container.kill("KILL");
    assert_eq!(code(wait(&mut events, "events", HANG)), 0);
}

#[test]
fn being_out_of_memory_is_an_event() {
    let script = "echo ready; read line < /tmp/go; tail /dev/zero; echo survived; sleep 1000";
    let bundle = Bundle::debian().sh(&format!("mkfifo /tmp/go; {script}"));
    let limit = json!({"limit": 24 * MIB, "swap": 24 * MIB});
    let container = bundle.set("/linux/resources/memory", limit).start();
    container.await_output("ready");
    let mut events = follow(&container, &["--interval", "1s"]);
    eventually("events listens", || !printed(&container).is_empty());
    container.sh("echo > /tmp/go");
    container.await_output("survived");
    eventually("the event", || kinds(&container).iter().any(|kind| kind == "oom"));
    let oom = printed(&container).into_iter().find(|event| event["type"] == "oom").unwrap();
    assert_eq!(oom["id"], json!(container.id));
    container.kill("KILL");
    assert_eq!(code(wait(&mut events, "events", HANG)), 0);
}

#[test]
fn a_container_that_ends_by_it_tells_so() {
    let script = "mkfifo /tmp/go; echo ready; read line < /tmp/go; exec tail /dev/zero";
    let limit = json!({"limit": 24 * MIB, "swap": 24 * MIB});
    let container = Bundle::debian().sh(script).set("/linux/resources/memory", limit).start();
    container.await_output("ready");
    let mut events = follow(&container, &["--interval", "1s"]);
    eventually("events listens", || !printed(&container).is_empty());
    container.sh("echo > /tmp/go");
    assert_eq!(code(wait(&mut events, "events", HANG)), 0);
    assert!(kinds(&container).iter().any(|kind| kind == "oom"), "{:?}", kinds(&container));
}

#[test]
fn wrong_values_are_named() {
    let container = Bundle::debian().args(["sleep", "1000"]).start();
    for interval in ["0", "-1s", "soon", ""] {
        container.operation(&["events", "--interval", interval]).fails_naming(&["interval"]);
    }
    let pid = container.pid();
    container.kill("KILL");
    container.reap(pid);
    container.await_status("stopped");
    container.operation(&["events", "--stats"]).fails_naming(&["not running"]);
    container.invocation(&["events", "no-such-container"]).run().fails_naming(&["does not exist"]);
}
