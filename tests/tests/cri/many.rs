//! Many pods, at once and in a row.

use std::fs;
use std::thread;

use pouch_tests::cri::{Container, Node, Pod, Version, memory_kib};
use pouch_tests::{eventually, long, processes, vm_only};

tests! {
    both: ;
    pods_at_once, pods_in_a_row, containers_of_one_pod, memory_of_idle_pods,
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

/// What a VM has, in itself and in its VMM.
#[derive(Debug)]
struct Inventory {
    cgroups: i64,
    inodes: i64,
    available_kib: i64,
    descriptors: i64,
    mounts: i64,
}

impl Inventory {
    fn of(pod: &Pod<'_>, container: &Container<'_>) -> Self {
        // What the kernel can drop is no leak.
        let text = container.exec(
            "echo 3 >/proc/sys/vm/drop_caches; awk '$1 == \"pids\" {print $3}' /proc/cgroups; \
             awk '{print $1 - $2}' /proc/sys/fs/inode-nr; awk '/MemAvailable/ {print $2}' /proc/meminfo",
        );
        let inside: Vec<i64> = text.lines().map(|line| line.parse().unwrap()).collect();
        let vmm = *processes::vmm_of(pod.pid()).last().expect("a VMM");
        let count = |items: usize| i64::try_from(items).unwrap();
        Inventory {
            cgroups: inside[0],
            inodes: inside[1],
            available_kib: inside[2],
            descriptors: count(fs::read_dir(format!("/proc/{vmm}/fd")).unwrap().count()),
            mounts: count(fs::read_to_string(format!("/proc/{vmm}/mountinfo")).unwrap().lines().count()),
        }
    }

    /// Whether it is no more than before. What the kernel keeps for a while varies a little.
    fn is_as_in(&self, before: &Self) -> bool {
        self.mounts == before.mounts
            && self.descriptors <= before.descriptors + 2
            && self.cgroups <= before.cgroups + 5
            && self.inodes <= before.inodes + 20
            && self.available_kib >= before.available_kib - (4 << 10)
    }
}

/// Containers that come and go leave nothing in the VM of their pod. They share a volume with one that stays.
fn containers_of_one_pod(node: Node) {
    vm_only!();
    let pod = node.pod("busy");
    let pod = pod.linux(|linux| linux.security_context.get_or_insert_default().privileged = true).run();
    let volume = pod.volume("data");
    let staying = pod.container("staying").mount(&volume, "/data");
    let staying = staying.security(|security| security.privileged = true).start();
    let rounds = |attempts: std::ops::Range<u32>| {
        for attempt in attempts {
            let container = pod.container("guest").attempt(attempt).mount(&volume, "/data");
            let ended =
                container.sh("echo x >/data/file; find / -xdev >/dev/null 2>&1; cat /data/file").run();
            // All of them write to one log.
            assert_eq!((ended.status, ended.stdout.lines().last()), (0, Some("x")), "{ended:?}");
        }
    };
    rounds(0..5);
    let before = Inventory::of(&pod, &staying);
    rounds(5..if long() { 205 } else { 10 });
    eventually("the containers have left nothing", || {
        let after = Inventory::of(&pod, &staying);
        println!("{before:?} {after:?}");
        after.is_as_in(&before)
    });
}
