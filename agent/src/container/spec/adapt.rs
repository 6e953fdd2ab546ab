//! Converts the specification from the host into the one for libcontainer.
//!
//! libcontainer sets up namespaces, mounts, users and limits of a process. What it does not do, or does
//! differently from runc, is removed here and done by the agent or the runner: resources and device rules
//! (the agent manages the cgroup), seccomp and capabilities (they must come last and in a certain order, and
//! libcontainer omits seccomp for processes of exec), the environment (its order), and kernel settings that
//! do not belong to a namespace.

use std::collections::HashMap;
use std::path::Path;

use oci_spec::runtime::{
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, LinuxSeccomp, Mount, Process,
    Spec,
};

use super::{ForExec, rich};
use crate::container::cgroup::Cgroup;
use crate::error::RequestError;
use crate::settings;

/// A specification in its parts.
pub struct Adapted {
    /// What libcontainer gets as config.json.
    pub spec: Spec,
    /// The first process as the host wants it.
    pub process: Process,
    /// What processes of exec need.
    pub for_exec: ForExec,
    /// Limits for the cgroup.
    pub resources: Option<LinuxResources>,
    /// Kernel settings for the whole guest.
    pub sysctls: HashMap<String, String>,
    /// The container has a network namespace of its own, whose loopback is down.
    pub own_network: bool,
    /// This network namespace replaces the guest's.
    pub takes_network: bool,
    /// Its PID namespace is not its own.
    pub shares_pids: bool,
    /// The container's root as the guest knows it.
    pub owner: Option<u32>,
    /// What the container cannot write.
    pub readonly_paths: Vec<String>,
}

/// Splits a checked specification into its parts. `alone` means that no other container uses the guest's network.
pub fn adapt(mut spec: Spec, cgroup: &Cgroup, alone: bool) -> Result<Adapted, RequestError> {
    if rich::is_rich(&spec) {
        rich::adapt(&mut spec);
    }
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut process = spec.process().clone().unwrap_or_default();
    let resources = linux.resources().clone();
    let seccomp = linux.seccomp().clone();

    let namespaces = linux.namespaces_mut().get_or_insert_default();
    // The cgroup hierarchy above the container is the agent's and means nothing to it.
    let has =
        |namespaces: &[LinuxNamespace], kind| namespaces.iter().any(|namespace| namespace.typ() == kind);
    if !has(namespaces, LinuxNamespaceType::Cgroup) {
        namespaces.push(new_namespace(LinuxNamespaceType::Cgroup)?);
    }
    let own_user = namespaces.iter().any(|one| one.typ() == LinuxNamespaceType::User && one.path().is_none());
    // Only the owner of a network namespace can configure it, and the guest's is owned by the guest's initial user
    // namespace.
    let takes_network = own_user && alone && !has(namespaces, LinuxNamespaceType::Network);
    if takes_network {
        namespaces.push(new_namespace(LinuxNamespaceType::Network)?);
    }
    let own_network =
        namespaces.iter().any(|one| one.typ() == LinuxNamespaceType::Network && one.path().is_none());
    let shares_pids =
        namespaces.iter().any(|one| one.typ() == LinuxNamespaceType::Pid && one.path().is_some());
    let shares_network = !has(namespaces, LinuxNamespaceType::Network);
    let for_exec = ForExec {
        seccomp: seccomp.filter(useful),
        oom_score_adj: process.oom_score_adj(),
        personality: linux.personality().as_ref().map(|personality| personality.domain()),
        users: own_user.then(|| linux.uid_mappings().clone().unwrap_or_default()),
    };
    let owner = own_user.then(|| mapped_root(linux.uid_mappings().as_deref())).flatten();
    let readonly_paths = linux.readonly_paths().clone().unwrap_or_default();
    linux.set_readonly_paths(None);

    let (inside, sysctls) = split_sysctls(linux.sysctl().clone().unwrap_or_default(), shares_network);
    linux.set_sysctl(Some(inside).filter(|settings| !settings.is_empty()));
    linux.set_resources(None).set_seccomp(None);
    linux.set_mount_label(None);
    linux.set_cgroups_path(Some(cgroup.hierarchy_path()));
    let propagation = linux.rootfs_propagation().as_deref().and_then(plain_propagation).map(str::to_owned);
    linux.set_rootfs_propagation(propagation);
    spec.set_linux(Some(linux));
    let foreign_network = own_user && shares_network;
    for mount in spec.mounts_mut().iter_mut().flatten() {
        adapt_mount(mount);
        if foreign_network && mount.typ().as_deref() == Some("sysfs") {
            bind_sysfs(mount);
        }
    }
    normalise(&mut process);
    spec.set_process(Some(adapt_process(&process)));
    Ok(Adapted {
        spec,
        process,
        for_exec,
        resources,
        sysctls,
        own_network,
        takes_network,
        shares_pids,
        owner,
        readonly_paths,
    })
}

