//! What a container must not leave behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::processes::Process;
use crate::{HANG, TICK, bundle, processes};

/// How long what ends asynchronously may take to be gone; an emulator is slow.
const PATIENCE_PART: u32 = 5;
/// Folders whose files are compared. Bundles are not in them; the tests look after those.
const FOLDERS: [&str; 5] = ["/run", "/tmp", "/dev/shm", "/dev/mqueue", "/var/lib/pouch-vm"];
/// What changes there by itself: the engines of the testbed live there too.
const IGNORED: [&str; 9] = [
    "/run/docker",
    "/run/docker-28",
    "/run/docker-remapped",
    "/run/containerd",
    "/run/cri-1.7",
    "/run/cri-2.1",
    "/run/udev",
    "/run/testbed",
    "/run/utmp",
];

/// The folder of all containers' states, which the first one makes and which stays, as runc's does.
const STATES: &str = "/run/pouch-vm";
/// The folder of the states of containerd's containers in there, by namespace, which stays too.
const STATES_OF_CONTAINERD: &str = "/run/pouch-vm/.containerd";
/// Where cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Where engines and runtimes keep what belongs to one container each.
const CONTAINER_FOLDERS: [&str; 20] = [
    STATES,
    "/run/pouch-vm/.containerd/default",
    "/run/pouch-vm/.containerd/moby",
    "/run/pouch-vm/.containerd/k8s.io",
    "/run/cri-1.7/state/io.containerd.runtime.v2.task/k8s.io",
    "/run/cri-2.1/state/io.containerd.runtime.v2.task/k8s.io",
    "/run/cri-2.1/state/io.containerd.sandbox.controller.v1.shim/k8s.io",
    "/run/containerd/s",
    "/run/containerd/runc/default",
    "/run/containerd/io.containerd.runtime.v2.task/default",
    "/run/docker/runtime-runc/moby",
    "/run/docker/runtime-pouch-vm/moby",
    "/run/containerd/io.containerd.runtime.v2.task/moby",
    "/run/docker-28/runtime-runc/moby",
    "/run/docker-28/runtime-pouch-vm/moby",
    "/run/docker-28/containerd/daemon/io.containerd.runtime.v2.task/moby",
    "/run/docker-remapped/runtime-runc/moby",
    "/run/docker-remapped/runtime-pouch-vm/moby",
    "/run/docker-remapped/containerd/daemon/io.containerd.runtime.v2.task/moby",
    "/run/netns",
];
/// What engines make when they first need it, and keep; and they themselves, which may be restarted.
const KEPT_BY_ENGINES: [&str; 12] = [
    "process dockerd",
    "process containerd",
    "mount /run/netns",
    "mount /run/docker/netns/default",
    "mount /run/docker-28/netns/default",
    "mount /run/docker-remapped/netns/default",
    "mount /var/lib/containers/storage/overlay",
    "cgroup /sys/fs/cgroup/docker",
    "cgroup /sys/fs/cgroup/default",
    "cgroup /sys/fs/cgroup/libpod_parent",
    "cgroup /sys/fs/cgroup/libpod_parent/conmon",
    "cgroup /sys/fs/cgroup/podman_probe",
];

/// Interfaces that the host makes for itself when a module for tunnels is loaded, and keeps.
const KEPT_BY_MODULES: [&str; 9] =
    ["tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"];

/// A picture of the host. Take one, do something, and then check that nothing is left of it.
///
/// A test that uses this has the host to itself (`.config/nextest.toml`), and `nothing_left` in its name.
pub struct Leftovers {
    before: BTreeSet<String>,
    engines: bool,
}

impl Leftovers {
    /// The host as it is now, when what was ending has ended: the test before this one may have left
    /// a zombie to the testbed's init.
    pub fn picture() -> Self {
        Self::of(false)
    }

    /// A picture of what belongs to containers of engines, without the engines' own files.
    pub fn of_containers() -> Self {
        Self::of(true)
    }

    fn of(engines: bool) -> Self {
        let deadline = Instant::now() + HANG / PATIENCE_PART;
        while ending() && Instant::now() < deadline {
            std::thread::sleep(TICK);
        }
        Leftovers { before: look(engines), engines }
    }

