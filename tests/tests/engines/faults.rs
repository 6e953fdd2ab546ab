//! What fails from outside: killed processes, an engine that is restarted.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pouch_tests::engine::eventually;
use pouch_tests::{Difference, Engine, EngineContainer, Invocation, engine_tests, processes};
use serde_json::Value;

engine_tests! {
    both: the_vmm_is_killed;
    both_long: the_containers_process_is_killed, the_client_is_killed, the_disk_is_full;
    docker: the_daemon_restarts;
    podman: the_monitor_is_killed;
    docker_long: containers_come_back_with_the_daemon;
}

fn the_containers_process_is_killed(engine: Engine) {
    let bystander = engine.start_idle(&[]);
    let container = engine.start_idle(&[]);
    processes::sigkill(container.pid());
    assert_eq!(container.wait(), 137);
    container.ok(&["start"]);
    assert_eq!(container.sh("echo again"), "again");
    assert_eq!(bystander.sh("echo unharmed"), "unharmed");
}

fn the_vmm_is_killed(engine: Engine) {
    if !Difference::Vmm.with_vm() {
        return;
    }
    let bystander = engine.start_idle(&[]);
    let container = engine.start_idle(&[]);
    let mut exec = container.exec_invocation(&[], &["sleep", "1000"]).into_command().spawn().unwrap();
    eventually("the process runs", || {
        container.exec(&[], &["pgrep", "-f", "^sleep 1000"]).text().lines().count() >= 2
    });
    for pid in processes::vmm_of(container.pid()) {
        processes::sigkill(pid);
    }
    assert_eq!(container.wait(), 137);
    assert_ne!(exec.wait().unwrap().code(), Some(0));
    assert_eq!(bystander.sh("echo unharmed"), "unharmed");
    container.ok(&["start"]);
    assert_eq!(container.sh("echo again"), "again");
}

fn the_client_is_killed(engine: Engine) {
    let container = engine.start_idle(&[]);
    let mut client = container.exec_invocation(&["-i"], &["sleep", "987"]).into_command();
    let mut client = client.stdin(Stdio::piped()).spawn().unwrap();
    eventually("the process runs", || container.exec(&[], &["pgrep", "-f", "^sleep 987"]).status == 0);
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(container.sh("echo unharmed"), "unharmed");
    assert_eq!(container.status(), "running");
}

fn the_disk_is_full(engine: Engine) {
    let image = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    image.as_file().set_len(16 << 20).unwrap();
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let (image, place) = (image.path().to_str().unwrap(), folder.path().to_str().unwrap());
    Invocation::of("mkfs.ext4", ["-q", image]).run().ok();
    Invocation::of("mount", ["-o", "loop", image, place]).run().ok();
    let script = "head -c 64M /dev/zero >/data/big; echo status $?; rm /data/big; echo fits >/data/small; cat /data/small";
    let output = engine.sh(&["-v", &format!("{place}:/data")], script);
    let unmounted = Invocation::of("umount", [place]).run();
    assert_eq!(output.ok(), "status 1\nfits");
    assert!(output.errors().contains("No space left"), "{output}");
    // Nobody holds it any more.
    unmounted.ok();
}

/// Whether containers outlive the daemon, as a test wants it. In the end a daemon runs with which they do not: that
/// is said in its file, because a daemon goes on with what its file no longer names.
struct LiveRestore;

impl LiveRestore {
    fn set(engine: Engine, on: bool) -> Self {
        Self::write(on);
        let set = LiveRestore;
        reload();
        eventually("live restore is set", || {
            engine.command(&["info", "--format", "{{.LiveRestoreEnabled}}"]).run().text() == on.to_string()
        });
        set
    }

    fn write(on: bool) {
        const SETTINGS: &str = "/etc/docker/daemon.json";
        let mut settings: Value = serde_json::from_slice(&std::fs::read(SETTINGS).unwrap()).unwrap();
        settings["live-restore"] = on.into();
        std::fs::write(SETTINGS, settings.to_string()).unwrap();
    }
}

fn daemon() -> Option<i32> {
    let pid = std::fs::read_to_string("/run/docker.pid").ok()?.trim().parse().ok()?;
    processes::runs(pid).then_some(pid)
}

fn signal_daemon(signal: Signal) {
    kill(Pid::from_raw(daemon().unwrap()), signal).unwrap();
}

fn reload() {
    signal_daemon(Signal::SIGHUP);
}

/// Starts the daemon if it does not run.
fn start_daemon() {
    Invocation::of(pouch_tests::engine::DAEMONS, ["start"]).leaves_something_behind().run().ok();
}

impl Drop for LiveRestore {
    fn drop(&mut self) {
        Self::write(false);
        start_daemon();
        reload();
    }
}

fn the_daemon_restarts(engine: Engine) {
    let live_restore = LiveRestore::set(engine, true);
    let container =
        engine.start_sh(&["-i"], "echo ready; until [ -e /go ]; do sleep 0.1; done; echo end; exit 5");
    let ends = engine.start_sh(&[], "until [ -e /go ]; do sleep 0.1; done; sleep 4; exit 6");
    let (pid, pid_that_ends) = (container.pid(), ends.pid());
    ends.go();
    let old = daemon().unwrap();
    processes::sigkill(old);
    eventually("the daemon is gone", || daemon().is_none());
    // A daemon that reads of a container as running, and then misses its end while it still starts, forgets
    // that container's network: with any runtime.
    eventually("the other container ends", || !processes::runs(pid_that_ends));
    assert!(processes::runs(pid), "the container goes on");
    start_daemon();
    assert_eq!(container.inspect("{{.State.Status}} {{.State.Pid}}"), format!("running {pid}"));
    // What ended meanwhile is known.
    assert_eq!(ends.wait(), 6);
    container.go();
    assert_eq!(container.wait(), 5);
    assert_eq!(container.logs(), "ready\nend");
    remove(&[container, ends]);
    drop(live_restore);
}

fn containers_come_back_with_the_daemon(engine: Engine) {
    let policies = ["always", "unless-stopped", "no", "unless-stopped"];
    let containers = policies.map(|policy| engine.start_idle(&["--restart", policy]));
    let _live_restore = LiveRestore::set(engine, false);
    let [always, unless_stopped, never, stopped] = &containers;
    stopped.ok(&["stop"]);
    let come_back = [always, unless_stopped].map(|container| {
        container.sh("echo kept >/file");
        (container, container.pid())
    });
    signal_daemon(Signal::SIGTERM);
    eventually("the daemon is gone", || daemon().is_none());
    start_daemon();
    for (container, pid) in come_back {
        container.await_inspect("{{.State.Status}}", "running");
        assert_ne!(container.pid(), pid);
        assert_eq!(container.sh("cat /file"), "kept");
    }
    for container in [never, stopped] {
        assert_eq!(container.status(), "exited");
    }
}

/// While the daemon is the one that they were made for.
fn remove(containers: &[EngineContainer]) {
    for container in containers {
        container.ok(&["rm", "--force"]);
    }
}

fn the_monitor_is_killed(engine: Engine) {
    let container = engine.start_idle(&[]);
    let monitor: i32 = container.inspect("{{.State.ConmonPid}}").parse().unwrap();
    processes::sigkill(monitor);
    // Nobody can say how it ended, of which Podman complains once, but it can be removed.
    eventually("it is removed", || {
        container.command(&["rm", "--force", "--time", "0"]).run();
        container.command(&["container", "exists"]).run().status == 1
    });
}
