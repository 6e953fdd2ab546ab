//! Kernel settings that a container inherits from its host.
//!
//! Under a runtime that shares the host's kernel, these are settings of the host or of the container's
//! network namespace, and most cannot be set in a specification. The host reads them and the agent writes
//! them in the guest. Both sides have the same list, so neither can make the other access another file.

/// Settings of the host as a whole, as paths below `/proc/sys`.
pub const HOST: &[&str] = &[
    "dev/tty/ldisc_autoload",
    "fs/aio-max-nr",
    "fs/epoll/max_user_watches",
    "fs/file-max",
    "fs/inotify/max_queued_events",
    "fs/inotify/max_user_instances",
    "fs/inotify/max_user_watches",
    "fs/mount-max",
    "fs/nr_open",
    "fs/pipe-max-size",
    "fs/pipe-user-pages-hard",
    "fs/pipe-user-pages-soft",
    "fs/protected_fifos",
    "fs/protected_hardlinks",
    "fs/protected_regular",
    "fs/protected_symlinks",
    "fs/suid_dumpable",
    "kernel/core_pattern",
    "kernel/core_uses_pid",
    "kernel/dmesg_restrict",
    "kernel/io_uring_disabled",
    "kernel/keys/maxbytes",
    "kernel/keys/maxkeys",
    "kernel/kptr_restrict",
    "kernel/perf_event_paranoid",
    "kernel/pid_max",
    "kernel/randomize_va_space",
    "kernel/sysrq",
    "kernel/threads-max",
    "kernel/unprivileged_bpf_disabled",
    "kernel/yama/ptrace_scope",
    // They bound what setsockopt(2) gives in any network namespace.
    "net/core/rmem_default",
    "net/core/rmem_max",
    "net/core/wmem_default",
    "net/core/wmem_max",
    "vm/max_map_count",
    "vm/mmap_min_addr",
    "vm/overcommit_memory",
    "vm/overcommit_ratio",
    "vm/swappiness",
    "vm/unprivileged_userfaultfd",
];

/// Settings of a network namespace, as paths below `/proc/sys/net`. Forwarding comes first: to set it
/// changes others.
const NETWORK: &[&str] = &[
    "ipv4/ip_forward",
    "core/somaxconn",
    "unix/max_dgram_qlen",
    "ipv4/icmp_echo_ignore_all",
    "ipv4/icmp_echo_ignore_broadcasts",
    "ipv4/igmp_max_memberships",
    "ipv4/ip_default_ttl",
    "ipv4/ip_local_port_range",
    "ipv4/ip_local_reserved_ports",
    "ipv4/ip_no_pmtu_disc",
    "ipv4/ip_nonlocal_bind",
    "ipv4/ip_unprivileged_port_start",
    "ipv4/ping_group_range",
    "ipv4/tcp_abort_on_overflow",
    "ipv4/tcp_base_mss",
    "ipv4/tcp_congestion_control",
    "ipv4/tcp_ecn",
    "ipv4/tcp_fastopen",
    "ipv4/tcp_fin_timeout",
    "ipv4/tcp_keepalive_intvl",
    "ipv4/tcp_keepalive_probes",
    "ipv4/tcp_keepalive_time",
    "ipv4/tcp_max_syn_backlog",
    "ipv4/tcp_max_tw_buckets",
    "ipv4/tcp_moderate_rcvbuf",
    "ipv4/tcp_mtu_probing",
    "ipv4/tcp_no_metrics_save",
    "ipv4/tcp_notsent_lowat",
    "ipv4/tcp_orphan_retries",
    "ipv4/tcp_retries1",
    "ipv4/tcp_retries2",
    "ipv4/tcp_rfc1337",
    "ipv4/tcp_rmem",
    "ipv4/tcp_sack",
    "ipv4/tcp_slow_start_after_idle",
    "ipv4/tcp_syn_retries",
    "ipv4/tcp_synack_retries",
    "ipv4/tcp_syncookies",
    "ipv4/tcp_timestamps",
    "ipv4/tcp_tw_reuse",
    "ipv4/tcp_window_scaling",
    "ipv4/tcp_wmem",
    "ipv6/bindv6only",
    "ipv6/conf/all/forwarding",
    "ipv6/conf/default/forwarding",
    "ipv6/conf/all/disable_ipv6",
    "ipv6/conf/default/disable_ipv6",
    "ipv6/conf/lo/disable_ipv6",
];

