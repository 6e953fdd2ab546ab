//! What a pod is: its containers, what they share, its network, its end.

use std::io::Read;
use std::net::TcpStream;

use k8s_cri::v1::{LinuxContainerResources, NamespaceOption};
use pouch_tests::cri::{Container, Namespace, Node, StreamChannel};
use pouch_tests::{eventually, vm_only};

tests! {
    both: a_pod_with_everything, names_and_settings;
    shared_process_namespace, a_container_that_looks_at_another, namespaces_of_the_host, a_pod_ends_with_its_containers,
    size_of_the_vm,
}

/// An init container, a sidecar, and two containers that share localhost, memory, message queues and a volume. The logs
/// are followed, a port is forwarded, one container is resized, and then started again.
pub(crate) fn a_pod_with_everything(node: Node) {
    let pod = node.pod("all").run();
    let volume = pod.volume("data");
    let init = pod.container("init").mount(&volume, "/data").sh("echo prepared >/data/state").run();
    assert_eq!(init.status, 0, "{init:?}");
    let sidecar = pod.container("sidecar").mount(&volume, "/data").sh("tail -f /data/state").start();
    let server = "cat /data/state; echo shared >/dev/shm/word; touch /dev/mqueue/queue; \
                  while :; do echo hello | nc -l -p 7000; done";
    let server = pod.container("server").mount(&volume, "/data").memory(64).sh(server).start();
    let client = "until nc 127.0.0.1 7000 </dev/null | grep hello; do sleep 0.2; done; \
                  cat /dev/shm/word; ls /dev/mqueue; echo seen >>/data/state; echo no >&2; exit 3";
    let ended = pod.container("client").mount(&volume, "/data").sh(client).run();
    assert_eq!((ended.status, ended.reason.as_str(), ended.stderr.as_str()), (3, "Error", "no"), "{ended:?}");
    assert_eq!(ended.stdout, "hello\nshared\nqueue");
    let lines =
        |container: &Container<'_>| container.log().into_iter().map(|line| line.text).collect::<Vec<_>>();
    eventually("the sidecar follows", || lines(&sidecar) == ["prepared", "seen"]);
    assert_eq!(lines(&server), ["prepared"]);
    let executed = server.sh("echo out; echo err >&2; exit 9");
    assert_eq!((executed.status, executed.stdout.as_str(), executed.stderr.as_str()), (9, "out", "err"));
    eventually("the port is forwarded", || {
        let mut stream = pod.forward(7000);
        stream.await_end();
        stream.text(StreamChannel::Input) == "hello\n"
    });
    server.update(LinuxContainerResources { memory_limit_in_bytes: 96 << 20, ..Default::default() }).unwrap();
    assert_eq!(server.exec("cat /sys/fs/cgroup/memory.max"), (96 << 20).to_string());
    server.try_stop(1).unwrap();
    assert_eq!(server.status().exit_code, 137, "it does not end by SIGTERM");
    server.remove();
    let again = pod.container("server").attempt(1).mount(&volume, "/data").start();
    assert_eq!(again.exec("cat /data/state /dev/shm/word"), "prepared\nseen\nshared");
    again.try_stop(20).unwrap();
    assert_eq!(again.status().exit_code, 7);
    assert!(pod.is_ready() && sidecar.runs(), "the pod does not end with a container");
    let id = pod.id.clone();
    pod.remove();
    assert!(!node.lists(&id));
}

pub(crate) fn names_and_settings(node: Node) {
    let pod = node.pod("named").sysctls(&[("net.core.somaxconn", "777"), ("kernel.shm_rmid_forced", "1")]);
    let pod = pod.dns(&["10.96.0.10"], &["default.svc.cluster.local"]).run();
    let script = "hostname; cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced; \
                  grep -v '^options' /etc/resolv.conf; \
                  cat /etc/hostname; ip -4 -o addr show eth0 | awk '{print $4}'; df -h /dev/shm | awk 'END {print $2}'";
    let ended = pod.container("one").sh(script).run();
    let address = pod.address();
    let expected = format!(
        "named\n777\n1\nsearch default.svc.cluster.local\nnameserver 10.96.0.10\nnamed\n{address}/24\n64.0M"
    );
    assert_eq!(ended.stdout, expected, "{ended:?}");
    let server = pod.container("server").sh("while :; do echo hello | nc -l -p 80; done").start();
    eventually("the host reaches it", || {
        let mut text = String::new();
        let read =
            TcpStream::connect((address.as_str(), 80)).and_then(|mut peer| peer.read_to_string(&mut text));
        assert!(server.runs(), "{:?}", server.ended());
        read.is_ok() && text == "hello\n"
    });
}

