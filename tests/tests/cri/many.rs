//! Many pods, at once and in a row.

use std::thread;

use pouch_tests::cri::{Node, Version, memory_kib};
use pouch_tests::{long, vm_only};

tests! {
    both: ;
    pods_at_once, pods_in_a_row, memory_of_idle_pods,
}

/// Starts a pod, runs a container in it, and removes both.
fn round(node: &Node, name: &str) {
    let pod = node.pod(name).run();
    let ended = pod.container("one").sh("hostname; exit 5").run();
    assert_eq!((ended.status, ended.stdout.as_str()), (5, name), "{ended:?}");
    let id = pod.id.clone();
    pod.remove();
    assert!(!node.lists(&id));
}

fn pods_at_once(node: Node) {
    let count = if long() { 20 } else { 3 };
    let version: Version = node.version();
    let start = |number: usize| thread::spawn(move || round(&Node::of(version), &format!("pod-{number}")));
    let threads: Vec<_> = (0..count).map(start).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

fn pods_in_a_row(node: Node) {
    for number in 0..if long() { 100 } else { 3 } {
        round(&node, &format!("pod-{number}"));
    }
}

/// MiB that the host's processes of a pod with one container may have.
const PROCESSES_MAX: u64 = 12;

/// All processes on the host count: the shim, and what it started.
fn memory_of_idle_pods(node: Node) {
    vm_only!();
    let counts: &[usize] = if long() { &[1, 10, 30] } else { &[2] };
    let mut pods = Vec::new();
    for count in counts {
        while pods.len() < *count {
            let pod = node.pod(&format!("idle-{}", pods.len())).run();
            pod.container("one").start();
            pods.push(pod);
        }
        let (each, guest) = memory_kib(&pods);
        println!("{count} pods: {each} KiB of processes and {guest} KiB of guest memory each");
        assert!(each <= PROCESSES_MAX << 10, "{each} KiB for each of {count} pods");
    }
}
