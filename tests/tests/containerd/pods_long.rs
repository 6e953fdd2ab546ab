//! Pods: several containers in one VM, told by CRI's annotations. In an ordinary run, the tests `cri` are about pods.

use std::fs;
use std::path::Path;

use pouch_tests::containerd::{CtrContainer, Events, IMAGE, ctr, ctr_run, runtime};
use pouch_tests::processes::{self, sigkill};
use pouch_tests::{Invocation, Output, bundle, eventually, long, vm_only};

use crate::check;

/// The sandbox of a pod.
struct Pod {
    sandbox: CtrContainer,
    annotation: String,
    /// The namespaces that its containers join, as CRI names them.
    namespaces: Vec<String>,
}

const SANDBOX: &str = "io.kubernetes.cri.container-type=sandbox";
const CONTAINER: &str = "io.kubernetes.cri.container-type=container";

fn annotation(pod: &str) -> String {
    format!("io.kubernetes.cri.sandbox-id={pod}")
}

impl Pod {
    #[track_caller]
    fn start(options: &[&str]) -> Self {
        let id = bundle::unique_id();
        let annotation = annotation(&id);
        let all = [&["--detach", "--annotation", &annotation, "--annotation", SANDBOX], options].concat();
        // Its command is not run.
        ctr_run(&all, IMAGE, &id, &["/pause"]).leaves_something_behind().run().ok();
        let sandbox = CtrContainer::named(&id);
        let pid = sandbox.pid();
        let path = |kind: &str, file: &str| format!("{kind}:/proc/{pid}/ns/{file}");
        let namespaces = vec![path("network", "net"), path("ipc", "ipc"), path("uts", "uts")];
        Pod { sandbox, annotation, namespaces }
    }

    fn options<'a>(&'a self, options: &[&'a str]) -> Vec<&'a str> {
        let joined = self.namespaces.iter().flat_map(|namespace| ["--with-ns", namespace]);
        let mut all = vec!["--annotation", &self.annotation, "--annotation", CONTAINER];
        all.extend(joined);
        all.extend(options);
        all
    }

    /// Starts a shell script in a container of the pod.
    #[track_caller]
    fn start_sh(&self, options: &[&str], script: &str) -> CtrContainer {
        CtrContainer::start(&self.options(options), script)
    }

    /// Runs a shell script in a container of the pod to its end.
    fn sh(&self, options: &[&str], script: &str) -> Output {
        let all = [&["--rm"], &self.options(options)[..]].concat();
        ctr_run(&all, IMAGE, &bundle::unique_id(), &["/bin/sh", "-c", script]).run()
    }
}

const IDLE: &str = "trap 'exit 7' TERM; while :; do sleep 1000 & wait; done";

/// Runs a script in a container, which must succeed.
#[track_caller]
fn exec(container: &CtrContainer, script: &str) -> String {
    container.exec(&[], &["/bin/sh", "-c", script]).run().ok()
}

#[test]
fn what_containers_share_and_what_not() {
    vm_only!();
    check(|| {
        let pod = Pod::start(&[]);
        let one = pod.start_sh(&["--env", "NAME=one"], IDLE);
        let two = pod.start_sh(&["--env", "NAME=two"], IDLE);
        let both = |script: &str| (exec(&one, script), exec(&two, script));
        let (first, second) = both("cat /proc/sys/kernel/random/boot_id");
        assert_eq!(first, second, "they are in one VM");
        for namespace in ["net", "ipc", "uts"] {
            let (first, second) = both(&format!("readlink /proc/self/ns/{namespace}"));
            assert_eq!(first, second, "{namespace}");
        }
        for namespace in ["pid", "mnt", "cgroup"] {
            let (first, second) = both(&format!("readlink /proc/self/ns/{namespace}"));
            assert_ne!(first, second, "{namespace}");
        }
        assert_eq!(both("echo $NAME >/own; cat /own"), ("one".to_owned(), "two".to_owned()));
        assert_eq!(both("ls /proc | grep -c '^1$'"), ("1".to_owned(), "1".to_owned()));
        assert!(one.pid() != two.pid() && one.pid() != pod.sandbox.pid(), "each has a process on the host");
    });
}

#[test]
fn a_connection_between_containers() {
    vm_only!();
    check(|| {
        let pod = Pod::start(&[]);
        let server = pod.start_sh(&[], "while :; do echo hello | nc -l -p 7000; done");
        let script = "until nc 127.0.0.1 7000 </dev/null 2>/dev/null | grep hello; do sleep 0.2; done";
        assert_eq!(pod.sh(&[], script).ok(), "hello");
        assert_eq!(server.status(), "RUNNING");
    });
}

#[test]
fn shared_memory_and_volumes() {
    vm_only!();
    check(|| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "first").unwrap();
        let volume = format!("type=bind,src={},dst=/volume,options=rbind:rw", folder.path().display());
        // What CRI makes for a pod is a tmpfs too.
        let shm = "type=bind,src=/dev/shm,dst=/dev/shm,options=rbind:rw";
        let pod = Pod::start(&[]);
        let options = ["--mount", &volume, "--mount", shm];
        let one = pod.start_sh(&options, IDLE);
        let two = pod.start_sh(&options, IDLE);
        assert_eq!(exec(&one, "hostname"), Invocation::of("hostname", [""; 0]).run().ok());
        let name = bundle::unique_id();
        exec(&one, &format!("echo memory >/dev/shm/{name}; echo from one >/volume/new"));
        assert_eq!(exec(&two, &format!("cat /dev/shm/{name} /volume/new")), "memory\nfrom one");
        assert!(!Path::new("/dev/shm").join(&name).exists(), "it is in the guest");
        assert_eq!(fs::read_to_string(folder.path().join("new")).unwrap(), "from one\n");
        fs::write(folder.path().join("file"), "second").unwrap();
        eventually("the container sees the update", || exec(&two, "cat /volume/file") == "second");
    });
}