fn new_namespace(kind: LinuxNamespaceType) -> Result<LinuxNamespace, RequestError> {
    let namespace = LinuxNamespaceBuilder::default().typ(kind).build();
    namespace.map_err(|error| RequestError::new("linux.namespaces", error.to_string()))
}

/// An empty filter would slow down every system call without an effect.
fn useful(seccomp: &LinuxSeccomp) -> bool {
    use oci_spec::runtime::LinuxSeccompAction::ScmpActAllow;
    seccomp.default_action() != ScmpActAllow
        || seccomp.syscalls().as_ref().is_some_and(|rules| !rules.is_empty())
}

/// The process as libcontainer gets it: what the runner does itself is taken out.
fn adapt_process(process: &Process) -> Process {
    let mut process = process.clone();
    process.set_capabilities(None);
    // libcontainer sets limits in the container's user namespace, where none can be raised, and enters the working
    // directory without making it.
    process.set_rlimits(None);
    process.set_cwd("/".into());
    process.set_apparmor_profile(None).set_selinux_label(None);
    // libcontainer asks the C library for a missing HOME, and that would load code from the
    // container's own libraries into the runner.
    let env = process.env_mut().get_or_insert_default();
    if !env.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        env.retain(|entry| !entry.starts_with("HOME="));
        env.push("HOME=/".to_owned());
    }
    process
}

/// libcontainer treats `false` differently from a missing value; the specification does not.
fn normalise(process: &mut Process) {
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
}

/// The specification knows the plain names only; Docker uses those of mount(8).
fn plain_propagation(name: &str) -> Option<&'static str> {
    match name {
        "private" | "rprivate" => Some("private"),
        "slave" | "rslave" => Some("slave"),
        "shared" | "rshared" => Some("shared"),
        "unbindable" | "runbindable" => Some("unbindable"),
        _ => None,
    }
}

/// The user in the guest who is root inside the container's user namespace.
fn mapped_root(mappings: Option<&[oci_spec::runtime::LinuxIdMapping]>) -> Option<u32> {
    mappings?.iter().find(|mapping| mapping.container_id() == 0).map(|mapping| mapping.host_id())
}

/// Which kernel settings libcontainer can make inside a namespace of the container, and
/// which are the guest's. The guest belongs to its container or pod, so the latter are
/// allowed, where a shared host would have to refuse.
fn split_sysctls(
    sysctls: HashMap<String, String>,
    shares_network: bool,
) -> (HashMap<String, String>, HashMap<String, String>) {
    const IPC: &[&str] = &[
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.domainname",
        "kernel.hostname",
    ];
    sysctls.into_iter().partition(|(key, _)| {
        let key = key.replace('/', ".");
        IPC.contains(&key.as_str())
            || key.starts_with("fs.mqueue.")
            || key.starts_with("user.")
            // An interface comes later, and then through the agent.
            || (key.starts_with("net.") && !shares_network && settings::interface_of(&key).is_none())
    })
}

/// sysfs shows a network namespace, and only who owns that may mount it; with a user
/// namespace the container does not own the guest's. The guest's own mount shows the same.
fn bind_sysfs(mount: &mut Mount) {
    mount.set_typ(Some("bind".to_owned())).set_source(Some(Path::new("/sys").to_owned()));
    mount.options_mut().get_or_insert_default().push("rbind".to_owned());
}

