//! systemd makes the cgroup, as engines on most hosts want it (`--systemd-cgroup`). The testbed has no systemd: a
//! privileged container of another runtime, with systemd in it, is the host here; it sees the mounts of bundles.

use pouch_tests::bundle::unique_id;
use pouch_tests::engine::eventually;
use pouch_tests::{Bundle, Engine, EngineContainer, engine_tests, has_vm};
use serde_json::json;

engine_tests! {
    docker: a_scope_of_systemd;
}

const GIB: u64 = 1 << 30;

/// A host with systemd, which has this one's bundles, images and runtime.
struct Host(EngineContainer);

impl Host {
    fn start(engine: Engine) -> Self {
        let host = EngineContainer::named(engine, &unique_id());
        let mut arguments =
            vec!["run", "--detach", "--privileged", "--runtime", "runc", "--name", &host.name];
        for folder in
            ["/usr/local:/usr/local", "/var/tmp:/var/tmp:rslave", "/var/lib/pouch-test:/var/lib/pouch-test"]
        {
            arguments.extend(["--volume", folder]);
        }
        arguments.extend(["--tmpfs", "/run", "pouch-test/debian-systemd", "/sbin/init"]);
        engine.command(&arguments).run().ok();
        // Degraded: there are no modules to load.
        eventually("systemd is up", || {
            let output = host.exec(&[], &["systemctl", "is-system-running"]);
            ["running", "degraded"].contains(&output.text().as_str())
        });
        Host(host)
    }

    /// Runs a container there in the background; returns its name.
    fn run(&self, bundle: &Bundle) -> String {
        let (id, folder) = (unique_id(), bundle.write().path().display());
        let script = format!("cd {folder}; pouch-vm --systemd-cgroup run {id} >out 2>&1; echo $? >status");
        self.0.exec(&["--detach"], &["sh", "-c", &script]).ok();
        id
    }

    /// A file of the container's cgroup.
    fn read(&self, id: &str, file: &str) -> String {
        self.0.exec(&[], &["cat", &format!("/sys/fs/cgroup/system.slice/test-{id}.scope/{file}")]).text()
    }

    fn is_active(&self, id: &str) -> bool {
        self.0.exec(&[], &["systemctl", "is-active", "--quiet", &format!("test-{id}.scope")]).status == 0
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
    let name = "whole-life";
    eventually("it runs", || host.0.exec(&[], &["pouch-vm", "state", &id]).text().contains("\"running\""));
    // The process that stays on the host, and the VMM.
    assert_eq!(host.read(name, "cgroup.procs").lines().count(), 2);
    let limit: u64 = host.read(name, "memory.max").parse().unwrap();
    assert!((GIB / 8..GIB / 2).contains(&limit), "the limit and what a VM takes beside it: {limit}");
    host.0.exec(&[], &["pouch-vm", "update", "--cpu-quota", "50000", "--cpu-period", "100000", &id]).ok();
    assert_eq!(host.read(name, "cpu.max"), "50000 100000");
    host.0.exec(&[], &["pouch-vm", "exec", &id, "touch", "/go"]).ok();
    let status = wait.path().join("status");
    eventually("it ends", || std::fs::read_to_string(&status).is_ok_and(|text| text == "5\n"));
    let output = std::fs::read_to_string(wait.path().join("out")).unwrap();
    assert_eq!(output, format!("{}\n", GIB / 8));
    eventually("its scope is gone", || !host.is_active(name));

    // Killed from outside.
    let killed = path(bundle("sleep 1000"), "system.slice:test:killed");
    let id = host.run(&killed);
    eventually("it runs", || host.0.exec(&[], &["pouch-vm", "state", &id]).text().contains("\"running\""));
    host.0.exec(&[], &["systemctl", "kill", "--signal", "KILL", "test-killed.scope"]).ok();
    eventually("its scope is gone", || !host.is_active("killed"));
    host.0.exec(&[], &["pouch-vm", "delete", "--force", &id]).ok();
    assert_eq!(host.0.sh("pouch-vm list --quiet"), "");

    // What is no name of a scope.
    let wrong = path(bundle("true"), "/docker/wrong");
    let folder = wrong.write().path().to_str().unwrap();
    let run = ["pouch-vm", "--systemd-cgroup", "run", "--bundle", folder, "wrong"];
    host.0.exec(&[], &run).fails_naming(&["cgroupsPath", "/docker/wrong", "SLICE:PREFIX:NAME"]);
    assert_eq!(host.0.sh("pouch-vm list --quiet"), "");
}
