//! systemd makes the cgroup, as engines on most hosts want it (`--systemd-cgroup`). The testbed has no systemd: a
//! privileged container of another runtime, with systemd in it, is the host here. It has the testbed's programs beside
//! its own, the runtime and podman among them, and sees the mounts of bundles.

use pouch_tests::bundle::unique_id;
use pouch_tests::engine::eventually;
use pouch_tests::{Bundle, Engine, EngineContainer, Output, engine_tests, has_vm, runtime};
use serde_json::json;

engine_tests! {
    docker: a_scope_of_systemd, podman_with_systemd;
}

const GIB: u64 = 1 << 30;

/// A host with systemd, which has this one's bundles, images and programs.
struct Host(EngineContainer);

impl Host {
    fn start(engine: Engine) -> Self {
        let host = EngineContainer::named(engine, &unique_id());
        let mut arguments =
            vec!["run", "--detach", "--privileged", "--runtime", "runc", "--name", &host.name];
        for folder in [
            "/usr:/testbed/usr:ro",
            "/etc/containers:/etc/containers:ro",
            "/var/tmp:/var/tmp:rslave",
            "/var/lib/pouch-test:/var/lib/pouch-test",
            // A volume of its own: podman's overlays do not lie on docker's.
            "/var/lib/containers",
        ] {
            arguments.extend(["--volume", folder]);
        }
        arguments.extend(["--tmpfs", "/run", "pouch-test/debian-systemd", "/sbin/init"]);
        engine.command(&arguments).run().ok();
        // Degraded: there are no modules to load.
        eventually("systemd is up", || {
            let output = host.exec(&[], &["systemctl", "is-system-running"]);
            ["running", "degraded"].contains(&output.text().as_str())
        });
        // Not before: the testbed has udev, which would have its devices all over again.
        host.sh("mount -t overlay -o lowerdir=/usr:/testbed/usr overlay /usr");
        Host(host)
    }

    /// Runs a container there in the background; returns its name.
    fn run(&self, bundle: &Bundle) -> String {
        let (id, folder) = (unique_id(), bundle.write().path().display());
        let script = format!("cd {folder}; pouch-vm --systemd-cgroup run {id} >out 2>&1; echo $? >status");
        self.0.exec(&["--detach"], &["sh", "-c", &script]).ok();
        id
    }

    /// Podman there, with the driver that it takes by itself where it is not told otherwise.
    fn podman(&self, arguments: &[&str]) -> Output {
        let runtime = runtime();
        let podman = ["podman", "--cgroup-manager", "systemd", "--runtime", &runtime];
        self.0.exec(&[], &[&podman, arguments].concat())
    }

    fn inspect(&self, name: &str, format: &str) -> String {
        self.podman(&["inspect", "--type", "container", "--format", format, name]).ok()
    }

    /// A file of a cgroup.
    fn read(&self, cgroup: &str, file: &str) -> String {
        self.0.exec(&[], &["cat", &format!("/sys/fs/cgroup/{cgroup}/{file}")]).text()
    }

    fn is_active(&self, unit: &str) -> bool {
        self.0.exec(&[], &["systemctl", "is-active", "--quiet", unit]).status == 0
    }
}

fn bundle(script: &str) -> Bundle {
    Bundle::busybox().sh(script).set("/linux/resources", json!({"memory": {"limit": GIB / 8}}))
}

fn a_scope_of_systemd(engine: Engine) {
    if !has_vm() {
        return;
    }
    let host = Host::start(engine);
    let path = |bundle: Bundle, id: &str| bundle.set("/linux/cgroupsPath", json!(id));
    let wait = bundle("until [ -e /go ]; do sleep 0.1; done; cat /sys/fs/cgroup/memory.max; exit 5");
    let wait = path(wait, "system.slice:test:whole-life");
    let id = host.run(&wait);
    let (unit, cgroup) = ("test-whole-life.scope", "system.slice/test-whole-life.scope");
    eventually("it runs", || host.0.exec(&[], &["pouch-vm", "state", &id]).text().contains("\"running\""));
    // The process that stays on the host, the one that reports out-of-memory kills, and the VMM.
    assert_eq!(host.read(cgroup, "cgroup.procs").lines().count(), 3);
    let limit: u64 = host.read(cgroup, "memory.max").parse().unwrap();
    assert!((GIB / 8..GIB / 2).contains(&limit), "the limit and what a VM takes beside it: {limit}");
    host.0.exec(&[], &["pouch-vm", "update", "--cpu-quota", "50000", "--cpu-period", "100000", &id]).ok();
    assert_eq!(host.read(cgroup, "cpu.max"), "50000 100000");
    host.0.exec(&[], &["pouch-vm", "exec", &id, "touch", "/go"]).ok();
    let status = wait.path().join("status");
    eventually("it ends", || std::fs::read_to_string(&status).is_ok_and(|text| text == "5\n"));
    let output = std::fs::read_to_string(wait.path().join("out")).unwrap();
    assert_eq!(output, format!("{}\n", GIB / 8));
    eventually("its scope is gone", || !host.is_active(unit));

    // Killed from outside.
    let killed = path(bundle("sleep 1000"), "system.slice:test:killed");
    let id = host.run(&killed);
    eventually("it runs", || host.0.exec(&[], &["pouch-vm", "state", &id]).text().contains("\"running\""));
    host.0.exec(&[], &["systemctl", "kill", "--signal", "KILL", "test-killed.scope"]).ok();
    eventually("its scope is gone", || !host.is_active("test-killed.scope"));
    host.0.exec(&[], &["pouch-vm", "delete", "--force", &id]).ok();
    assert_eq!(host.0.sh("pouch-vm list --quiet"), "");

    // What is no name of a scope.
    let wrong = path(bundle("true"), "/docker/wrong");
    let folder = wrong.write().path().to_str().unwrap();
    let run = ["pouch-vm", "--systemd-cgroup", "run", "--bundle", folder, "wrong"];
    host.0.exec(&[], &run).fails_naming(&["cgroupsPath", "/docker/wrong", "SLICE:PREFIX:NAME"]);
    assert_eq!(host.0.sh("pouch-vm list --quiet"), "");
}

