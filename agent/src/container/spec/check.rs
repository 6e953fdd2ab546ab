//! Rejects what a specification asks for and the guest does not support, with the name of the field. This
//! includes what libcontainer would ignore.

use std::path::Path;

use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, Mount, Process, Spec};

use crate::error::RequestError;

type Result = std::result::Result<(), RequestError>;

fn refuse(field: impl Into<String>, reason: impl Into<String>) -> Result {
    Err(RequestError::new(field, reason))
}

/// The limit for the length of lists, against mistakes and attacks.
const LIST_MAX: usize = 4096;

/// Checks a whole specification.
pub fn check(spec: &Spec) -> Result {
    if !spec.version().starts_with("1.") {
        return refuse("ociVersion", format!("{} is not 1.x", spec.version()));
    }
    let Some(root) = spec.root() else { return refuse("root", "is missing") };
    if !root.path().is_absolute() {
        return refuse("root.path", "must be absolute: the guest has no bundle");
    }
    let Some(process) = spec.process() else { return refuse("process", "is missing") };
    check_process(process, "process.")?;
    let Some(linux) = spec.linux() else { return refuse("linux", "is missing") };
    check_linux(linux)?;
    check_hooks(spec)?;
    let mounts = spec.mounts().as_deref().unwrap_or(&[]);
    if mounts.len() > LIST_MAX {
        return refuse("mounts", format!("has more than {LIST_MAX} entries"));
    }
    for (index, mount) in mounts.iter().enumerate() {
        check_mount(&format!("mounts[{index}]"), mount)?;
    }
    for (field, set) in [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("zos", spec.zos().is_some()),
        ("vm", spec.vm().is_some()),
    ] {
        if set {
            return refuse(field, "is for another platform");
        }
    }
    Ok(())
}

/// Checks a process; `prefix` goes before the names of its fields.
pub fn check_process(process: &Process, prefix: &str) -> Result {
    let field = |name: &str| format!("{prefix}{name}");
    let args = process.args().as_deref().unwrap_or(&[]);
    if args.first().is_none_or(String::is_empty) {
        return refuse(field("args"), "must have at least one entry, and the first must not be empty");
    }
    let env = process.env().as_deref().unwrap_or(&[]);
    for (name, list) in [("args", args), ("env", env)] {
        if list.len() > 65_536 {
            return refuse(field(name), "has more than 65536 entries");
        }
        if let Some(index) = list.iter().position(|text| text.contains('\0')) {
            return refuse(field(&format!("{name}[{index}]")), "contains NUL");
        }
    }
    if let Some(index) = env.iter().position(|text| !text.contains('=') || text.starts_with('=')) {
        return refuse(field(&format!("env[{index}]")), "is not of the form NAME=value");
    }
    if !process.cwd().is_absolute() {
        return refuse(field("cwd"), "must be absolute");
    }
    if process.apparmor_profile().as_ref().is_some_and(|profile| !profile.is_empty()) {
        return refuse(field("apparmorProfile"), "not available in the guest, whose kernel has no AppArmor");
    }
    if process.selinux_label().as_ref().is_some_and(|label| !label.is_empty()) {
        return refuse(field("selinuxLabel"), "not available in the guest, whose kernel has no SELinux");
    }
    if process.oom_score_adj().is_some_and(|value| !(-1000..=1000).contains(&value)) {
        return refuse(field("oomScoreAdj"), "must be from -1000 to 1000");
    }
    if process.user().umask().is_some_and(|umask| umask > 0o777) {
        return refuse(field("user.umask"), "must be at most 0777");
    }
    let mut seen = Vec::new();
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        if seen.contains(&limit.typ()) {
            return refuse(field(&format!("rlimits[{index}].type")), "is listed twice");
        }
        if limit.soft() > limit.hard() {
            return refuse(field(&format!("rlimits[{index}].soft")), "is more than the hard limit");
        }
        seen.push(limit.typ());
    }
    Ok(())
}

fn check_linux(linux: &Linux) -> Result {
    let namespaces = linux.namespaces().as_deref().unwrap_or(&[]);
    if !namespaces
        .iter()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Mount && namespace.path().is_none())
    {
        return refuse("linux.namespaces", "a new mount namespace is required");
    }
    for (index, namespace) in namespaces.iter().enumerate() {
        if namespaces[..index].iter().any(|other| other.typ() == namespace.typ()) {
            return refuse(format!("linux.namespaces[{index}].type"), "is listed twice");
        }
    }
    if linux.intel_rdt().is_some() {
        return refuse("linux.intelRdt", "not available in the guest");
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return refuse("linux.netDevices", "not available in the guest: the host connects the network");
    }
    if linux.memory_policy().is_some() {
        return refuse("linux.memoryPolicy", "not available in the guest, which has one NUMA node");
    }
    if linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()) {
        return refuse("linux.mountLabel", "not available in the guest, whose kernel has no SELinux");
    }
    if let Some(personality) = linux.personality()
        && personality.flags().as_ref().is_some_and(|flags| !flags.is_empty())
    {
        return refuse("linux.personality.flags", "must be empty: the specification defines none");
    }
    match linux.rootfs_propagation().as_deref() {
        None
        | Some("" | "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared" | "unbindable") => {}
        Some("runbindable") => {}
        Some(other) => return refuse("linux.rootfsPropagation", format!("{other:?} is not known")),
    }
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        if !device.path().starts_with("/dev/") {
            return refuse(format!("linux.devices[{index}].path"), "must be below /dev");
        }
    }
    for key in linux.sysctl().iter().flat_map(|sysctls| sysctls.keys()) {
        check_sysctl(&format!("linux.sysctl[{key}]"), key)?;
    }
    linux.seccomp().as_ref().map_or(Ok(()), check_seccomp)
}