/// Settings of IPv4 that exist for all interfaces, for new ones and for each; with what the guest has where nobody sets
/// it, unless `ip_forward` changes that.
const INTERFACE: &[(&str, Option<&str>)] = &[
    ("accept_local", Some("0")),
    ("accept_redirects", None),
    ("accept_source_route", None),
    ("arp_accept", Some("0")),
    ("arp_announce", Some("0")),
    ("arp_filter", Some("0")),
    ("arp_ignore", Some("0")),
    ("arp_notify", Some("0")),
    ("forwarding", None),
    ("log_martians", Some("0")),
    ("promote_secondaries", Some("0")),
    ("proxy_arp", Some("0")),
    ("route_localnet", Some("0")),
    ("rp_filter", Some("0")),
    ("secure_redirects", Some("1")),
    ("send_redirects", Some("1")),
    ("shared_media", Some("1")),
    ("src_valid_mark", Some("0")),
];
/// Those that a network namespace has before it gets any interface of its own.
const INTERFACES: [&str; 3] = ["all", "default", "lo"];

/// Longest value, in bytes: that of `kernel/core_pattern` without its end.
const VALUE_MAX: usize = 127;

/// The settings of a network namespace as paths below `/proc/sys`, in the order in which they are set.
pub fn network() -> impl Iterator<Item = String> {
    let interfaces = INTERFACES.iter().flat_map(|interface| {
        INTERFACE.iter().map(move |(setting, _)| format!("net/ipv4/conf/{interface}/{setting}"))
    });
    NETWORK.iter().map(|name| format!("net/{name}")).chain(interfaces)
}

/// Whether the guest may be given this value of this setting.
pub fn is_allowed(name: &str, value: &str) -> bool {
    if value.is_empty() || value.len() > VALUE_MAX || !is_listed(name) {
        return false;
    }
    match name {
        // A program of the host's, or a socket of it, is not in the guest.
        "kernel/core_pattern" => {
            !value.starts_with(['|', '@'])
                && value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
        }
        "net/ipv4/tcp_congestion_control" => {
            value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        }
        _ => value.bytes().all(|byte| byte.is_ascii_digit() || b"-, \t".contains(&byte)),
    }
}

/// Whether a guest has this value of this setting already, so that it need not be told.
pub fn is_default(name: &str, value: &str) -> bool {
    of_interface(name).is_some_and(|default| default == Some(value))
}

fn is_listed(name: &str) -> bool {
    HOST.contains(&name)
        || name.strip_prefix("net/").is_some_and(|name| NETWORK.contains(&name))
        || of_interface(name).is_some()
}

/// The default of a setting of interfaces, if this is one.
fn of_interface(name: &str) -> Option<Option<&'static str>> {
    let (interface, setting) = name.strip_prefix("net/ipv4/conf/")?.split_once('/')?;
    let (_, default) = INTERFACE.iter().find(|(listed, _)| *listed == setting)?;
    INTERFACES.contains(&interface).then_some(*default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_that_is_read_may_be_set() {
        for name in HOST.iter().map(|name| (*name).to_owned()).chain(network()) {
            assert!(is_allowed(&name, "1"), "{name}");
            assert!(!is_allowed(&name, ""), "{name}");
            assert!(!is_allowed(&name, &"1".repeat(128)), "{name}");
            assert!(!is_allowed(&name, "1\n2"), "{name}");
        }
    }

    #[test]
    fn nothing_else_is_set() {
        for name in [
            "kernel/modprobe",
            "kernel/printk",
            "vm/drop_caches",
            "net/ipv4/conf/eth0/rp_filter",
            "net/ipv4/conf/all/../../ip_forward",
            "net/ipv4/../../kernel/core_pattern",
            "../sys/kernel/core_pattern",
            "ipv4/ip_forward",
            "",
        ] {
            assert!(!is_allowed(name, "1"), "{name}");
        }
    }

    #[test]
    fn what_a_guest_has_anyway_is_known() {
        assert!(
            is_default("net/ipv4/conf/all/rp_filter", "0")
                && is_default("net/ipv4/conf/lo/send_redirects", "1")
        );
        assert!(
            !is_default("net/ipv4/conf/all/rp_filter", "2")
                && !is_default("net/ipv4/conf/all/forwarding", "0")
        );
        assert!(!is_default("net/ipv4/conf/eth0/rp_filter", "0") && !is_default("vm/swappiness", "0"));
    }

    #[test]
    fn programs_that_take_core_dumps_stay_on_the_host() {
        let core = |value| is_allowed("kernel/core_pattern", value);
        assert!(core("core") && core("/var/crash/core.%e.%p"));
        assert!(!core("|/usr/lib/systemd/systemd-coredump %P") && !core("@/run/coredump.socket"));
        assert!(is_allowed("net/ipv4/tcp_congestion_control", "bbr"));
        assert!(!is_allowed("net/ipv4/tcp_congestion_control", "../x"));
        assert!(!is_allowed("vm/swappiness", "sixty"));
        assert!(is_allowed("net/ipv4/tcp_rmem", "4096\t131072\t6291456"));
        assert!(is_allowed("net/ipv4/ip_local_reserved_ports", "8080,9000-9010"));
    }
}