/// Gives libcontainer's mount code what it expects.
fn adapt_mount(mount: &mut Mount) {
    if let Some(options) = mount.options_mut() {
        // The guest's own mounts are all private, so nothing travels into a container's or
        // out of it whatever stands here. Words of the kernel's log and versions of inodes are the
        // file system's own affair, and libcontainer would hand the options to it as unknown ones.
        const NOTHING_TO_DO: &[&str] = &[
            "private",
            "rprivate",
            "slave",
            "rslave",
            "async",
            "nomand",
            "symfollow",
            "silent",
            "loud",
            "iversion",
            "noiversion",
        ];
        options.retain(|option| !NOTHING_TO_DO.contains(&option.as_str()));
        if let Some(option) = options.iter_mut().find(|option| *option == "nosymfollow") {
            // libcontainer knows the flag in its recursive form only.
            "rnosymfollow".clone_into(option);
        }
    }
    if mount.source().is_none() {
        let name = mount.typ().clone().unwrap_or_else(|| "none".to_owned());
        mount.set_source(Some(Path::new(&name).to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn adapted(extra: serde_json::Value) -> Adapted {
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "/r"},
            "process": {
                "args": ["sh"], "cwd": "/w", "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 1}], "user": {"uid": 0, "gid": 0}, "env": ["A=1"],
                "noNewPrivileges": false, "capabilities": {"effective": ["CAP_KILL"]}
            },
            "linux": {"namespaces": [{"type": "mount"}]},
        });
        for (key, value) in extra.as_object().unwrap() {
            spec["linux"][key] = value.clone();
        }
        adapt(super::super::parse(spec.to_string().as_bytes()).unwrap(), &Cgroup::of("c"), true).unwrap()
    }

    #[test]
    fn the_runner_gets_what_libcontainer_does_not() {
        let adapted = adapted(json!({
            "resources": {"pids": {"limit": 5}},
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
        }));
        let linux = adapted.spec.linux().as_ref().unwrap();
        assert!(linux.resources().is_none() && linux.seccomp().is_none());
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/pouch/c")));
        assert!(adapted.for_exec.seccomp.is_some() && adapted.resources.is_some());
        let theirs = adapted.spec.process().as_ref().unwrap();
        assert!(theirs.capabilities().is_none() && adapted.process.capabilities().is_some());
        assert_eq!((theirs.rlimits(), theirs.cwd().as_path()), (&None, Path::new("/")));
        assert_eq!(theirs.env().as_deref().unwrap(), ["A=1", "HOME=/"]);
        assert_eq!(adapted.process.no_new_privileges(), None);
        let cgroup = |n: &oci_spec::runtime::LinuxNamespace| n.typ() == LinuxNamespaceType::Cgroup;
        assert!(linux.namespaces().as_ref().unwrap().iter().any(cgroup));
    }

    #[test]
    fn settings_of_the_whole_guest_are_the_agents() {
        let sysctl = json!({"net.core.somaxconn": "9", "kernel.shmmax": "1", "vm.max_map_count": "2"});
        let shared = adapted(json!({"sysctl": sysctl}));
        assert_eq!(shared.sysctls.len(), 2);
        assert_eq!(shared.spec.linux().as_ref().unwrap().sysctl().as_ref().unwrap().len(), 1);
        let own = adapted(json!({"sysctl": sysctl, "namespaces": [{"type": "mount"}, {"type": "network"}]}));
        assert_eq!(own.sysctls.len(), 1);
        assert!(own.own_network && !shared.own_network);
    }

    #[test]
    fn a_user_namespace_names_its_root() {
        let adapted = adapted(json!({
            "namespaces": [{"type": "mount"}, {"type": "user"}],
            "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
        }));
        assert_eq!(adapted.owner, Some(1000));
        assert!(adapted.takes_network && adapted.own_network, "its root sets the network up");
        assert_eq!(adapted.for_exec.mapped(9), 1009);
        assert_eq!(adapted.for_exec.mapped(10), 65534);
    }
}
