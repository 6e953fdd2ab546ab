//! config-linux.md: namespaces, devices, seccomp, paths and what else is Linux's own.

use std::fs;

use pouch_tests::terminal::ConsoleSocket;
use pouch_tests::{Bundle, Container, has_vm};
use serde_json::{Value, json};

use crate::requirements::{Section, not_pouch, not_runc};

const DOCUMENT: &str = "config-linux.md";

/// The namespaces of the configuration without those of this type, and with these.
fn namespaces(bundle: Bundle, without: &str, with: &[Value]) -> Bundle {
    let mut list = bundle.spec["linux"]["namespaces"].as_array().unwrap().clone();
    list.retain(|namespace| namespace["type"] != without);
    list.extend(with.iter().cloned());
    bundle.set("/linux/namespaces", json!(list))
}

/// config-linux.md, "Namespaces": new ones.
#[test]
fn new_namespaces() {
    let mut section = Section::new(DOCUMENT, "Namespaces");
    let script = "echo $$; ls /sys/class/net; cat /proc/self/cgroup; mount -t tmpfs mine /mnt; hostname inside; \
                  ipcs -m | grep -c 0x; echo ready; sleep 1000";
    let bundle = Bundle::debian().sh(script).capable(&["CAP_SYS_ADMIN"]);
    let segment = pouch_tests::Invocation::of("ipcmk", ["-M", "4096"]).run().ok();
    let container = namespaces(bundle, "cgroup", &[json!({"type": "cgroup"})]).start();
    container.await_output("ready");
    let number = segment.split_whitespace().last().unwrap();
    pouch_tests::Invocation::of("ipcrm", ["-m", number]).run();
    let text = container.stdout();
    let lines: Vec<&str> = text.lines().collect();
    section.must("a new pid namespace has its own first process", || assert_eq!(lines[0], "1"));
    section.must("a new network namespace has only what was put into it", || assert_eq!(lines[1], "lo"));
    section.must("a new cgroup namespace has its root at the container's cgroup", || {
        assert_eq!(lines[2], "0::/");
    });
    section.must("a new ipc namespace does not have the host's objects", || assert_eq!(lines[3], "0"));
    section.must("a new mount namespace keeps its mounts to itself", || {
        let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!host.lines().any(|line| line.contains(" mine ")));
    });
    section.must("a new uts namespace keeps its name to itself", || {
        assert_ne!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim(), "inside");
        assert_eq!(container.sh("hostname"), "inside");
    });
    section.must("a new user namespace has the mappings of the configuration", || {
        let mapping = json!([{"containerID": 0, "hostID": 0, "size": 70_000}]);
        let bundle = Bundle::busybox().sh("cat /proc/self/uid_map /proc/self/gid_map");
        let bundle = namespaces(bundle, "user", &[json!({"type": "user"})]);
        let bundle = bundle.set("/linux/uidMappings", mapping.clone()).set("/linux/gidMappings", mapping);
        let text = bundle.run().ok();
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words, ["0", "0", "70000", "0", "0", "70000"]);
    });
}