#[test]
fn one_ends_and_the_others_go_on() {
    vm_only!();
    check(|| {
        let events = Events::follow();
        let pod = Pod::start(&[]);
        let other = pod.start_sh(&[], IDLE);
        let output = pod.sh(&[], "echo out; echo err >&2; exit 5");
        assert_eq!((output.status, output.text(), output.errors()), (5, "out".to_owned(), "err".to_owned()));
        let fill = pod.start_sh(&["--memory-limit", "33554432"], "tail /dev/zero");
        fill.await_stopped();
        let topics = events.until(&fill.id, "/tasks/exit");
        assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit"]);
        assert!(fill.remove_task().errors().contains("exit code 137"));
        assert_eq!(exec(&other, "echo still"), "still");
        assert!(!events.of(&other.id).iter().any(|(topic, _)| topic == "/tasks/oom"));
        other.task(&["kill", "--signal", "SIGTERM"]).run().ok();
        other.await_stopped();
        assert!(other.remove_task().errors().contains("exit code 7"));
        assert_eq!(pod.sandbox.status(), "RUNNING");
    });
}

#[test]
fn one_after_the_other_leaves_nothing_in_the_vm() {
    vm_only!();
    check(|| {
        let pod = Pod::start(&[]);
        let watcher = pod.start_sh(&[], IDLE);
        let (host, shim) = (pod.sandbox.pid(), pod.sandbox.shim());
        let vmm = processes::vmm_of(host)[0];
        let count = |path: String| fs::read_dir(path).unwrap().count();
        let look = || {
            let mounts = fs::read_to_string(format!("/proc/{vmm}/mountinfo")).unwrap().lines().count();
            let files = [host, shim].map(|pid| count(format!("/proc/{pid}/fd")));
            let threads = count(format!("/proc/{host}/task"));
            // The guest's cgroups.
            let cgroups = exec(&watcher, "grep -c . /proc/cgroups; grep memory /proc/cgroups");
            (mounts, files, threads, cgroups)
        };
        let run = |number: usize| {
            let output = pod.sh(&[], &format!("echo {number}; mkdir /made; exit 3"));
            assert_eq!((output.status, output.text()), (3, number.to_string()), "{output}");
        };
        let kept = || (count(format!("/proc/{vmm}/fd")), count(format!("/proc/{shim}/task")));
        (0..3).for_each(run);
        let (before, kept_before) = (look(), kept());
        let runs = if long() { 200 } else { 6 };
        (0..runs).for_each(run);
        eventually("all is as before", || look() == before);
        let (files, threads) = kept();
        // The guest remembers the directory in which each container was, of which there are 64.
        assert!(files <= kept_before.0 + runs.min(64), "{files} files, before {kept_before:?}");
        // The library that serves the shim's requests keeps up to five threads that wait for the next one.
        assert!(threads <= kept_before.1 + 5, "{threads} threads, before {kept_before:?}");
    });
}

