//! What ends without warning. The pod and its containers get the right status in bounded time, and nothing is left.

use std::thread;
use std::time::Duration;

use k8s_cri::v1::{LinuxContainerResources, PodSandboxState};
use pouch_tests::cri::{Container, Node, Pod};
use pouch_tests::installation::{is_replaced, replace};
use pouch_tests::processes::{self, sigkill};
use pouch_tests::{Invocation, eventually, has_vm, vm_only};

tests! {
    both: containerd_is_restarted;
    the_shim_is_killed, the_vmm_is_killed, the_host_process_is_killed, the_process_of_a_container_is_killed,
    the_guest_panics, a_container_joins_a_pod_that_has_ended, the_guest_is_out_of_memory, a_disk_is_full,
    the_reader_of_the_output_is_gone, the_runtime_is_replaced, a_pod_is_removed_twice_at_once,
    a_pod_is_given_up_while_it_is_created, a_container_ignores_sigterm,
}

pub(crate) fn containerd_is_restarted(mut node: Node) {
    let pod = node.pod("survives").run();
    let container = pod.container("one").start();
    assert_eq!(container.exec("echo before"), "before");
    let id = container.id.clone();
    let kept = pod.forget();
    node.restart();
    let pod = node.find_pod(kept);
    let container = node.find_container(id);
    assert!(pod.is_ready() && container.runs());
    assert_eq!(container.exec("echo after"), "after");
    let ended = pod.container("two").sh("echo joins").run();
    assert_eq!(ended.stdout, "joins");
    container.try_stop(10).unwrap();
    assert_eq!(container.status().exit_code, 7);
}

/// Everything of a pod whose sandbox is gone is stopped, and can be removed.
fn check_gone(node: &Node, kill: impl FnOnce(i32)) {
    let pod = node.pod("gone").run();
    let (one, two) = (pod.container("one").start(), pod.container("two").start());
    kill(pod.pid());
    for container in [&one, &two] {
        check_stopped(&pod, container);
    }
    let id = pod.id.clone();
    pod.remove();
    assert!(!node.lists(&id));
}

/// A container whose sandbox is gone is stopped, and its pod is not ready.
fn check_stopped(pod: &Pod<'_>, container: &Container<'_>) {
    // While containerd has not noticed that a shim is gone, there may be no status.
    eventually("the pod is not ready", || {
        pod.try_status().is_ok_and(|status| status.state() == PodSandboxState::SandboxNotready)
    });
    eventually("its containers are stopped", || !container.runs());
    assert_ne!(container.status().exit_code, 0);
}

/// The kernel panics too if the agent ends, which is its first process.
pub(crate) fn the_guest_panics(node: Node) {
    vm_only!();
    let pod = node.pod("panics");
    let pod = pod.linux(|linux| linux.security_context.get_or_insert_default().privileged = true).run();
    let privileged = pod.container("one").security(|security| security.privileged = true).start();
    let other = pod.container("two").start();
    // The command cannot end in any other way.
    let ended = privileged.try_exec(&["/bin/sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000"], 0);
    assert!(!ended.is_ok_and(|executed| executed.status == 0));
    for container in [&privileged, &other] {
        check_stopped(&pod, container);
    }
    let id = pod.id.clone();
    pod.remove();
    assert!(!node.lists(&id));
}

pub(crate) fn the_vmm_is_killed(node: Node) {
    vm_only!();
    check_gone(&node, |pid| processes::vmm_of(pid).into_iter().for_each(sigkill));
}

pub(crate) fn the_host_process_is_killed(node: Node) {
    // The containers of other runtimes have processes of their own.
    vm_only!();
    check_gone(&node, sigkill);
}

pub(crate) fn the_shim_is_killed(node: Node) {
    vm_only!();
    let parent = |pid| processes::find(pid).expect("it runs").parent;
    check_gone(&node, |pid| sigkill(parent(pid)));
}

/// That of one container is not the pod's end.
fn the_process_of_a_container_is_killed(node: Node) {
    let pod = node.pod("one").run();
    let (one, two) = (pod.container("one").start(), pod.container("two").start());
    assert_ne!(one.pid(), two.pid());
    if has_vm() {
        let root = format!("/proc/{}/root", one.pid());
        assert_eq!(std::fs::read_dir(root).unwrap().count(), 0, "the host's files are not there");
    }
    sigkill(one.pid());
    one.await_end();
    assert_eq!(one.status().exit_code, 137);
    assert_eq!(two.exec("echo goes on"), "goes on");
    // A signal reaches the container's process.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(two.pid()), nix::sys::signal::Signal::SIGTERM).unwrap();
    two.await_end();
    assert_eq!(two.status().exit_code, 7);
}

pub(crate) fn a_container_joins_a_pod_that_has_ended(node: Node) {
    let pod = node.pod("ended").run();
    let container = pod.container("late").create();
    sigkill(pod.pid());
    eventually("the pod is not ready", || !pod.is_ready());
    container.try_start().expect_err("the pod has ended");
    // containerd 1.7 refuses to create the container, 2.1 to start it.
    pod.container("later").try_start().err().expect("the pod has ended");
}

