//! What this runtime supports (OCI runtime specification, features.md and features-linux.md).

use serde_json::{Value, json};

use super::state::OCI_VERSION;

/// Options of mounts that are taken, for some kind of mount at least.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "bind",
    "defaults",
    "idmap",
    "iversion",
    "lazytime",
    "loud",
    "noiversion",
    "nolazytime",
    "nomand",
    "private",
    "rbind",
    "ridmap",
    "rprivate",
    "rslave",
    "silent",
    "slave",
];

/// Attributes of a mount point: each is an option, and with an `r` before it one for all mounts below too. The agent
/// takes these (`is_flag` in `agent/src/container/spec/check.rs`), and libcontainer sets them in the guest.
/// Docker binds read-only with all that is below a folder only if it finds `rro` among the options.
const MOUNT_ATTRIBUTES: &[&str] = &[
    "atime",
    "dev",
    "diratime",
    "exec",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "relatime",
    "ro",
    "rw",
    "strictatime",
    "suid",
    "symfollow",
];

/// Those of Linux 6.12, as libcontainer knows them.
const CAPABILITIES: &[&str] = &[
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "SYSLOG",
    "WAKE_ALARM",
];

/// The features document.
pub fn document() -> Value {
    let capabilities: Vec<String> = CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": mount_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": false},
            "seccomp": seccomp(),
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false, "schemata": false, "monitoring": false},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": false},
        },
        "annotations": {
            "io.pouch-vm.version": env!("CARGO_PKG_VERSION"),
            "io.pouch-vm.checkpoint.enabled": "false",
        },
        "potentiallyUnsafeConfigAnnotations": [],
    })
}

fn mount_options() -> Vec<String> {
    let plain = MOUNT_OPTIONS.iter().chain(MOUNT_ATTRIBUTES).map(|option| (*option).to_owned());
    let recursive = MOUNT_ATTRIBUTES.iter().map(|attribute| format!("r{attribute}"));
    let mut options: Vec<String> = plain.chain(recursive).collect();
    options.sort();
    options
}

/// The filters of the guest.
fn seccomp() -> Value {
    const FLAGS: [&str; 3] =
        ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"];
    json!({
        "enabled": true,
        "actions": [
            "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
            "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP"
        ],
        "operators": [
            "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
            "SCMP_CMP_NE"
        ],
        "archs": ["SCMP_ARCH_X86", "SCMP_ARCH_X86_64", "SCMP_ARCH_X32"],
        "knownFlags": FLAGS,
        "supportedFlags": FLAGS,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_listed_once_with_the_recursive_ones_and_without_those_refused() {
        let options = mount_options();
        let has = |option: &str| options.iter().any(|listed| listed == option);
        for option in
            ["bind", "idmap", "ridmap", "ro", "rro", "rrw", "rnosuid", "rnosymfollow", "rstrictatime"]
        {
            assert!(has(option), "{option}");
        }
        for option in ["rshared", "runbindable", "rasync", "rnomand", "sync", "remount"] {
            assert!(!has(option), "{option}");
        }
        assert!(options.windows(2).all(|pair| pair[0] < pair[1]), "{options:?}");
    }
}
