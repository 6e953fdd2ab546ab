//! Scripts made from public bug reports about comparable runtimes (`cases/`, each names the threads): what one prints
//! with runc, it prints with the runtime that is tested.

use std::fs;
use std::path::Path;

use pouch_tests::{Engine, HANG, Invocation, Output, engine_tests, has_vm, runtime};

use crate::settings::HostSetting;

/// Each script has a test, and says how its lines are compared. Those that have much in common with other tests run in
/// the profile `long` only.
macro_rules! cases {
    ($($engines:ident { $($name:ident: $compare:ident, $script:literal;)+ })+) => {
        $($(fn $name(_engine: Engine) {
            check($script, include_str!(concat!("cases/", $script)), Compare::$compare);
        })+)+
        engine_tests! { $($engines: $($name),+;)+ }
    };
}

cases! {
    docker {
        host_sysctl: Lines, "29-host-sysctl.sh";
        nftables: List, "37-nftables.sh";
        mapped_dns: Lines, "40-mapped-dns.sh";
        sysctl_of_eth0: Lines, "41-sysctl-of-eth0.sh";
        own_id: Lines, "48-own-id.sh";
        loop_mount: Lines, "62-loop-mount.sh";
    }
    docker_long {
        dot_entries: Lines, "01-dot-entries.sh";
        inode_collision_copy: Lines, "02-inode-collision-copy.sh";
        nested_volume_loop: Lines, "03-nested-volume-loop.sh";
        one_file_system: Lines, "04-one-file-system.sh";
        directory_inode: Lines, "05-directory-inode.sh";
        host_proc_bind: Lines, "07-host-proc-bind.sh";
        overlay_on_volume: Lines, "08-overlay-on-volume.sh";
        default_acl: Lines, "10-default-acl.sh";
        file_flags: Lines, "14-file-flags.sh";
        file_operations: Lines, "20-file-operations.sh";
        compat_32bit_time: List, "26-compat-32bit-time.sh";
        statistics_in_proc: List, "27-statistics-in-proc.sh";
        overcommit: List, "30-overcommit.sh";
        socket_families: List, "32-socket-families.sh";
        link_kinds: List, "33-link-kinds.sh";
        traffic_control: List, "34-traffic-control.sh";
        iptables: List, "35-iptables.sh";
        system_calls: List, "39-system-calls.sh";
        network_settings: Lines, "42-network-settings.sh";
    }
}

/// Differences that are right: the script, its lines as diff(1) shows them (`<` is runc's), and the reason. A line that
/// no longer differs fails the test.
const RIGHT: &[(&str, &[&str], &str)] = &[
    ("27-statistics-in-proc.sh", &["> not there: /sys/class/dmi/id/product_name"], "there is no firmware"),
    ("27-statistics-in-proc.sh", &["> not there: /sys/power/state"], "a VM does not sleep"),
    // Once without a profile and once with the usual one.
    (
        "32-socket-families.sh",
        &["< netlink selinux ok", "< netlink selinux ok"],
        "the guest's kernel has no SELinux: the VM confines the container",
    ),
    ("32-socket-families.sh", &["< netlink iscsi ok", "< netlink iscsi ok"], "the host attaches iSCSI disks"),
    (
        "39-system-calls.sh",
        &["> not there: kexec_file_load", "> not there: kexec_load"],
        "the guest's kernel is the host's to choose",
    ),
    // Of net.ipv4.conf.eth0.rp_filter and net.ipv6.conf.eth0.accept_ra, where the default was set.
    (
        "41-sysctl-of-eth0.sh",
        &["< 0", "> 2", "< 1", "> 0"],
        "runc has eth0 from Docker 26 before it makes settings; in the VM it comes after them, as from Docker 28",
    ),
    (
        "42-network-settings.sh",
        &["< qdisc noqueue", "> qdisc pfifo_fast", "> qlen 1000"],
        "a virtio device can be full, and then needs a queue; a veth cannot",
    ),
    (
        "48-own-id.sh",
        &["< root: overlay", "> root: virtiofs"],
        "the root file system is shared with the guest by virtio-fs",
    ),
    (
        "48-own-id.sh",
        &[
            "< / /dev /dev/mqueue /dev/pts /dev/shm /etc/hostname /etc/hosts /etc/resolv.conf /proc /proc/acpi \
             /proc/bus /proc/fs /proc/irq /proc/kcore /proc/keys /proc/sys /proc/sysrq-trigger /proc/timer_list \
             /sys /sys/firmware /sys/fs/cgroup",
            "> / /dev /dev/mqueue /dev/pts /dev/shm /etc/hostname /etc/hosts /etc/resolv.conf /proc /proc/bus \
             /proc/fs /proc/irq /proc/keys /proc/sys /proc/sysrq-trigger /proc/timer_list /sys /sys/firmware \
             /sys/fs/cgroup",
        ],
        "/proc/acpi and /proc/kcore are masked, and the guest's kernel has neither",
    ),
];

