//! Many containers, one after the other and at once, of which nothing may be left.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use pouch_tests::engine::eventually;
use pouch_tests::{Engine, Leftovers, engine_tests, long, processes};

engine_tests! {
    both_long: one_after_the_other;
    docker_long: at_once;
    podman_long: at_once;
}

/// As small as a VM with a shell in it can be, so that many fit into the testbed.
const SMALL: [&str; 2] = ["--memory", "64m"];
/// What a run may cost the host for good: its kernel's slabs and an engine's heap move by themselves.
const ALLOWED_KIB: u64 = 64 << 10;

/// Where engines keep what belongs to one container: an entry each.
const FOLDERS: [&str; 14] = [
    "/var/lib/docker/containers",
    "/var/lib/docker/image/overlay2/layerdb/mounts",
    "/var/lib/docker/overlay2",
    "/var/lib/docker/overlay2/l",
    "/var/lib/docker/volumes",
    "/run/docker/containerd",
    "/run/docker/netns",
    "/var/lib/containerd/io.containerd.runtime.v2.task/moby",
    "/var/lib/containers/storage/overlay",
    "/var/lib/containers/storage/overlay/l",
    "/var/lib/containers/storage/overlay-containers",
    "/var/lib/containers/storage/volumes",
    "/run/containers/storage/overlay-containers",
    "/run/libpod/exits",
];

/// The host before, to be compared with the host after.
struct Host {
    leftovers: Leftovers,
    entries: BTreeSet<String>,
    memory: u64,
}

impl Host {
    fn picture() -> Self {
        Host { leftovers: Leftovers::of_containers(), entries: entries(), memory: settled_memory() }
    }

    fn check(&self) {
        self.leftovers.check();
        let mut added = Vec::new();
        eventually("the engine has removed what it kept for the containers", || {
            added = entries().difference(&self.entries).cloned().collect();
            if !added.is_empty() {
                eprintln!("still there: {added:#?}");
            }
            added.is_empty()
        });
        let now = settled_memory();
        assert!(
            now + ALLOWED_KIB > self.memory,
            "{} KiB were available, now {now} KiB; what processes have:\n{}",
            self.memory,
            largest_processes()
        );
    }
}

fn entries() -> BTreeSet<String> {
    let entries = FOLDERS.into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

/// KiB that are available once caches are dropped, if the engines themselves took none: their heaps grow with
/// use, which is no container's doing.
fn settled_memory() -> u64 {
    let all = processes::all();
    let engines =
        all.iter().filter(|(_, process)| ["dockerd", "containerd"].contains(&process.name.as_str()));
    let heaps: u64 = engines.map(|(pid, _)| processes::anonymous_kib(*pid)).sum();
    processes::settled_kib() + heaps
}

fn largest_processes() -> String {
    let all = processes::all();
    let mut sizes: Vec<_> =
        all.iter().map(|(pid, process)| (processes::pss_kib(*pid), &process.name)).collect();
    sizes.sort();
    sizes.iter().rev().take(10).map(|(size, name)| format!("{size} KiB {name}\n")).collect()
}

fn one_after_the_other(engine: Engine) {
    let round = |number: usize| {
        let script = format!("echo round {number}; exit {}", number % 100);
        let output = engine.run(&SMALL, "busybox", &["sh", "-c", &script]);
        assert_eq!(output.status as usize, number % 100, "{output}");
        assert_eq!(output.text(), format!("round {number}"));
        // Docker's client tells of a host's kernel without limits of swap.
        let errors = output.errors();
        assert!(errors.lines().all(|line| line.contains("does not support swap limit")), "{errors}");
    };
    // The first make what stays by intent.
    (0..2).for_each(round);
    let host = Host::picture();
    (2..2 + if long() { 200 } else { few(engine) }).for_each(round);
    host.check();
}

/// How many there are in the ordinary profile: with Podman the same runtime does the same, only slower.
fn few(engine: Engine) -> usize {
    if engine.is_docker() { 10 } else { 6 }
}

/// A container that says `ready`, and goes on when it is told to.
fn waiting(engine: Engine, number: usize) -> Child {
    let script = format!("echo ready; read word; echo $word {number}; exit {number}");
    let options = [&["--rm", "--interactive"], &SMALL[..]].concat();
    let command = engine.with_runtime("run", &options, "busybox", &["sh", "-c", &script]).into_command();
    { command }.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

fn at_once(engine: Engine) {
    engine.run(&SMALL, "busybox", &["true"]).ok();
    let host = Host::picture();
    let count = if long() { 20 } else { few(engine) };
    let mut clients: Vec<Child> = (1..=count).map(|number| waiting(engine, number)).collect();
    let mut outputs: Vec<_> =
        clients.iter_mut().map(|client| BufReader::new(client.stdout.take().unwrap())).collect();
    let mut line = |number: usize| {
        let mut line = String::new();
        outputs[number].read_line(&mut line).unwrap();
        line
    };
    for number in 0..clients.len() {
        assert_eq!(line(number), "ready\n", "client {number}");
    }
    // Docker may hear of a container's output before it has noted that the container runs.
    eventually("all of them run", || {
        engine.command(&["ps", "--quiet"]).run().ok().lines().count() == clients.len()
    });
    for client in &mut clients {
        client.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(line(number), format!("go {}\n", number + 1));
        assert_eq!(pouch_tests::invocation::code(client.wait().unwrap()), number as i32 + 1);
    }
    host.check();
}