/// Checks the name of a kernel setting.
pub fn check_sysctl(field: &str, key: &str) -> Result {
    if key.is_empty() || key.starts_with(['.', '/']) || key.contains("..") || key.contains('\0') {
        return refuse(field, "is not the name of a kernel setting");
    }
    Ok(())
}

fn check_seccomp(seccomp: &LinuxSeccomp) -> Result {
    if seccomp.listener_metadata().is_some() && seccomp.listener_path().is_none() {
        return refuse("linux.seccomp.listenerMetadata", "needs linux.seccomp.listenerPath");
    }
    check_errno("linux.seccomp.defaultErrnoRet", seccomp.default_action(), seccomp.default_errno_ret())?;
    if seccomp.default_action() == LinuxSeccompAction::ScmpActNotify {
        return refuse(
            "linux.seccomp.defaultAction",
            "SCMP_ACT_NOTIFY needs a listener, which the guest does not have",
        );
    }
    for (index, rule) in seccomp.syscalls().iter().flatten().enumerate() {
        let field = format!("linux.seccomp.syscalls[{index}]");
        if rule.names().is_empty() {
            return refuse(format!("{field}.names"), "must have at least one entry");
        }
        check_errno(&format!("{field}.errnoRet"), rule.action(), rule.errno_ret())?;
        if rule.action() == LinuxSeccompAction::ScmpActNotify {
            let field = format!("linux.seccomp.syscalls[{index}].action");
            return refuse(field, "SCMP_ACT_NOTIFY needs a listener, which the guest does not have");
        }
    }
    Ok(())
}

/// Only some actions have an error to return.
fn check_errno(field: &str, action: LinuxSeccompAction, errno: Option<u32>) -> Result {
    use LinuxSeccompAction::{ScmpActErrno, ScmpActTrace};
    if errno.is_some() && !matches!(action, ScmpActErrno | ScmpActTrace) {
        return refuse(field, "is for SCMP_ACT_ERRNO and SCMP_ACT_TRACE only");
    }
    Ok(())
}

fn check_hooks(spec: &Spec) -> Result {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    for (name, list) in [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ] {
        if list.as_ref().is_some_and(|list| !list.is_empty()) {
            return refuse(format!("hooks.{name}"), "must run on the host, where the hook's program is");
        }
    }
    Ok(())
}

/// Options that a bind mount takes besides flags; anything else would have no effect.
const BIND_OPTIONS: &[&str] = &["bind", "rbind", "defaults"];

fn check_mount(field: &str, mount: &Mount) -> Result {
    if !mount.destination().is_absolute() {
        return refuse(format!("{field}.destination"), "must be absolute");
    }
    for mappings in [mount.uid_mappings(), mount.gid_mappings()] {
        if mappings.as_ref().is_some_and(|mappings| !mappings.is_empty()) {
            return refuse(
                format!("{field}.uidMappings"),
                "not available in the guest: mount it mapped on the host",
            );
        }
    }
    let options = mount.options().as_deref().unwrap_or(&[]);
    let bind = mount.typ().as_deref() == Some("bind") || options.iter().any(|o| o == "bind" || o == "rbind");
    if mount.source().is_none() && bind {
        return refuse(format!("{field}.source"), "is missing");
    }
    for option in options {
        // Users of an engine know the destination, not the index.
        let place = mount.destination().display();
        let refused =
            |reason: &str| refuse(format!("{field}.options"), format!("{option} of {place}: {reason}"));
        match option.as_str() {
            "shared" | "rshared" => {
                return refused("not available in the guest: mounts made in it cannot appear on the host");
            }
            "idmap" | "ridmap" => return refused("not available in the guest: mount it mapped on the host"),
            "remount" => return refused("each mount of a container is a new one"),
            "sync" | "dirsync" | "mand" => return refused("not available in the guest"),
            "lazytime" | "nolazytime" | "iversion" | "noiversion" | "silent" | "loud" if bind => {
                return refused("is a setting of the whole file system, which a bind mount cannot change");
            }
            "ro" if mount.destination() == Path::new("/dev") => {
                return refused(
                    "not available in the guest for /dev, where the container's devices are created",
                );
            }
            "unbindable" | "runbindable" => return refused("not available in the guest"),
            other if bind && !BIND_OPTIONS.contains(&other) && !is_flag(other) => {
                return refused("is not an option of a bind mount");
            }
            _ => {}
        }
    }
    Ok(())
}