/// config-linux.md, "Namespaces": those that exist, and what cannot be.
#[test]
fn existing_namespaces() {
    let mut section = Section::new(DOCUMENT, "Namespaces");
    let holder = Bundle::busybox().args(["sleep", "1000"]).start();
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", holder.pid());
    let join = |kind: &str, file: &str| {
        let bundle = Bundle::busybox().args(["sleep", "1000"]);
        namespaces(bundle, kind, &[json!({"type": kind, "path": path(file)})])
    };
    section.must("a network namespace with a path is the one at the path", || {
        let container = join("network", "net").start();
        let own = fs::read_link(format!("/proc/{}/ns/net", container.pid())).unwrap();
        assert_eq!(own, fs::read_link(path("net")).unwrap());
    });
    for (kind, file, name) in [
        ("pid", "pid", "a pid namespace with a path is the one at the path"),
        ("ipc", "ipc", "an ipc namespace with a path is the one at the path"),
        ("uts", "uts", "a uts namespace with a path is the one at the path"),
    ] {
        let unmet = [not_pouch("refused by name: the namespaces of the host are another kernel's")];
        section.must_but(name, &unmet, || {
            let container = join(kind, file).create();
            let own = fs::read_link(format!("/proc/{}/ns/{file}", container.pid())).unwrap();
            assert_eq!(own, fs::read_link(path(file)).unwrap());
        });
    }
    section.must("a path of another type of namespace is an error", || {
        join("network", "uts").run().fails_naming(&[]);
        join("ipc", "net").run().fails_naming(&[]);
    });
    section.must("a path where nothing is, is an error", || {
        let bundle = Bundle::busybox().args(["true"]);
        let missing = json!({"type": "network", "path": "/no/such/namespace"});
        namespaces(bundle, "network", &[missing]).run().fails_naming(&[]);
    });
    section.must("a path that is not absolute is an error", || {
        let relative = json!({"type": "network", "path": "self/ns/net"});
        let bundle = namespaces(Bundle::busybox().args(["true"]), "network", &[relative]);
        bundle.run_invocation(&[]).current_dir("/proc").run().fails_naming(&[]);
    });
    section.must("a type that stands there twice is an error", || {
        let twice = [json!({"type": "uts"}), json!({"type": "uts"})];
        namespaces(Bundle::busybox().args(["true"]), "uts", &twice).run().fails_naming(&[]);
    });
    section.must("a type that is left out is inherited from the runtime: uts", || {
        let mut bundle = namespaces(Bundle::busybox().args(["hostname"]), "uts", &[]);
        bundle.spec.as_object_mut().unwrap().remove("hostname");
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert_eq!(bundle.run().ok(), host.trim());
    });
    let refused = [not_pouch("refused by name: the host's network cannot be the guest's")];
    section.must_but("a type that is left out is inherited from the runtime: network", &refused, || {
        namespaces(Bundle::busybox().args(["true"]), "network", &[]).run().ok();
    });
}

/// config-linux.md, "Devices" and "Default Devices".
#[test]
fn devices() {
    let script = "for d in null zero full random urandom tty mine; do stat -c '%n %t:%T %a %u %g' /dev/$d; done; \
                  ls -L /dev/ptmx; readlink /dev/ptmx; echo x > /dev/mine && echo works";
    let device = json!([{
        "path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6,
    }]);
    let rule = json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"});
    let bundle = Bundle::debian().sh(script).set("/linux/devices", device.clone());
    // Root has no rights of its own to the file of another.
    let bundle = bundle.capable(&["CAP_DAC_OVERRIDE"]);
    let output = bundle.push("/linux/resources/devices", rule).run();
    let text = output.text();
    let has = |line: &str| assert!(text.lines().any(|shown| shown.starts_with(line)), "no {line}: {output}");
    let mut section = Section::new(DOCUMENT, "Devices");
    section.must("a device is there with its numbers, mode and owner", || has("/dev/mine 1:3 640 5 6"));
    section.must("a device that its rule allows can be used", || has("works"));
    section.must_but(
        "a file of another kind at a device's path is an error",
        &[not_runc("runc 1.1 leaves the file")],
        || {
            let mut bundle = Bundle::busybox().args(["true"]).set("/linux/devices", device);
            bundle.spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] == "proc");
            fs::write(bundle.rootfs().join("dev/mine"), "a file").unwrap();
            bundle.run().fails_naming(&[]);
        },
    );
    let below = [not_pouch("refused by name: libcontainer makes devices below /dev only")];
    section.must_but("a device may be outside of /dev", &below, || {
        let device = json!([{"path": "/elsewhere", "type": "c", "major": 1, "minor": 5}]);
        let bundle = Bundle::busybox().sh("stat -c %t:%T /elsewhere").set("/linux/devices", device);
        assert_eq!(bundle.run().ok(), "1:5");
    });
    let mut section = Section::new(DOCUMENT, "Default Devices");
    section.must("/dev/null is there", || has("/dev/null 1:3 666"));
    section.must("/dev/zero is there", || has("/dev/zero 1:5 666"));
    section.must("/dev/full is there", || has("/dev/full 1:7 666"));
    section.must("/dev/random is there", || has("/dev/random 1:8 666"));
    section.must("/dev/urandom is there", || has("/dev/urandom 1:9 666"));
    section.must("/dev/tty is there", || has("/dev/tty 5:0 666"));
    section.must("/dev/ptmx is the container's own", || {
        has("/dev/ptmx");
        assert!(text.lines().any(|line| line.ends_with("pts/ptmx")), "{output}");
    });
    section.must("/dev/console is the terminal, if there is one", || {
        let bundle = Bundle::debian().sh("echo hello > /dev/console; test -c /dev/console && echo device");
        let bundle = bundle.set("/process/terminal", json!(true));
        let path = bundle.path().join("console.sock");
        let socket = ConsoleSocket::bind(&path);
        let container = Container::create(bundle, &["--console-socket", path.to_str().unwrap()]);
        let terminal = socket.receive();
        container.start();
        terminal.await_text("hello");
        terminal.await_text("device");
    });
}

