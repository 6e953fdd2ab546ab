//! What a container can use of its kernel: everything that Debian's kernel offers, as modules where needed, except
//! what [`MISSING`] lists.

use std::collections::BTreeMap;
use std::fmt::Write;

use pouch_tests::{Engine, EngineContainer, engine_tests, has_vm};

engine_tests! {
    docker: its_own_fuse_servers_are_asked_for_locks, unsigned_modules_are_refused, a_vpn_by_wg_quick;
    docker_long: a_container_can_use_what_it_can_use_on_debian;
}

/// What Debian's kernel has and the guest kernel lacks, with the reasons. docs/limits.md lists the same.
const MISSING: &[(&str, &str)] = &[
    ("Devices: /dev/kvm", "nested virtualisation is not offered"),
    ("Devices: /dev/vhost-net", "only a VMM needs it"),
    (
        "Devices: /dev/nbd0",
        "the nbd module has no alias by which the kernel could ask for it; on Debian the administrator loads it",
    ),
    ("Files of /proc and /sys: /proc/kcore", "the memory of the guest kernel is not exposed"),
    ("Files of /proc and /sys: /proc/sys/kernel/ftrace_enabled", "the kernel is built without tracing"),
    ("Files of /proc and /sys: /sys/kernel/mm/lru_gen/enabled", "the kernel is built without it"),
    ("Files of /proc and /sys: /sys/kernel/btf/vmlinux", "it would add 5 MiB to each VM"),
    ("Files of /proc and /sys: /sys/kernel/tracing", "the kernel is built without tracing"),
    ("Files of /proc and /sys: /sys/kernel/debug", "debugfs cannot be mounted (DEBUG_FS_ALLOW_NONE)"),
    (
        "Files of /proc and /sys: /sys/kernel/slab",
        "its files took a tenth of each boot; /proc/slabinfo is available",
    ),
    ("Files of /proc and /sys: /sys/class/dmi/id/product_name", "the VM has no firmware"),
    ("Files of /proc and /sys: /sys/power/state", "a VM does not suspend"),
    ("System calls: kexec_load", "the host chooses the guest kernel"),
];

/// The table in the documents, made by this test; `tests/kernel-table` writes it.
const DOCUMENT: &str = include_str!("../../../docs/kernel.md");
const BEGIN: &str = "<!-- table -->\n";
const END: &str = "<!-- end of table -->\n";

type Results = BTreeMap<String, Vec<(String, bool)>>;

#[test]
fn what_is_missing_is_documented() {
    let limits = include_str!("../../../docs/limits.md");
    for (missing, reason) in MISSING {
        let name = missing.split_once(": ").map_or(*missing, |(_, name)| name);
        let row = limits.lines().find(|line| line.starts_with('|') && line.contains(&format!("`{name}`")));
        let row = row.unwrap_or_else(|| panic!("docs/limits.md does not have {name}"));
        assert!(row.contains(reason), "docs/limits.md gives another reason: {row}");
    }
}

fn probe(runtime: &str) -> Results {
    let probe = include_str!("kernel/probe.py");
    let arguments = ["run", "--rm", "--runtime", runtime, "--privileged", "--volume", "/usr:/tools/usr:ro"];
    let command = ["pouch-test/python", "python3", "-c", probe];
    let output = Engine::Docker.command(&[&arguments[..], &command[..]].concat()).run().ok();
    let mut results = Results::new();
    for line in output.lines() {
        let fields: Vec<&str> = line.split(" | ").collect();
        let [group, thing, there] = fields[..] else { panic!("{runtime}: {line}") };
        results.entry(group.to_owned()).or_default().push((thing.to_owned(), there == "yes"));
    }
    results
}

fn a_container_can_use_what_it_can_use_on_debian(_engine: Engine) {
    if !has_vm() {
        return;
    }
    let (debian, ours) = (probe("runc"), probe(&pouch_tests::runtime()));
    let table = table(&debian, &ours);
    // Not on the line that the test runner began.
    println!("\n{BEGIN}{table}{END}");
    let mut unexpected = Vec::new();
    for (group, things) in &debian {
        for (thing, there) in things {
            let here = ours[group].iter().any(|(name, there)| name == thing && *there);
            let known = MISSING.iter().any(|(missing, _)| *missing == format!("{group}: {thing}"));
            if *there && here == known {
                unexpected
                    .push(format!("{group}: {thing}: {}", if here { "is there" } else { "is missing" }));
            }
        }
    }
    assert!(unexpected.is_empty(), "{unexpected:#?}");
    let written = DOCUMENT.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)).unwrap().0;
    assert!(written == table, "docs/kernel.md has another table: run tests/kernel-table");
}

