//! Measures pods, for `make bench`. Prints JSON.
//!
//!     pod-bench time HANDLER ROUNDS    milliseconds of pods under a runtime
//!     pod-bench memory COUNT…          KiB of each of so many idle pods of pouch-vm

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "it is part of the measurement, which fails by panicking"
)]

use std::time::Instant;

use pouch_tests::cri::{Node, Version, memory_kib};
use serde_json::json;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let node = Node::of(Version::V1_7);
    match words[..] {
        ["time", handler, rounds] => times(&node, handler, rounds.parse().expect("a number of rounds")),
        ["memory", ref counts @ ..] => {
            memory(&node, counts.iter().map(|count| count.parse().expect("a number")))
        }
        _ => panic!("usage: pod-bench time HANDLER ROUNDS | memory COUNT…"),
    }
}

fn times(node: &Node, handler: &str, rounds: usize) {
    let (mut first, mut second, mut end) = (Vec::new(), Vec::new(), Vec::new());
    // One more, which warms the caches.
    for round in 0..=rounds {
        let start = Instant::now();
        let pod = node.pod(&format!("bench-{round}")).handler(handler).run();
        pod.container("first").start();
        let with_first = start.elapsed();
        pod.container("second").start();
        let with_second = start.elapsed();
        pod.remove();
        if round > 0 {
            first.push(with_first.as_secs_f64() * 1e3);
            second.push((with_second - with_first).as_secs_f64() * 1e3);
            end.push((start.elapsed() - with_second).as_secs_f64() * 1e3);
        }
    }
    println!("{}", json!({"first": first, "second": second, "end": end}));
}

fn memory(node: &Node, counts: impl Iterator<Item = usize>) {
    let mut pods = Vec::new();
    let mut sizes = Vec::new();
    for count in counts {
        while pods.len() < count {
            let pod = node.pod(&format!("idle-{}", pods.len())).handler("pouch-vm").run();
            pod.container("one").start();
            pods.push(pod);
        }
        let (processes, guest) = memory_kib(&pods);
        sizes.push(json!({"pods": count, "processes": processes, "guest": guest}));
    }
    println!("{}", json!(sizes));
}