fn podman_with_systemd(engine: Engine) {
    let host = Host::start(engine);
    host.podman(&["pull", "--quiet", "oci:/var/lib/pouch-test/oci:docker.io/pouch-test/busybox:latest"]).ok();
    let script = "trap 'exit 5' TERM; while :; do sleep 1000 & wait; done";
    let run = ["run", "--detach", "--name", "one", "--network", "none", "--memory", "128m", "--cpus", "1"];
    let more = ["--memory-swap", "128m", "--cpuset-cpus", "0", "--cpu-shares", "512"];
    let id = host.podman(&[&run[..], &more, &["pouch-test/busybox", "sh", "-c", script]].concat()).ok();
    let listed = || host.0.sh(&format!("{} list --quiet", runtime()));
    assert_eq!(listed(), id);

    let unit = format!("libpod-{id}.scope");
    let cgroup = format!("machine.slice/{unit}");
    assert_eq!(host.inspect("one", "{{.State.CgroupPath}}"), format!("/{cgroup}"));
    assert!(host.is_active(&unit));
    let pid = host.inspect("one", "{{.State.Pid}}");
    assert!(host.read(&cgroup, "cgroup.procs").lines().any(|line| line == pid), "{pid} is in {cgroup}");
    let check_limits = |memory: u64, cpus: &str| {
        let limit: u64 = host.read(&cgroup, "memory.max").parse().unwrap();
        // A VM keeps its size, whatever its container is limited to later.
        let right = if has_vm() { (GIB / 8..GIB / 2).contains(&limit) } else { limit == memory };
        assert!(right, "{limit}, where the container has {memory}");
        assert_eq!(host.read(&cgroup, "cpu.max"), cpus);
        let inside = host.podman(&["exec", "one", "cat", "/sys/fs/cgroup/memory.max"]);
        assert_eq!(inside.ok(), memory.to_string());
    };
    check_limits(GIB / 8, "100000 100000");
    assert_eq!(host.read(&cgroup, "cpuset.cpus"), "0");
    assert_eq!(host.read(&cgroup, "memory.swap.max"), "0");
    let weight = host.read(&cgroup, "cpu.weight");
    assert!(!weight.is_empty() && weight != "100", "{weight}");
    host.podman(&["update", "--memory", "96m", "--cpus", "0.5", "one"]).ok();
    check_limits(96 << 20, "50000 100000");
    // systemd was told, and does not take it back when it next sets something of the unit.
    let shown =
        host.0.exec(&[], &["systemctl", "show", "--value", "--property", "CPUQuotaPerSecUSec", &unit]);
    assert_eq!(shown.ok(), "500ms");
    // What is not named stays.
    host.podman(&["update", "--cpu-shares", "256", "one"]).ok();
    check_limits(96 << 20, "50000 100000");
    host.podman(&["update", "--cpuset-cpus", "0", "one"]).ok();
    check_limits(96 << 20, "50000 100000");
    assert_ne!(host.read(&cgroup, "cpu.weight"), weight);

    host.podman(&["stop", "--time", "100", "one"]).ok();
    assert_eq!(host.inspect("one", "{{.State.ExitCode}} {{.State.OOMKilled}}"), "5 false");
    eventually("its scope is gone", || !host.is_active(&unit));
    // Once more under the same name, and killed from outside.
    host.podman(&["start", "one"]).ok();
    assert!(host.is_active(&unit));
    host.0.exec(&[], &["systemctl", "kill", "--signal", "KILL", &unit]).ok();
    assert_eq!(host.podman(&["wait", "one"]).ok(), "137");
    assert_eq!(host.inspect("one", "{{.State.OOMKilled}}"), "false");

    let run = ["run", "--name", "two", "--network", "none", "--memory", "64m", "pouch-test/busybox"];
    host.podman(&[&run[..], &["tail", "/dev/zero"]].concat()).fails(137);
    assert_eq!(host.inspect("two", "{{.State.ExitCode}} {{.State.OOMKilled}}"), "137 true");
    host.podman(&["rm", "one", "two"]).ok();
    // Those of conmon end a moment after it, maybe while `find` looks. One that failed would stay.
    let left =
        "systemctl list-units --all --no-legend 'libpod*'; find /sys/fs/cgroup -name 'libpod*' || true";
    eventually("no scope is left", || host.0.sh(left).is_empty());
    assert_eq!(listed(), "");
}