/// Flags of a mount point, as opposed to those of a file system.
fn is_flag(option: &str) -> bool {
    const FLAGS: &[&str] = &[
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "symfollow",
        "nosymfollow",
    ];
    /// These are the file system's: mounts below have their own.
    const NOT_RECURSIVE: &[&str] = &["async", "nomand"];
    const PROPAGATION: &[&str] = &["private", "rprivate", "slave", "rslave"];
    FLAGS.contains(&option)
        || NOT_RECURSIVE.contains(&option)
        || PROPAGATION.contains(&option)
        || option.strip_prefix('r').is_some_and(|rest| FLAGS.contains(&rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn minimal() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "root": {"path": "/run/pouch/share/c/rootfs"},
            "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        })
    }

    /// The refusal of the minimal specification with one value put in.
    fn refusal(pointer: &str, value: Value) -> String {
        let mut spec = minimal();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(name.to_owned(), value);
        match super::super::parse(spec.to_string().as_bytes()).and_then(|spec| check(&spec)) {
            Ok(()) => "accepted".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let cases = [
            ("/ociVersion", json!("2.0.0"), "ociVersion: "),
            ("/root/path", json!("rootfs"), "root.path: "),
            ("/process/args", json!([]), "process.args: "),
            ("/process/cwd", json!("x"), "process.cwd: "),
            ("/process/env", json!(["A=1", "B"]), "process.env[1]: "),
            ("/process/apparmorProfile", json!("docker-default"), "process.apparmorProfile: "),
            ("/process/selinuxLabel", json!("a:b"), "process.selinuxLabel: "),
            ("/process/oomScoreAdj", json!(2000), "process.oomScoreAdj: "),
            ("/linux/namespaces", json!([{"type": "pid"}]), "linux.namespaces: "),
            (
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "mount"}]),
                "linux.namespaces[1].type: ",
            ),
            ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt: "),
            ("/linux/netDevices", json!({"eth0": {}}), "linux.netDevices: "),
            ("/linux/mountLabel", json!("x"), "linux.mountLabel: "),
            ("/linux/rootfsPropagation", json!("upward"), "linux.rootfsPropagation: "),
            ("/linux/sysctl", json!({"../x": "1"}), "linux.sysctl[../x]: "),
            ("/hooks", json!({"prestart": [{"path": "/bin/x"}]}), "hooks.prestart: "),
            ("/hooks", json!({"createContainer": [{"path": "/bin/x"}]}), "hooks.createContainer: "),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/x"}),
                "linux.seccomp.defaultAction: ",
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}),
                "linux.seccomp.listenerMetadata: ",
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}),
                "linux.seccomp.defaultErrnoRet: ",
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_KILL", "errnoRet": 1}]}),
                "linux.seccomp.syscalls[0].errnoRet: ",
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": [], "action": "SCMP_ACT_KILL"}]}),
                "linux.seccomp.syscalls[0].names: ",
            ),
        ];
        for (pointer, value, expected) in cases {
            let refusal = refusal(pointer, value);
            assert!(refusal.starts_with(expected), "{pointer}: {refusal}");
        }
    }

    #[test]
    fn empty_values_ask_for_nothing() {
        for (pointer, value) in [
            ("/process/apparmorProfile", json!("")),
            ("/process/selinuxLabel", json!("")),
            ("/linux/mountLabel", json!("")),
            ("/linux/rootfsPropagation", json!("rslave")),
            ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"})),
            ("/hooks", json!({"startContainer": [{"path": "/bin/x"}], "prestart": []})),
        ] {
            assert_eq!(refusal(pointer, value), "accepted", "{pointer}");
        }
    }

    #[test]
    fn mount_options_without_effect_are_refused() {
        let mount = |kind: &str, option: &str| {
            refusal(
                "/mounts",
                json!([{"destination": "/x", "type": kind, "source": "/y", "options": [option]}]),
            )
        };
        for option in ["rshared", "idmap", "remount", "size=5", "sync", "lazytime", "rasync", "rnomand"] {
            assert!(mount("bind", option).starts_with("mounts[0].options: "), "{option}");
        }
        for option in ["rprivate", "ro", "rro", "rbind", "nosymfollow"] {
            assert_eq!(mount("bind", option), "accepted", "{option}");
        }
        assert_eq!(mount("tmpfs", "size=5"), "accepted");
        assert!(mount("tmpfs", "sync").starts_with("mounts[0].options: "));
    }

    #[test]
    fn a_malformed_specification_is_an_error() {
        assert!(super::super::parse(b"{").is_err());
        assert!(super::super::parse(b"").is_err());
        assert!(super::super::parse(b"[1,2]").is_err());
    }
}
