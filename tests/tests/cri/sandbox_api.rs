//! Pods that containerd creates by the sandbox API: what holds for other pods holds for them.

use std::fs;
use std::time::Duration;

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, PingRequest, PlatformRequest, SandboxMetricsRequest, SandboxStatusRequest,
};
use containerd_shim_protos::sandbox_sync::SandboxClient;
use containerd_shim_protos::ttrpc::context::{Context, with_duration};
use pouch_tests::cri::{Namespace, Node, Pod, PodBuilder, Version};
use pouch_tests::{Invocation, vm_only};
use serde_json::Value;

use crate::pods::check_refused;

macro_rules! as_other_pods {
    ($($module:ident::$name:ident),* $(,)?) => { $(#[test] fn $name() { check(crate::$module::$name); })* };
}

as_other_pods! {
    pods::a_pod_with_everything, pods::names_and_settings,
    faults::containerd_is_restarted, faults::the_vmm_is_killed,
    command_line::a_container_of_a_pod,
}

/// These are run by the profile `long` only.
mod containerd_2_1_long {
    use super::check;
    as_other_pods! {
        pods::shared_process_namespace, pods::a_pod_ends_with_its_containers, pods::size_of_the_vm,
        faults::the_shim_is_killed, faults::the_host_process_is_killed, faults::the_runtime_is_replaced,
        faults::a_pod_is_removed_twice_at_once, containers::statistics,
    }
}

/// Runs a test on a node that uses the sandbox API; nothing of its pods may be left behind.
#[track_caller]
fn check(test: impl FnOnce(Node)) {
    vm_only!();
    crate::check_on(Node::of(Version::V2_1).sandboxed(), test);
}

/// What a pod and its containers look like, with `ID` for the pod's.
fn look(pod: &Pod<'_>) -> Vec<String> {
    let script = "hostname; cat /etc/hostname /etc/hosts /etc/resolv.conf; \
                  stat -L -c '%a %u %g %n' /etc/hostname /etc/hosts /etc/resolv.conf /dev/shm; \
                  awk '$2 ~ /^.etc.|^.dev.shm/ {print $2, $3, substr($4, 1, 2)}' /proc/mounts | sort; \
                  df /dev/shm | awk 'END {print $2}'; cd /proc/sys; \
                  cat net/core/somaxconn net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range";
    let ended = pod.container("look").sh(script).run();
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""), "{ended:?}");
    let read_only = pod.container("read-only").security(|security| security.readonly_rootfs = true);
    let refused = read_only.sh("for file in hostname hosts resolv.conf; do echo x >>/etc/$file; done").run();
    let process = format!("/proc/{}", pod.pid());
    let of_host =
        ["oom_score_adj", "cgroup"].map(|name| fs::read_to_string(format!("{process}/{name}")).unwrap());
    let state: Value =
        serde_json::from_str(&Invocation::new(["state", &pod.id]).run().ok()).expect("a state");
    let mut annotations: Vec<String> = state["annotations"]
        .as_object()
        .expect("annotations")
        .iter()
        // There is no image.
        .filter(|(name, _)| !name.ends_with("image-name"))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    annotations.sort();
    let status = format!("{:?} {:?}", pod.status().state(), state["status"]);
    let all = [vec![ended.stdout, refused.stderr, status], of_host.to_vec(), annotations].concat();
    let (uid, home) = (&pod.config.metadata.as_ref().expect("it has metadata").uid, pod.id.as_str());
    all.iter().map(|text| text.replace(home, "ID").replace(uid, "UID")).collect()
}

#[test]
fn a_pod_is_like_one_of_podsandbox() {
    check(|node| {
        let describe = |builder: PodBuilder<'_>| -> Vec<String> { look(&builder.run()) };
        let with_dns = || {
            let pod = node.pod("like").dns(&["10.96.0.10", "10.96.0.11"], &["svc.cluster.local", "local"]);
            pod.sysctls(&[("net.core.somaxconn", "777"), ("net.ipv4.ip_unprivileged_port_start", "80")])
        };
        let plain = || node.pod("").with(|config| config.hostname = String::new());
        assert_eq!(describe(with_dns()), describe(with_dns().handler("pouch-vm")));
        assert_eq!(describe(plain()), describe(plain().handler("pouch-vm")));
    });
}