/// config-linux.md, "Default Filesystems".
#[test]
fn default_filesystems() {
    let mut section = Section::new(DOCUMENT, "Default Filesystems");
    let script = "for f in /proc /sys /dev/pts /dev/shm; do findmnt -n -o FSTYPE $f; done";
    let text = Bundle::debian().sh(script).run().ok();
    section.must("proc, sysfs, devpts and tmpfs are at their places (SHOULD)", || {
        assert_eq!(text.lines().collect::<Vec<_>>(), ["proc", "sysfs", "devpts", "tmpfs"]);
    });
}

/// config-linux.md, "Seccomp".
#[test]
fn seccomp() {
    let mut section = Section::new(DOCUMENT, "Seccomp");
    let run = |seccomp: Value, script: &str| Bundle::debian().sh(script).set("/linux/seccomp", seccomp).run();
    let filter = |rules: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules});
    section.must(
        "a rule's action is done for its calls; an error is EPERM unless errnoRet says other",
        || {
            let rules = json!([
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
                {"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            ]);
            let output = run(filter(rules), "mkdir /tmp/a; ln -s a /tmp/b; echo done");
            assert_eq!(output.ok(), "done");
            let errors = output.errors();
            assert!(errors.contains("not permitted") && errors.contains("No space left"), "{output}");
        },
    );
    section.must("the default action is done for calls without a rule", || {
        let seccomp = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}],
        });
        assert_eq!(run(seccomp, "grep ^Seccomp: /proc/self/status").ok(), "Seccomp:\t2");
    });
    section.must("arguments decide with their operator", || {
        let argument =
            json!({"index": 0, "value": 0x0040000, "valueTwo": 0x0040000, "op": "SCMP_CMP_MASKED_EQ"});
        let rules = json!([{"names": ["personality"], "action": "SCMP_ACT_ERRNO", "args": [argument]}]);
        let output =
            run(filter(rules), "setarch x86_64 true && echo passes; setarch x86_64 -R true || echo not");
        assert_eq!(output.ok(), "passes\nnot");
    });
    section.must("a call's name that does not exist here is no error", || {
        let rules = json!([{"names": ["no_such_call", "acct"], "action": "SCMP_ACT_ERRNO"}]);
        assert_eq!(run(filter(rules), "echo ran").ok(), "ran");
    });
    let lenient = "runc 1.1 does not look at it";
    section.must_but("a rule without names is an error", &[not_runc(lenient)], || {
        run(filter(json!([{"names": [], "action": "SCMP_ACT_ERRNO"}])), "true").fails_naming(&[]);
    });
    section.must_but("errnoRet for an action that has none is an error", &[not_runc(lenient)], || {
        let rules = json!([{"names": ["acct"], "action": "SCMP_ACT_KILL", "errnoRet": 5}]);
        run(filter(rules), "true").fails_naming(&[]);
    });
    section.must_but("listenerMetadata without listenerPath is an error", &[not_runc(lenient)], || {
        let mut seccomp = filter(json!([{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]));
        seccomp["listenerMetadata"] = json!("x");
        run(seccomp, "true").fails_naming(&[]);
    });
    section.must("a listener that cannot be reached is an error", || {
        let mut seccomp = filter(json!([{"names": ["acct"], "action": "SCMP_ACT_NOTIFY"}]));
        seccomp["listenerPath"] = json!("/no/such/socket");
        run(seccomp, "true").fails_naming(&[]);
    });
    section.must("listenerPath is ignored without SCMP_ACT_NOTIFY", || {
        let mut seccomp = filter(json!([{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]));
        seccomp["listenerPath"] = json!("/no/such/socket");
        assert_eq!(run(seccomp, "echo ran").ok(), "ran");
    });
}

/// config-linux.md, "Masked Paths", "Readonly Paths", "Sysctl" and "Personality".
#[test]
fn paths_and_settings() {
    let script = "cat /etc/hostname 2>&1 | wc -c; ls /etc/default | wc -l; touch /usr/share/x || echo refused; \
                  /usr/share/program && echo executed; cat /proc/sys/net/core/somaxconn /proc/sys/kernel/msgmax";
    let bundle = Bundle::debian().sh(script);
    fs::write(bundle.rootfs().join("etc/hostname"), "masked").unwrap();
    fs::copy(bundle.rootfs().join("bin/true"), bundle.rootfs().join("usr/share/program")).unwrap();
    let bundle = bundle
        .push("/linux/maskedPaths", json!("/etc/hostname"))
        .push("/linux/maskedPaths", json!("/etc/default"))
        .push("/linux/maskedPaths", json!("/no/such/path"))
        .push("/linux/readonlyPaths", json!("/usr/share"))
        .set("/linux/sysctl", json!({"net.core.somaxconn": "777", "kernel.msgmax": "8888"}));
    let text = bundle.run().ok();
    let lines: Vec<&str> = text.lines().collect();
    let mut section = Section::new(DOCUMENT, "Masked Paths");
    section.must("a masked file cannot be read", || assert_eq!(lines[0], "0"));
    section.must("a masked folder cannot be read", || assert_eq!(lines[1], "0"));
    let mut section = Section::new(DOCUMENT, "Readonly Paths");
    section.must("a read-only path cannot be written", || assert_eq!(lines[2..4], ["refused", "executed"]));
    let mut section = Section::new(DOCUMENT, "Sysctl");
    section.must("kernel settings are made", || assert_eq!(lines[4..], ["777", "8888"]));
    let mut section = Section::new(DOCUMENT, "Personality");
    let unknown = [not_runc("runc 1.1 does not know it")];
    section.must_but("the domain LINUX32 shows a 32-bit processor", &unknown, || {
        let bundle = Bundle::debian().args(["uname", "-m"]);
        let text = bundle.set("/linux/personality", json!({"domain": "LINUX32"})).run().ok();
        assert_eq!(text, "i686");
    });
}

/// config-linux.md, "Rootfs Mount Propagation".
#[test]
fn propagation() {
    let mut section = Section::new(DOCUMENT, "Rootfs Mount Propagation");
    let root = |propagation: &str| {
        let bundle = Bundle::busybox().sh("awk '$5 == \"/\"' /proc/self/mountinfo | tail -1");
        bundle.set("/linux/rootfsPropagation", json!(propagation)).run().ok()
    };
    let leaves = || [not_runc("runc 1.1 leaves the root's own mount as it was")];
    section.must_but("shared: the root belongs to a peer group", &leaves(), || {
        assert!(root("shared").contains(" shared:"));
    });
    section.must("private: the root belongs to none", || {
        let line = root("private");
        assert!(!line.is_empty() && !line.contains(" shared:") && !line.contains(" master:"), "{line}");
    });
    section.must_but("unbindable: the root cannot be bound", &leaves(), || {
        assert!(root("unbindable").contains(" unbindable"));
    });
}

/// config-linux.md, "IntelRdt": none of the machines has it.
#[test]
fn intel_rdt() {
    let mut section = Section::new(DOCUMENT, "IntelRdt");
    section.must("intelRdt without a mounted resctrl file system is an error", || {
        let bundle = Bundle::busybox().args(["true"]);
        bundle
            .set("/linux/intelRdt", json!({"closID": "x", "l3CacheSchema": "L3:0=f"}))
            .run()
            .fails_naming(&[]);
    });
    if has_vm() {
        section.must("netDevices, which are not had, are an error (1.3)", || {
            let devices = json!({"eth9": {"name": "eth0"}});
            let bundle = Bundle::busybox().args(["true"]).set("/linux/netDevices", devices);
            bundle.run().fails_naming(&["linux.netDevices"]);
        });
    }
}
