//! Kernel settings that a container inherits from its host, and those of its interfaces.

use std::fs;

use pouch_tests::{Engine, engine_tests};

engine_tests! {
    both_long: settings_of_an_interface_are_made;
    docker: settings_of_the_host_are_inherited;
}

/// A setting of the host that is another for the length of a test.
pub struct HostSetting {
    path: String,
    before: String,
}

impl HostSetting {
    pub fn set(name: &str, value: &str) -> Self {
        let path = format!("/proc/sys/{name}");
        let before = fs::read_to_string(&path).unwrap();
        fs::write(&path, value).unwrap();
        HostSetting { path, before }
    }
}

impl Drop for HostSetting {
    fn drop(&mut self) {
        fs::write(&self.path, &self.before).unwrap();
    }
}

/// What a container of runc reads, one of pouch-vm reads too: what was tuned on the host, and the defaults of a
/// network namespace there. A specification's own settings come after.
fn settings_of_the_host_are_inherited(engine: Engine) {
    let _tuned = [
        ("vm/max_map_count", "1048575"),
        ("vm/mmap_min_addr", "32768"),
        ("vm/swappiness", "33"),
        ("vm/overcommit_memory", "1"),
        ("vm/overcommit_ratio", "71"),
        ("fs/aio-max-nr", "1048575"),
        ("fs/nr_open", "1048570"),
        ("fs/inotify/max_user_instances", "1023"),
        ("fs/inotify/max_queued_events", "16385"),
        ("fs/pipe-max-size", "2097152"),
        ("kernel/pid_max", "54321"),
        ("kernel/io_uring_disabled", "1"),
        ("kernel/keys/maxkeys", "333"),
        ("kernel/keys/maxbytes", "33333"),
        ("fs/epoll/max_user_watches", "99999"),
        ("fs/mount-max", "5000"),
        ("dev/tty/ldisc_autoload", "0"),
        ("vm/unprivileged_userfaultfd", "1"),
        ("kernel/sysrq", "176"),
        ("kernel/threads-max", "12345"),
        ("kernel/core_pattern", "/srv/core.of.%e"),
        ("net/core/rmem_max", "8388608"),
        ("net/ipv4/conf/default/rp_filter", "2"),
    ]
    .map(|(name, value)| HostSetting::set(name, value));
    let script = r#"
import os, signal, socket
for name in """vm/max_map_count vm/swappiness vm/overcommit_memory vm/overcommit_ratio fs/aio-max-nr fs/file-max fs/nr_open
        fs/inotify/max_user_instances fs/inotify/max_user_watches fs/inotify/max_queued_events fs/pipe-max-size kernel/pid_max kernel/threads-max kernel/core_pattern
        kernel/sysrq vm/mmap_min_addr kernel/io_uring_disabled kernel/keys/maxkeys kernel/keys/maxbytes
        fs/epoll/max_user_watches fs/mount-max dev/tty/ldisc_autoload vm/unprivileged_userfaultfd
        net/ipv4/ip_forward net/ipv4/conf/all/rp_filter net/ipv4/conf/all/forwarding net/ipv4/conf/all/accept_redirects
        net/ipv4/conf/all/send_redirects net/ipv4/conf/eth0/rp_filter net/ipv4/conf/eth0/forwarding net/ipv4/conf/lo/forwarding
        net/ipv6/conf/all/forwarding net/ipv6/conf/all/disable_ipv6 net/ipv6/conf/lo/disable_ipv6 net/ipv6/bindv6only
        net/ipv4/ip_local_port_range net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range net/ipv4/ip_default_ttl
        net/ipv4/tcp_keepalive_time net/ipv4/tcp_fin_timeout net/ipv4/tcp_tw_reuse net/ipv4/tcp_ecn net/ipv4/tcp_mtu_probing
        net/ipv4/tcp_fastopen net/ipv4/tcp_congestion_control net/ipv4/tcp_syn_retries net/ipv4/tcp_retries2 net/ipv4/tcp_rmem
        net/core/somaxconn net/unix/max_dgram_qlen""".split():
    print(name, " ".join(open("/proc/sys/" + name).read().split()))
buffer = socket.socket()
buffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8388608)
print("SO_RCVBUF", buffer.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
if os.fork() == 0:
    os.kill(os.getpid(), signal.SIGSEGV)
print("core", bool(os.wait()[1] & 0x80), sorted(os.listdir("/srv")))
"#;
    let run = |runtime: &str| {
        let options = [
            "run",
            "--rm",
            "--runtime",
            runtime,
            "--ulimit",
            "core=-1",
            "--sysctl",
            "net.ipv4.tcp_syn_retries=4",
        ];
        let command = ["pouch-test/python", "python3", "-c", script];
        engine.command(&[&options[..], &command[..]].concat()).run().ok()
    };
    let (runc, ours) = (run("runc"), run(&pouch_tests::runtime()));
    let differing: Vec<_> = runc.lines().zip(ours.lines()).filter(|(runc, ours)| runc != ours).collect();
    assert!(differing.is_empty(), "runc and {}: {differing:#?}", pouch_tests::runtime());
    assert_eq!(runc.lines().count(), ours.lines().count());
}

/// The interface comes after the container was created, and its settings are made then; one that never comes is an
/// error.
fn settings_of_an_interface_are_made(engine: Engine) {
    let settings = [
        "net.ipv4.conf.eth0.rp_filter=2",
        "net.ipv4.neigh.eth0.base_reachable_time_ms=10000",
        "net.core.somaxconn=77",
    ];
    let options = settings.map(|setting| ["--sysctl", setting]).concat();
    let script = "cd /proc/sys/net; cat ipv4/conf/eth0/rp_filter ipv4/neigh/eth0/base_reachable_time_ms core/somaxconn";
    assert_eq!(engine.sh(&options, script).ok(), "2\n10000\n77");
    let output = engine.sh(&["--sysctl", "net.ipv4.conf.eth7.rp_filter=2"], "true");
    assert_ne!(output.status, 0);
    assert!(output.errors().contains("eth7"), "{output}");
}