/// A line for each group: what both kernels have, what only one has, what neither has.
fn table(debian: &Results, ours: &Results) -> String {
    let mut text =
        String::from("\n| | both | only Debian's | only pouch-vm's | neither |\n|---|---|---|---|---|\n");
    for (group, things) in debian {
        let mut lists = [const { Vec::new() }; 4];
        for ((thing, there), (same, here)) in things.iter().zip(&ours[group]) {
            assert_eq!(thing, same);
            let column = match (there, here) {
                (true, true) => 0,
                (true, false) => 1,
                (false, true) => 2,
                (false, false) => 3,
            };
            lists[column].push(format!("`{}`", thing.replace('|', "\\|")));
        }
        let lists = lists.map(|list| list.join(", "));
        writeln!(text, "| {group} | {} |", lists.join(" | ")).unwrap();
    }
    text.push('\n');
    text
}

/// Blocking locks and FLUSH reach the server, which decides: only the server of the share offers other rules.
fn its_own_fuse_servers_are_asked_for_locks(engine: Engine) {
    let options =
        ["--cap-add", "SYS_ADMIN", "--device", "/dev/fuse", "--security-opt", "apparmor=unconfined"];
    let output = engine.run(&options, "python", &["python3", "-c", include_str!("kernel/fuse.py")]);
    let expected = "held by others: True\nasked so far: getlk setlkw\nread: content\nclient: 0\n\
                    asked: getlk setlkw flush release setlkw flush release";
    assert_eq!(output.ok(), expected, "{output}");
}

/// The guest's kernel takes what was built with it, and nothing else, whatever capabilities a container has.
fn unsigned_modules_are_refused(engine: Engine) {
    if !has_vm() {
        return;
    }
    // Those of the host are signed by nobody whom the guest's kernel knows.
    let script = r##"
import ctypes, errno, glob, lzma, os, subprocess
libc = ctypes.CDLL(None, use_errno=True)
module = glob.glob("/tools/usr/lib/modules/*/kernel/drivers/net/dummy.ko*")[0]
data = (lzma.open if module.endswith("xz") else open)(module, "rb").read()
open("/tmp/m.ko", "wb").write(data)
file = os.open("/tmp/m.ko", os.O_RDONLY)
for call, arguments in (313, (file, b"", 0)), (175, (data, len(data), b"")):
    print(call, errno.errorcode[ctypes.get_errno()] if libc.syscall(call, *arguments) else "loaded")
open("/proc/sys/kernel/modprobe", "w").write("/tmp/evil")
open("/tmp/evil", "w").write("#!/bin/sh\ntouch /tmp/evil-ran\n")
os.chmod("/tmp/evil", 0o755)
open("/proc/sys/kernel/core_pattern", "w").write("|/tmp/evil")
subprocess.run(["ip", "link", "add", "x0", "type", "nlmon"], stderr=subprocess.DEVNULL)
subprocess.run(["sh", "-c", "ulimit -c unlimited; kill -SEGV $$"])
print(os.path.exists("/tmp/evil-ran"))
"##;
    let options = ["--privileged", "--volume", "/usr:/tools/usr:ro"];
    let output = engine.run(&options, "python", &["python3", "-c", script]);
    assert_eq!(output.ok(), "313 EKEYREJECTED\n175 EKEYREJECTED\nFalse", "{output}");
}

/// All that the client sends goes through the tunnel: wg-quick marks packets, makes rules for them, and filters.
fn a_vpn_by_wg_quick(engine: Engine) {
    let [server, client] = [(); 2].map(|()| engine.start(&["--privileged"], "dev", &["sleep", "100000"]));
    let keys = |end: &EngineContainer| {
        let text = end.sh("key=$(wg genkey); echo $key; echo $key | wg pubkey");
        text.split_once('\n').map(|(own, public)| (own.to_owned(), public.to_owned())).unwrap()
    };
    let (server_key, client_key) = (keys(&server), keys(&client));
    let up = |end: &EngineContainer, key: &str, interface: &str, peer: &str| {
        let file = format!("[Interface]\nPrivateKey = {key}\n{interface}\n[Peer]\n{peer}");
        end.sh(&format!("umask 077; cat >/etc/wireguard/wg0.conf <<'END'\n{file}\nEND\nwg-quick up wg0"));
    };
    let peer = format!("PublicKey = {}\nAllowedIPs = 10.9.0.2/32", client_key.1);
    up(&server, &server_key.0, "Address = 10.9.0.1/24\nListenPort = 51820", &peer);
    // An address of the server that only the tunnel leads to.
    server.sh("ip address add 198.51.100.1/32 dev lo");
    let end = format!("Endpoint = {}:51820", server.address("bridge"));
    let peer = format!("PublicKey = {}\nAllowedIPs = 0.0.0.0/0\n{end}", server_key.1);
    up(&client, &client_key.0, "Address = 10.9.0.2/24", &peer);
    client.sh("ping -c 1 -W 60 10.9.0.1 && ping -c 1 -W 60 198.51.100.1");
    server.sh("ping -c 1 -W 60 10.9.0.2");
    client.sh("wg-quick down wg0");
    assert_ne!(client.exec(&[], &["ip", "link", "show", "wg0"]).status, 0);
}