/// A container without a limit of its own takes all of the guest's memory.
pub(crate) fn the_guest_is_out_of_memory(node: Node) {
    // Where there is no guest, this would be the host's memory.
    vm_only!();
    let limits = LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() };
    let pod = node.pod("full").resources(limits).run();
    let neighbour = pod.container("neighbour").start();
    let ended = pod.container("greedy").command(&["/usr/bin/tail", "/dev/zero"]).run();
    assert_eq!((ended.status, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");
    assert!(pod.is_ready());
    assert_eq!(neighbour.exec("echo goes on"), "goes on");
    assert_eq!(pod.container("next").sh("echo joins").run().stdout, "joins");
    neighbour.try_stop(10).unwrap();
    assert_eq!((neighbour.status().exit_code, neighbour.status().reason.as_str()), (7, "Error"));
}

/// The node's disk with a volume has no room. Who writes there learns of it; what is written elsewhere is.
pub(crate) fn a_disk_is_full(node: Node) {
    let pod = node.pod("disk").run();
    let (small, large) = (pod.volume("small"), pod.volume("large"));
    let target = small.display().to_string();
    Invocation::of("mount", ["-t", "tmpfs", "-o", "size=256k", "tmpfs", &target]).run().ok();
    let container = pod.container("one").mount(&small, "/small").mount(&large, "/large").start();
    let fill = container.sh("cat /dev/zero > /small/zeros");
    assert!(fill.status != 0 && fill.stderr.contains("No space left on device"), "{fill:?}");
    assert_eq!(container.exec("echo text > /large/file && cat /large/file"), "text");
    // What was written before is there, and there is room again when it is removed.
    assert_eq!(container.exec("wc -c < /small/zeros"), (256 << 10).to_string());
    assert_eq!(container.exec("rm /small/zeros && echo text > /small/file && cat /small/file"), "text");
    assert_eq!(std::fs::read_to_string(small.join("file")).unwrap(), "text\n");
    pod.remove();
    Invocation::of("umount", [&target]).run().ok();
}

/// Nobody reads what a container writes while containerd is away. Nothing of it is lost, and its process is not ended.
pub(crate) fn the_reader_of_the_output_is_gone(mut node: Node) {
    let pod = node.pod("talks").run();
    // More than fits into a pipe and all buffers on the way.
    let script =
        "while ! test -e /go; do sleep 0.1; done; seq 100000 | sed 's/$/ and some more text/'; sleep 1000";
    let container = pod.container("one").sh(script).start();
    let log = container.log_path().to_owned();
    let id = container.id.clone();
    assert_eq!(container.exec("touch /go; echo told"), "told");
    node.kill();
    let kept = pod.forget();
    node.restart();
    let pod = node.find_pod(kept);
    let container = node.find_container(id);
    assert!(container.runs());
    let last = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually("the last line is read", || last().trim_end().ends_with("100000 and some more text"));
    assert_eq!(container.exec("echo goes on"), "goes on");
    container.try_stop(0).unwrap();
    assert!(pod.is_ready());
}

/// Pods that run keep the build that they were started with, and their later containers join it.
pub(crate) fn the_runtime_is_replaced(node: Node) {
    vm_only!();
    let pod = node.pod("before").run();
    let one = pod.container("one").start();
    replace();
    assert!(is_replaced(pod.pid()));
    let two = pod.container("two").start();
    assert_eq!((one.exec("echo one"), two.exec("echo two")), ("one".into(), "two".into()));
    assert_eq!(pod.container("three").sh("echo joins").run().stdout, "joins");
    let after = node.pod("after").run();
    assert!(!is_replaced(after.pid()));
    assert_eq!(after.container("one").sh("echo new").run().stdout, "new");
    one.try_stop(10).unwrap();
    assert_eq!(one.status().exit_code, 7);
    pod.remove();
    after.remove();
}

/// Two clients remove a pod. Each may find that the other one is about to, and then the pod is gone at once.
pub(crate) fn a_pod_is_removed_twice_at_once(node: Node) {
    let pod = node.pod("twice").run();
    let _container = pod.container("one").start();
    for act in [Pod::try_stop, Pod::try_remove] {
        let results = thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| act(&pod)));
            both.map(|thread| thread.join().unwrap())
        });
        assert!(results.iter().any(Result::is_ok), "{results:?}");
    }
    let id = pod.id.clone();
    pod.remove();
    assert!(!node.lists(&id));
}

/// The kubelet gives up, at one moment or another. Nothing of the pod is left then, and the next one is created.
pub(crate) fn a_pod_is_given_up_while_it_is_created(node: Node) {
    let mut given_up = 0;
    for time in [50, 150, 300, 600, 1200].map(Duration::from_millis) {
        match node.pod("early").try_run_within(time) {
            Ok(pod) => pod.remove(),
            Err(_) => given_up += 1,
        }
    }
    assert!(given_up > 0, "each pod was created in time");
    let pod = node.pod("early").run();
    assert_eq!(pod.container("one").sh("echo runs").run().stdout, "runs");
}

/// It is killed when its grace period ends, and so it is with its pod.
pub(crate) fn a_container_ignores_sigterm(node: Node) {
    let pod = node.pod("stubborn").run();
    let start = |name| pod.container(name).sh("trap '' TERM; while :; do sleep 1; done").start();
    let one = start("one");
    one.try_stop(1).unwrap();
    assert_eq!(one.status().exit_code, 137);
    let two = start("two");
    pod.try_stop().unwrap();
    assert_eq!(two.status().exit_code, 137);
}
