//! `pouch-vm` on the pods and containers of containerd.

use pouch_tests::cri::Node;
use pouch_tests::{Invocation, eventually, vm_only};
use serde_json::Value;

tests! {
    both: a_container_of_a_pod;
}

fn pouch_vm(arguments: &[&str]) -> Invocation {
    Invocation::new(arguments)
}

pub(crate) fn a_container_of_a_pod(node: Node) {
    vm_only!();
    let pod = node.pod("known").run();
    let container = pod.container("one").command(&["/bin/sleep", "100004"]).start();
    let other = pod.container("two").start();
    let id = container.id.as_str();
    let list: Value = serde_json::from_str(&pouch_vm(&["list", "--format", "json"]).run().ok()).unwrap();
    let listed: Vec<&str> = list.as_array().unwrap().iter().filter_map(|one| one["id"].as_str()).collect();
    for one in [&pod.id, &container.id, &other.id] {
        assert!(listed.contains(&one.as_str()), "{one}: {listed:?}");
    }
    let state: Value = serde_json::from_str(&pouch_vm(&["state", id]).run().ok()).unwrap();
    assert_eq!(
        (state["status"].as_str(), state["pid"].as_i64()),
        (Some("running"), Some(container.pid().into()))
    );
    let processes = pouch_vm(&["ps", id]).run().ok();
    assert!(processes.contains("sleep 100004") && !processes.contains("trap"), "{processes}");
    let executed =
        pouch_vm(&["exec", id, "/bin/sh", "-c", "hostname; tr '\\0' ' ' </proc/1/cmdline; exit 3"]).run();
    assert_eq!((executed.status, executed.text().as_str()), (3, "known\n/bin/sleep 100004"), "{executed}");
    let stats: Value = serde_json::from_str(&pouch_vm(&["events", "--stats", id]).run().ok()).unwrap();
    assert!(stats["data"]["memory"]["usage"]["usage"].as_u64().is_some_and(|bytes| bytes > 0), "{stats}");
    for arguments in [&["delete", "--force", id][..], &["start", id]] {
        pouch_vm(arguments).run().fails_naming(&[&pod.id, "engine"]);
    }
    assert!(container.runs() && other.runs());
    pouch_vm(&["kill", id, "KILL"]).run().ok();
    container.await_end();
    assert_eq!(container.status().exit_code, 137);
    // CRI removes what has ended, and keeps the record itself.
    eventually("it is removed", || pouch_vm(&["state", id]).run().errors().contains("does not exist"));
    assert!(other.runs(), "the other goes on");
}
