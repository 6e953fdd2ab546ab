//! The specification of a sandbox that the sandbox API describes. It says what CRI's own sandboxes say (containerd,
//! `internal/cri/server/podsandbox`), so that such a pod is like any other from there on.

use std::collections::BTreeMap;
use std::path::Path;

use caps::{CapSet, Capability};
use serde_json::{Map, Value, json};

use super::pod::{SANDBOX, TYPE};
use super::sandbox_config::{PodConfig, Resources};

/// The beginning of CRI's annotations.
const PREFIX: &str = "io.kubernetes.cri.";
/// The value of `oom_score_adj` of a pod's own processes.
const OOM_SCORE: i32 = -998;
/// Kernel settings of a pod that has a network of its own, unless it sets them itself: CRI's, as it is configured by
/// default since containerd 2.0.
const SYSCTLS: [(&str, &str); 2] =
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")];

/// The specification of the sandbox `id`. An empty `network` is a new network namespace. The request's annotations are
/// taken over.
pub fn specification(
    id: &str,
    config: &PodConfig,
    network: &str,
    annotations: impl IntoIterator<Item = (String, String)>,
) -> Value {
    let mut linux = json!({
        "namespaces": namespaces(config, network),
        "sysctl": sysctls(config),
    });
    if !config.cgroup_parent.is_empty() {
        linux["cgroupsPath"] = cgroups_path(&config.cgroup_parent, id).into();
    }
    let mut all: Map<String, Value> =
        annotations.into_iter().map(|(name, value)| (name, value.into())).collect();
    all.extend(cri_annotations(id, config));
    let mut spec = json!({
        "ociVersion": "1.2.0",
        // It is not run.
        "process": {"cwd": "/", "args": ["/pause"], "user": {"uid": 0, "gid": 0}, "oomScoreAdj": oom_score()},
        "root": {"path": "rootfs", "readonly": true},
        "annotations": all,
        "linux": linux,
    });
    if !config.hostname.is_empty() {
        spec["hostname"] = config.hostname.as_str().into();
    }
    spec
}

/// Those of the host are left out, and then refused by their names.
fn namespaces(config: &PodConfig, network: &str) -> Vec<Value> {
    let of_pod = config.namespaces;
    let kinds = [
        ("mount", true),
        ("pid", !of_pod.host_pid),
        ("ipc", !of_pod.host_ipc),
        ("uts", !of_pod.host_network),
        ("user", of_pod.own_users),
    ];
    let mut all: Vec<Value> =
        kinds.iter().filter(|(_, own)| *own).map(|(kind, _)| json!({"type": kind})).collect();
    if !of_pod.host_network {
        let mut one = json!({"type": "network"});
        if !network.is_empty() {
            one["path"] = network.into();
        }
        all.push(one);
    }
    all
}

fn sysctls(config: &PodConfig) -> BTreeMap<&str, &str> {
    let defaults = SYSCTLS.iter().copied().filter(|_| !config.namespaces.host_network);
    let own = config.sysctls.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    defaults.chain(own).collect()
}

/// The sandbox's cgroup: SLICE:PREFIX:NAME if systemd manages that of the pod, else a path.
fn cgroups_path(parent: &str, id: &str) -> String {
    match Path::new(parent).file_name().and_then(|name| name.to_str()) {
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        _ => Path::new(parent).join(id).display().to_string(),
    }
}

fn cri_annotations(id: &str, config: &PodConfig) -> Vec<(String, Value)> {
    let mut all = vec![(TYPE.to_owned(), "sandbox".into()), (SANDBOX.to_owned(), id.into())];
    let mut add = |name: &str, value: String| all.push((format!("{PREFIX}sandbox-{name}"), value.into()));
    add("namespace", config.namespace.clone());
    add("uid", config.uid.clone());
    add("name", config.name.clone());
    add("log-directory", config.log_directory.clone());
    if let Some(Resources { cpu_period, cpu_quota, cpu_shares, memory }) = config.resources {
        let limits = [
            ("cpu-period", cpu_period),
            ("cpu-quota", cpu_quota),
            ("cpu-shares", cpu_shares),
            ("memory", memory),
        ];
        limits.iter().for_each(|(name, value)| add(name, value.to_string()));
    }
    all
}

/// The value for the pod's processes. Without the right to lower it, it stays what it is.
fn oom_score() -> i32 {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SYS_RESOURCE).unwrap_or(false) {
        return OOM_SCORE;
    }
    let current = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    current.trim().parse().unwrap_or(0).max(OOM_SCORE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::sandbox_config::Namespaces;

    fn spec(config: &PodConfig) -> Value {
        specification("abc", config, "/run/netns/x", [("own".to_owned(), "1".to_owned())])
    }

    #[test]
    fn a_sandbox_is_as_cri_makes_one() {
        let config = PodConfig {
            name: "pod".to_owned(),
            hostname: "host".to_owned(),
            cgroup_parent: "/kubepods/u".to_owned(),
            resources: Some(Resources { memory: 1 << 30, cpu_quota: 5, ..Resources::default() }),
            ..PodConfig::default()
        };
        let spec = spec(&config);
        let annotation = |name: &str| spec["annotations"][format!("{PREFIX}{name}")].as_str();
        assert_eq!(annotation("container-type"), Some("sandbox"));
        assert_eq!(annotation("sandbox-id"), Some("abc"));
        assert_eq!(annotation("sandbox-name"), Some("pod"));
        assert_eq!(annotation("sandbox-memory"), Some("1073741824"));
        assert_eq!(annotation("sandbox-cpu-quota"), Some("5"));
        assert_eq!(spec["annotations"]["own"], "1");
        assert_eq!(spec["hostname"], "host");
        assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/u/abc");
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        assert!(namespaces.contains(&json!({"type": "network", "path": "/run/netns/x"})));
        assert_eq!(namespaces.len(), 5);
        serde_json::from_value::<oci_spec::runtime::Spec>(spec).unwrap();
    }

    #[test]
    fn namespaces_of_the_host_are_left_out() {
        let namespaces = Namespaces { host_network: true, host_pid: true, host_ipc: true, own_users: true };
        let spec = spec(&PodConfig { namespaces, ..PodConfig::default() });
        assert_eq!(spec["linux"]["namespaces"], json!([{"type": "mount"}, {"type": "user"}]));
        assert_eq!(spec["linux"]["sysctl"], json!({}));
        assert!(spec["hostname"].is_null() && spec["linux"]["cgroupsPath"].is_null());
    }

    #[test]
    fn a_pods_own_settings_come_before_the_defaults() {
        let name = SYSCTLS[0].0;
        let config =
            PodConfig { sysctls: [(name.to_owned(), "80".to_owned())].into(), ..PodConfig::default() };
        let spec = spec(&config);
        assert_eq!(spec["linux"]["sysctl"][name], "80");
        assert_eq!(spec["linux"]["sysctl"][SYSCTLS[1].0], SYSCTLS[1].1);
    }

    #[test]
    fn a_slice_is_named_as_systemd_has_it() {
        assert_eq!(
            cgroups_path("/kubepods.slice/kubepods-u.slice", "a"),
            "kubepods-u.slice:cri-containerd:a"
        );
        assert_eq!(cgroups_path("/kubepods/u/", "a"), "/kubepods/u/a");
    }
}
