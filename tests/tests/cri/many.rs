//! Many pods, at once and in a row.

use std::thread;

use pouch_tests::cri::{Node, Version};
use pouch_tests::{long, processes, vm_only};

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
    let count = if long() { 20 } else { 4 };
    let version: Version = node.version();
    let start = |number: usize| thread::spawn(move || round(&Node::of(version), &format!("pod-{number}")));
    let threads: Vec<_> = (0..count).map(start).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

fn pods_in_a_row(node: Node) {
    for number in 0..if long() { 100 } else { 5 } {
        round(&node, &format!("pod-{number}"));
    }
}

/// MiB that the host's processes of a pod with one container may have.
const PROCESSES_MAX: u64 = 12;

/// All processes on the host count: the shim, and what it started.
fn memory_of_idle_pods(node: Node) {
    vm_only!();
    let counts: &[usize] = if long() { &[1, 10, 30] } else { &[1, 3] };
    let mut pods = Vec::new();
    for count in counts {
        while pods.len() < *count {
            let pod = node.pod(&format!("idle-{}", pods.len())).run();
            pod.container("one").start();
            pods.push(pod);
        }
        let parent = |pid| processes::find(pid).expect("it runs").parent;
        let shims = pods.iter().map(|pod| parent(pod.pid()));
        let all: Vec<i32> =
            shims.flat_map(|shim| [vec![shim], processes::descendants(shim)].concat()).collect();
        let mut names: Vec<String> = all.iter().filter_map(|pid| Some(processes::find(*pid)?.name)).collect();
        names.sort();
        names.dedup();
        let sizes: Vec<(u64, u64)> = all.iter().map(|pid| processes::own_and_guest_kib(*pid)).collect();
        let each = sizes.iter().map(|size| size.0).sum::<u64>() / *count as u64;
        let guest = sizes.iter().map(|size| size.1).sum::<u64>() / *count as u64;
        println!("{count} pods: {each} KiB of processes and {guest} KiB of guest memory each ({names:?})");
        assert!(each <= PROCESSES_MAX << 10, "{each} KiB for each of {count} pods");
    }
}
