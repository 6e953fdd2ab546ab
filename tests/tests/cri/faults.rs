//! What ends without warning. The pod and its containers get the right status in bounded time, and nothing is left.

use k8s_cri::v1::PodSandboxState;
use pouch_tests::cri::Node;
use pouch_tests::processes::{self, sigkill};
use pouch_tests::{eventually, has_vm, vm_only};

tests! {
    both: containerd_is_restarted;
    the_shim_is_killed, the_vmm_is_killed, the_host_process_is_killed, the_process_of_a_container_is_killed,
    a_container_joins_a_pod_that_has_ended,
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
    // While containerd has not noticed that a shim is gone, there may be no status.
    eventually("the pod is not ready", || {
        pod.try_status().is_ok_and(|status| status.state() == PodSandboxState::SandboxNotready)
    });
    for container in [&one, &two] {
        eventually("its containers are stopped", || !container.runs());
        assert_ne!(container.status().exit_code, 0);
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
    pod.container("later").try_create().err().expect("the pod has ended");
}