#[test]
fn the_end_of_the_sandbox_ends_all() {
    vm_only!();
    check(|| {
        let pod = Pod::start(&[]);
        let (one, two) = (pod.start_sh(&[], IDLE), pod.start_sh(&[], IDLE));
        pod.sandbox.task(&["kill", "--signal", "SIGKILL"]).run().ok();
        for container in [&one, &two, &pod.sandbox] {
            container.await_stopped();
        }
        let late = pod.sh(&[], "true");
        assert!(late.status != 0 && late.errors().contains("does not exist, or has ended"), "{late}");
        for container in [&one, &two] {
            assert!(container.remove_task().errors().contains("exit code 137"));
        }
    });
}

#[test]
fn processes_that_are_killed() {
    vm_only!();
    check(|| {
        let pod = Pod::start(&[]);
        let one = pod.start_sh(&[], IDLE);
        sigkill(processes::vmm_of(pod.sandbox.pid())[0]);
        one.await_stopped();
        pod.sandbox.await_stopped();
    });
    check(|| {
        let events = Events::follow();
        let pod = Pod::start(&[]);
        let one = pod.start_sh(&[], IDLE);
        let (host, vmm) = (pod.sandbox.pid(), processes::vmm_of(pod.sandbox.pid()));
        sigkill(pod.sandbox.shim());
        events.until(&one.id, "/tasks/delete");
        events.until(&pod.sandbox.id, "/tasks/delete");
        eventually("the VM ends", || !processes::runs(host) && !vmm.iter().any(|pid| processes::runs(*pid)));
    });
}

#[test]
fn what_cannot_join_is_told_why_and_leaves_the_pod_alone() {
    vm_only!();
    check(|| {
        let pod = Pod::start(&[]);
        let failed = |options: &[&str], command: &str| {
            let all = [&["--rm"], &pod.options(options)[..]].concat();
            let output = ctr_run(&all, IMAGE, &bundle::unique_id(), &[command]).run();
            assert_ne!(output.status, 0, "{output}");
            output.errors()
        };
        assert!(failed(&[], "/no/such").contains("exec: \"/no/such\""));
        let mount = "type=bind,src=/no/such,dst=/x,options=rbind:rw";
        assert!(failed(&["--mount", mount], "true").contains("/no/such"));
        assert_eq!(pod.sh(&[], "echo still").ok(), "still");
        let exec = pod.sandbox.exec(&[], &["true"]).run();
        assert!(exec.status != 0 && exec.errors().contains("no process of its own"), "{exec}");
        let nowhere = annotation("no-such-pod");
        let options = ["--rm", "--annotation", &nowhere, "--annotation", CONTAINER];
        let output = ctr_run(&options, IMAGE, &bundle::unique_id(), &["true"]).run();
        assert!(output.errors().contains("the sandbox no-such-pod"), "{output}");
    });
}

#[test]
fn namespaces_of_the_host_are_refused_by_name() {
    vm_only!();
    check(|| {
        let id = bundle::unique_id();
        let options = ["--annotation", &annotation(&id), "--annotation", SANDBOX, "--net-host", "--rm"];
        let output = ctr_run(&options, IMAGE, &id, &["/pause"]).run();
        assert!(output.status != 0 && output.errors().contains("cannot use the host's network"), "{output}");
    });
}

#[test]
fn a_folder_as_root_in_a_pod() {
    vm_only!();
    check(|| {
        let pod = Pod::start(&[]);
        let rootfs = "/var/lib/pouch-test/images/busybox/rootfs";
        let all =
            [&["run", "--runtime", runtime(), "--rm", "--rootfs", "--read-only"], &pod.options(&[])[..]];
        let command = [rootfs, &bundle::unique_id(), "/bin/sh", "-c", "touch /x || ls /bin/busybox"];
        let output = ctr(&[&all.concat()[..], &command].concat()).run();
        assert_eq!(output.ok(), "/bin/busybox");
        assert!(Invocation::new(["list"]).run().ok().contains(&pod.sandbox.id));
    });
}
