//! A container of a pod: what the kubelet asks of it while it runs.

use std::fs;

use k8s_cri::v1::LinuxContainerResources;
use pouch_tests::cri::Node;
use pouch_tests::{eventually, has_vm};

tests! {
    both: exec_with_a_timeout, out_of_memory;
    statistics, limits_that_change, confinement, users_and_groups, a_log_that_is_rotated, what_cannot_be_started,
    termination_message,
}

fn exec_with_a_timeout(node: Node) {
    let pod = node.pod("exec").run();
    let container = pod.container("one").start();
    let error = container.try_exec(&["/bin/sleep", "2000"], 2).expect_err("it takes too long");
    assert!(error.message().contains("timeout"), "{error}");
    eventually("the command is ended", || !container.exec("ps -o args").contains("sleep 2000"));
    assert_eq!(container.exec("echo goes on"), "goes on");
    let error = container.try_exec(&["/no/such/program"], 2).expect_err("there is no such program");
    assert!(error.message().contains("no such file"), "{error}");
}

/// The container that was killed is marked, its neighbour goes on.
fn out_of_memory(node: Node) {
    let pod = node.pod("memory").run();
    let neighbour = pod.container("neighbour").start();
    let ended = pod.container("greedy").memory(32).command(&["/usr/bin/tail", "/dev/zero"]).run();
    assert_eq!((ended.status, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");
    assert!(neighbour.runs());
    neighbour.try_stop(10).unwrap();
    assert_eq!((neighbour.status().exit_code, neighbour.status().reason.as_str()), (7, "Error"));
}

pub(crate) fn statistics(node: Node) {
    let pod = node.pod("stats").run();
    let busy =
        pod.container("busy").sh("i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; sleep 1000").start();
    eventually("its use of the processor is known", || {
        let stats = busy.stats();
        let used = stats.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |value| value.value);
        let memory = stats.memory.and_then(|memory| memory.working_set_bytes).map_or(0, |value| value.value);
        used > 1_000_000 && memory > 10_000
    });
    let linux = pod.stats().linux.expect("statistics of Linux");
    assert_eq!(linux.containers.len(), 1);
    assert!(linux.cpu.and_then(|cpu| cpu.usage_core_nano_seconds).is_some_and(|value| value.value > 0));
    assert!(linux.memory.and_then(|memory| memory.working_set_bytes).is_some_and(|value| value.value > 0));
    assert!(linux.network.is_some_and(|network| network.default_interface.is_some()));
}

fn limits_that_change(node: Node) {
    let pod = node.pod("resized").run();
    let container = pod.container("one").memory(64).start();
    let of_host = || fs::read_to_string(pod.cgroup().join(&pod.id).join("cpu.max")).unwrap();
    let before = of_host();
    assert_eq!(container.exec("cat /sys/fs/cgroup/memory.max"), (64 << 20).to_string());
    let resources = LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        ..Default::default()
    };
    container.update(resources).unwrap();
    assert_eq!(
        container.exec("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max"),
        format!("{}\n50000 100000", 96 << 20)
    );
    assert!(!has_vm() || of_host() == before, "the limits of the pod are not those of a container");
}

/// What a pod's security context asks for, and what every container has.
fn confinement(node: Node) {
    let pod = node.pod("confined").run();
    let masked = ["/proc/kcore", "/proc/keys", "/proc/timer_list"].map(str::to_owned).to_vec();
    let read_only = ["/proc/sys", "/proc/irq"].map(str::to_owned).to_vec();
    let container = pod.container("one").security(|security| {
        security.no_new_privs = true;
        security.readonly_rootfs = true;
        security.masked_paths = masked;
        security.readonly_paths = read_only;
        security.capabilities.get_or_insert_default().drop_capabilities = vec!["ALL".to_owned()];
        security.capabilities.get_or_insert_default().add_capabilities = vec!["NET_BIND_SERVICE".to_owned()];
    });
    let script = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; touch /file; wc -c </proc/keys; \
                  echo 1 >/proc/sys/vm/swappiness; unshare -U true";
    let ended = container.sh(script).run();
    assert_eq!(ended.stdout.replace('\t', " "), "CapEff: 0000000000000400\nNoNewPrivs: 1\nSeccomp: 2\n0");
    for expected in [
        "touch: /file: Read-only file system",
        "swappiness: Read-only file system",
        "Operation not permitted",
    ] {
        assert!(ended.stderr.contains(expected), "{expected}: {ended:?}");
    }
    let privileged = pod.container("two").security(|security| security.privileged = true);
    let refused = privileged.try_create().err().expect("the pod is not privileged");
    assert!(refused.message().contains("privileged"), "{refused}");
}

fn users_and_groups(node: Node) {
    let pod = node.pod("users").run();
    let container = pod.container("one").security(|security| {
        security.run_as_user = Some(k8s_cri::v1::Int64Value { value: 1000 });
        security.run_as_group = Some(k8s_cri::v1::Int64Value { value: 3000 });
        security.supplemental_groups = vec![4000, 5000];
    });
    let ended = container.sh("id -u; id -g; id -G").run();
    assert_eq!(ended.stdout, "1000\n3000\n3000 4000 5000", "{ended:?}");
}

fn a_log_that_is_rotated(node: Node) {
    let pod = node.pod("rotated").run();
    let container = pod.container("one").sh("while :; do echo line; sleep 0.3; done").start();
    eventually("it writes", || !container.log().is_empty());
    let old = container.log_path().with_extension("old");
    fs::rename(container.log_path(), &old).unwrap();
    let request = k8s_cri::v1::ReopenContainerLogRequest { container_id: container.id.clone() };
    node.call(async |mut client| client.reopen_container_log(request).await).unwrap();
    eventually("it writes to the new file", || container.log().len() > 2);
}

/// The error says why, and nothing is left of the container.
fn what_cannot_be_started(node: Node) {
    let pod = node.pod("wrong").run();
    let container = pod.container("one").command(&["/no/such/program"]).create();
    let error = container.try_start().expect_err("there is no such program");
    assert!(
        error.message().contains("/no/such/program") && error.message().contains("no such file"),
        "{error}"
    );
    assert_eq!(container.status().reason, "StartError");
    assert_eq!(container.status().exit_code, 128);
    let container =
        pod.container("two").with(|config| config.working_dir = "/etc/passwd".to_owned()).create();
    let error = container.try_start().expect_err("a file is no directory");
    assert!(error.message().contains("/etc/passwd"), "{error}");
    let works = pod.container("three").sh("echo works").run();
    assert_eq!(works.stdout, "works");
}

/// A file that the kubelet binds for the last words of a container.
fn termination_message(node: Node) {
    let pod = node.pod("message").run();
    let file = pod.volume("one").join("message");
    fs::write(&file, "").unwrap();
    let ended = pod
        .container("one")
        .mount(&file, "/dev/termination-log")
        .sh("echo bye >/dev/termination-log; exit 1")
        .run();
    assert_eq!(ended.status, 1);
    assert_eq!(fs::read_to_string(&file).unwrap(), "bye\n");
}