    /// Checks that nothing was added since, waiting a while for what is about to end.
    ///
    /// # Panics
    /// If something was.
    #[track_caller]
    pub fn check(&self) {
        let deadline = Instant::now() + HANG / PATIENCE_PART;
        loop {
            let now = look(self.engines);
            let added: Vec<&String> = now.difference(&self.before).collect();
            // An engine may only now have removed what the test before this one left to it.
            let lost: Vec<&String> = self.before.difference(&now).filter(|_| !self.engines).collect();
            if added.is_empty() && lost.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {added:#?}\nmissing: {lost:#?}");
            std::thread::sleep(TICK);
        }
    }
}

/// An orphan that came to this process and has ended: nobody but the test keeps it.
fn kept_by_test(process: &Process) -> bool {
    process.state == 'Z' && i64::from(process.parent) == i64::from(std::process::id())
}

/// Whether there is a process that has ended and that somebody will reap soon.
fn ending() -> bool {
    processes::all().values().any(|process| process.state == 'Z' && !kept_by_test(process))
}

fn look(engines: bool) -> BTreeSet<String> {
    let mut found = common();
    if engines {
        for folder in CONTAINER_FOLDERS {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            found.extend(entries.map(|entry| format!("file {}", entry.path().display())));
        }
        found.remove(&format!("file {STATES_OF_CONTAINERD}"));
        // Processes are listed as `process PID NAME ARGUMENTS`, mounts as `mount PATH of SOURCE`.
        found.retain(|item| {
            let words: Vec<&str> = item.split(' ').collect();
            let subject = words[if words[0] == "process" { 2 } else { 1 }];
            !KEPT_BY_ENGINES.contains(&format!("{} {subject}", words[0]).as_str())
        });
        return found;
    }
    for line in lines("/proc/net/unix") {
        if let Some(path) = line.split_whitespace().nth(7) {
            found.insert(format!("socket {path}"));
        }
    }
    for folder in FOLDERS {
        walk(Path::new(folder), &mut |path, _| {
            found.insert(format!("file {}", path.display()));
        });
    }
    found.remove(&format!("file {STATES}"));
    for line in lines("/proc/locks").iter().filter(|line| line.contains("pouch")) {
        found.insert(format!("lock {line}"));
    }
    found
}

/// What is nobody's but a container's: processes, mounts, cgroups and network interfaces.
fn common() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (pid, process) in processes::all() {
        if kept_by_test(&process) {
            continue;
        }
        found.insert(format!("process {pid} {} {:?}", process.name, process.arguments));
    }
    // Everything from the optional fields on says what is mounted; ids before it are used again.
    for line in lines("/proc/self/mountinfo") {
        let fields: Vec<&str> = line.split(' ').collect();
        if fields[4].contains(bundle::PREFIX) && fields[4].ends_with("/rootfs") {
            continue;
        }
        found.insert(format!("mount {} of {}", fields[4], line.split(" - ").nth(1).unwrap_or("?")));
    }
    for hierarchy in hierarchies() {
        walk(&hierarchy, &mut |path, is_dir| {
            if is_dir {
                let path = path.strip_prefix(&hierarchy).unwrap_or(path);
                found.insert(format!("cgroup {}", Path::new(CGROUPS).join(path).display()));
            }
        });
    }
    // Two lines of headings come first. The file is of this thread's network, /sys of the one it was mounted in.
    for line in lines("/proc/thread-self/net/dev").iter().skip(2) {
        let name = line.split(':').next().unwrap_or("?").trim();
        if !KEPT_BY_MODULES.contains(&name) {
            found.insert(format!("network interface {name}"));
        }
    }
    found
}

/// Where the host's cgroups are: one hierarchy, or with cgroup v1 one for each controller.
fn hierarchies() -> Vec<PathBuf> {
    let root = PathBuf::from(CGROUPS);
    if root.join("cgroup.controllers").exists() {
        return vec![root];
    }
    fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn lines(path: &str) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
}

/// Calls `visit` for everything below a folder that stays on one file system.
fn walk(folder: &Path, visit: &mut impl FnMut(&Path, bool)) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if IGNORED.iter().any(|ignored| path.starts_with(ignored)) {
            continue;
        }
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        visit(&path, is_dir);
        if is_dir {
            walk(&path, visit);
        }
    }
}