/// How the lines of a script are compared.
#[derive(Clone, Copy, PartialEq)]
enum Compare {
    /// All lines are the same.
    Lines,
    /// A list of what is there: what runc has is there, and more is no fault.
    List,
}

/// How a line of a list begins that names what is missing.
const NOT_THERE: &str = "not there: ";

fn check(name: &str, script: &str, compare: Compare) {
    // A container of runc has what others have loaded on the host, and their tunnels.
    let _no_tunnels = HostSetting::set("net/core/fb_tunnels_only_for_init_net", "1");
    Invocation::of("modprobe", ["--remove", "--quiet", "tls", "tcp_bbr", "tcp_dctcp"]).run();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, script).unwrap();
    fs::write(folder.path().join("common.sh"), include_str!("cases/common.sh")).unwrap();
    let outputs = ["runc", &runtime()].map(|runtime| run(&path, runtime));
    let [runc, ours] = outputs.each_ref().map(|output| lines(&output.text(), compare));
    let mut differences = differences(folder.path(), &runc, &ours, compare);
    let right = RIGHT.iter().filter(|(script, ..)| *script == name && has_vm());
    let mut expected: Vec<&str> = right.flat_map(|(_, lines, _)| *lines).copied().collect();
    differences.sort_unstable();
    expected.sort_unstable();
    let [runc, ours] = outputs;
    assert_eq!(differences, expected, "{runc}\n{ours}");
}

fn run(path: &Path, runtime: &str) -> Output {
    let arguments = [path.as_os_str(), runtime.as_ref()];
    // The script removes a container that hangs, so it must have more time than its containers.
    let limit = (HANG / 2).as_secs().to_string();
    let output = Invocation::of("sh", arguments).env("SECONDS_MAX", limit).within(2 * HANG).run();
    assert!(!output.text().is_empty(), "{output}");
    let failed = |line: &str| line.starts_with("timed out") || line.starts_with("skipped");
    assert!(!output.text().lines().any(failed), "{output}");
    output
}

/// The lines of an output. Where a list names all that is missing on one line, it is one line for each.
fn lines(text: &str, compare: Compare) -> String {
    let mut lines = String::new();
    for line in text.lines() {
        match line.strip_prefix(NOT_THERE).filter(|_| compare == Compare::List) {
            Some(names) => names.split(' ').for_each(|name| lines += &format!("{NOT_THERE}{name}\n")),
            None => lines += &format!("{}\n", line.trim_end()),
        }
    }
    lines
}

/// The lines of diff(1) that are faults.
fn differences(folder: &Path, runc: &str, ours: &str, compare: Compare) -> Vec<String> {
    fs::write(folder.join("runc"), runc).unwrap();
    fs::write(folder.join("ours"), ours).unwrap();
    let output = Invocation::of("diff", ["--minimal", "runc", "ours"]).current_dir(folder).run();
    assert!(output.status < 2, "{output}");
    let is_fault = |line: &&str| match (line.split_at_checked(2), compare) {
        (Some(("< " | "> ", _)), Compare::Lines) => true,
        (Some(("< ", line)), Compare::List) => !is_missing(line),
        (Some(("> ", line)), Compare::List) => names_what_is_missing(line),
        _ => false,
    };
    output.text().lines().filter(is_fault).map(str::to_owned).collect()
}

/// Whether a line of a list says that something is missing: "no", "not there", or an error.
fn is_missing(line: &str) -> bool {
    let last = line.rsplit(' ').next().unwrap_or_default();
    let is_error = last.len() > 2 && last.starts_with('E') && last.chars().all(|c| c.is_ascii_uppercase());
    last == "no"
        || is_error
        || line.contains("[Errno ")
        || line.contains("not there")
        || names_what_is_missing(line)
}

/// Whether it is a line that a list has only for what is missing.
fn names_what_is_missing(line: &str) -> bool {
    line.starts_with(NOT_THERE) || line.contains(" has no ")
}