/// `shareProcessNamespace: true`.
pub(crate) fn shared_process_namespace(node: Node) {
    let pod = node.pod("pids").shared_pids().run();
    let one = pod.container("one").command(&["/bin/sleep", "100001"]).start();
    let two = pod.container("two").command(&["/bin/sleep", "100002"]).start();
    let list = two.exec("ps -o pid,args");
    assert!(list.contains("sleep 100001") && list.contains("sleep 100002"), "{list}");
    assert_ne!(
        two.exec("cat /proc/1/cmdline | tr '\\0' ' '"),
        "/bin/sleep 100002",
        "its process is not the first"
    );
    assert_eq!(two.sh("kill -TERM $(pidof -s sleep); true").status, 0);
    one.try_stop(0).unwrap();
    assert!(two.exec("ps -o args").contains("sleep 100002"), "the other goes on");
    two.try_stop(0).unwrap();
    two.remove();
    let three = pod.container("three").start();
    let list = three.exec("ps -o args");
    assert!(!list.contains("sleep 10000"), "nothing of the others is left: {list}");
}

/// An ephemeral container that targets another one, as `kubectl debug --target` makes it.
fn a_container_that_looks_at_another(node: Node) {
    let pod = node.pod("debug").run();
    let target = pod.container("target").command(&["/bin/sleep", "100003"]).start();
    let debug = pod.container("debugger").namespaces(|namespaces| {
        namespaces.pid = Namespace::Target as i32;
        namespaces.target_id = target.id.clone();
    });
    let ended = debug.sh("ps -o pid,args; kill -0 1 && echo may").run();
    assert!(ended.stdout.contains("1 /bin/sleep 100003") && ended.stdout.ends_with("may"), "{ended:?}");
    assert!(target.runs());
}

fn namespaces_of_the_host(node: Node) {
    vm_only!();
    check_refused(&node, "network", |namespaces| namespaces.network = Namespace::Node as i32);
    check_refused(&node, "PID", |namespaces| namespaces.pid = Namespace::Node as i32);
    check_refused(&node, "IPC", |namespaces| namespaces.ipc = Namespace::Node as i32);
}

/// A pod with these namespaces is refused by the name of one.
pub(crate) fn check_refused(node: &Node, name: &str, choose: fn(&mut NamespaceOption)) {
    let error = node.pod("host").namespaces(choose).try_run().err().expect("it is refused");
    assert!(error.message().contains(name), "{name}: {error}");
}

pub(crate) fn a_pod_ends_with_its_containers(node: Node) {
    let pod = node.pod("ends").run();
    let stubborn = pod.container("stubborn").sh("trap '' TERM; while :; do sleep 1; done").start();
    let other = pod.container("other").start();
    pod.try_stop().unwrap();
    assert!(!pod.is_ready());
    for container in [&stubborn, &other] {
        assert!(!container.runs());
        assert_eq!(container.status().exit_code, 137);
    }
    pod.try_stop().unwrap();
    pod.try_remove().unwrap();
    pod.try_remove().unwrap();
}

/// The VM has what the limits of all containers add up to.
pub(crate) fn size_of_the_vm(node: Node) {
    vm_only!();
    let resources = LinuxContainerResources {
        memory_limit_in_bytes: 1500 << 20,
        cpu_period: 100_000,
        cpu_quota: 100_000,
        ..Default::default()
    };
    let pod = node.pod("sized").resources(resources).run();
    let ended = pod.container("one").memory(1200).sh("nproc; free -m | awk '/Mem:/ {print $2}'").run();
    let [cpus, memory] = ended.stdout.lines().collect::<Vec<_>>()[..] else { panic!("{ended:?}") };
    assert_eq!(cpus, "1");
    let memory: u64 = memory.parse().unwrap();
    assert!((1380..=1600).contains(&memory), "{memory} MiB");
}