fn within() -> Context {
    with_duration(Duration::from_secs(120))
}

/// The service as another client than CRI sees it.
#[test]
fn requests_to_the_shim() {
    check(|node| {
        let pod = node.pod("asked").run();
        let container = pod.container("one").start();
        let address = fs::read_to_string(pod.bundle().join("address")).unwrap();
        let client = containerd_shim_protos::Client::connect(&address).unwrap();
        let client = SandboxClient::new(client);
        let sandbox_id = pod.id.clone();
        client.ping_sandbox(within(), &PingRequest { sandbox_id, ..PingRequest::default() }).unwrap();
        let platform = client.platform(within(), &PlatformRequest::new()).unwrap().platform;
        assert_eq!((platform.os.as_str(), platform.architecture.as_str()), ("linux", "amd64"));
        let mut request = SandboxStatusRequest::new();
        (request.sandbox_id, request.verbose) = (pod.id.clone(), true);
        let status = client.sandbox_status(within(), &request).unwrap();
        assert_eq!(status.state, "SANDBOX_READY");
        assert_eq!(i32::try_from(status.pid).unwrap(), pod.pid());
        assert!(status.info["info"].contains("\"processStatus\":\"running\""), "{:?}", status.info);
        let mut request = SandboxMetricsRequest::new();
        request.sandbox_id = pod.id.clone();
        let metric = client.sandbox_metrics(within(), &request).unwrap().metrics;
        let metrics = Metrics::parse_from_bytes(&metric.data.value).unwrap();
        assert!(metrics.cpu.usage_usec > 0 && metrics.memory.usage > 10 << 20, "{metrics}");
        let bundle = tempfile::tempdir().unwrap();
        let mut request = CreateSandboxRequest::new();
        (request.sandbox_id, request.bundle_path) =
            ("another".to_owned(), bundle.path().display().to_string());
        let error = client.create_sandbox(within(), &request).unwrap_err().to_string();
        assert!(error.contains("PodSandboxConfig"), "{error}");
        let mut options = Any::new();
        options.type_url = "runtime.v1.PodSandboxConfig".to_owned();
        // A host name that is longer than the message.
        options.value = vec![2 << 3 | 2, 9];
        request.options = Some(options.clone()).into();
        let error = client.create_sandbox(within(), &request).unwrap_err().to_string();
        assert!(error.contains("PodSandboxConfig is malformed"), "{error}");
        // linux.security_context.namespace_options.network: that of the node. With this, containerd 2.1 ends itself
        // before it asks the shim (containerd issue 12983).
        options.value = vec![8 << 3 | 2, 6, 2 << 3 | 2, 4, 1 << 3 | 2, 2, 1 << 3, 2];
        request.options = Some(options).into();
        fs::create_dir(bundle.path().join("rootfs")).unwrap();
        let error = client.create_sandbox(within(), &request).unwrap_err().to_string();
        assert!(error.contains("the host's network"), "{error}");
        let mut request = PingRequest::new();
        request.sandbox_id = "another".to_owned();
        let error = client.ping_sandbox(within(), &request).unwrap_err().to_string();
        assert!(error.contains("another does not exist"), "{error}");
        assert!(container.runs() && pod.is_ready());
    });
}

#[test]
fn what_cannot_be_created() {
    check(|node| {
        let upwards =
            node.pod("upwards").linux(|linux| linux.cgroup_parent = "/kubepods-test/../x".to_owned());
        let error = upwards.try_run().err().expect("it is refused");
        assert!(error.message().contains("kubepods-test/../x"), "{error}");
        // containerd tells the options of the runtime when it starts the shim, and not when it creates the sandbox. With
        // good ones, containerd 2.1 does not start containers (containerd pull request 13360).
        let error = node.pod("options").misconfigured().try_run().err().expect("it is refused");
        assert!(error.message().contains("default_memory_mib"), "{error}");
        check_refused(&node, "PID", |namespaces| namespaces.pid = Namespace::Node as i32);
        check_refused(&node, "IPC", |namespaces| namespaces.ipc = Namespace::Node as i32);
        let unknown = node.pod("unknown").sysctls(&[("net.no.such", "1")]);
        let error = unknown.try_run().err().expect("it is refused");
        assert!(error.message().contains("no.such") || error.message().contains("no/such"), "{error}");
    });
}
