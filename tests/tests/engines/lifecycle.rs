//! From created to removed: signals, stop, restart, pause, wait, and removal in every state.

use std::time::Duration;

use pouch_tests::engine::eventually;
use pouch_tests::{Engine, engine_tests};

engine_tests! {
    both: created_then_started, stop;
    both_long: kill_with_signals, restart, removal_in_every_state, restart_on_failure, stop_signal_of_the_image,
        pause_and_unpause, removal_during_exec, wait_and_exit_status;
    docker_28: created_then_started;
    docker_long: stop_that_is_not_heeded, removal_between_restarts, restart_always, rename;
    docker_28_long: removal_in_every_state, stop, stop_that_is_not_heeded, kill_with_signals, restart;
    podman_long: stop_that_is_not_heeded, removal_between_restarts, restart_always, rename;
}

/// Ends with 3 at SIGTERM; tells of SIGUSR1 and SIGHUP.
const HEEDS: &str = "trap 'echo term; exit 3' TERM; trap 'echo usr1' USR1; trap 'echo hup' HUP; echo ready; \
    while :; do sleep 1000 & wait; done";

fn created_then_started(engine: Engine) {
    let container =
        engine.create(&["-e", "A=b"], "debian", &["sh", "-c", "echo $A >>/kept; cat /kept; exit 5"]);
    assert_eq!(container.inspect("{{.State.Status}} {{.State.Pid}}"), "created 0");
    let output = container.command(&["start", "--attach"]).run();
    output.fails(5);
    assert_eq!(output.text(), "b");
    // Its root file system stays.
    let output = container.command(&["start", "--attach"]).run();
    output.fails(5);
    assert_eq!(output.text(), "b\nb");
}

fn stop(engine: Engine) {
    let container = engine.start_sh(&[], HEEDS);
    container.await_logs("ready");
    container.ok(&["stop"]);
    assert_eq!(container.inspect("{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}"), "exited 3 0");
    assert_eq!(container.logs(), "ready\nterm");
    // Twice is fine.
    container.ok(&["stop"]);
}

fn stop_signal_of_the_image(engine: Engine) {
    let container = engine.start(
        &["--stop-signal", "HUP"],
        "debian",
        &["sh", "-c", "trap 'exit 9' HUP; echo ready; while :; do sleep 1000 & wait; done"],
    );
    container.await_logs("ready");
    container.ok(&["stop"]);
    assert_eq!(container.inspect("{{.State.ExitCode}}"), "9");
}

fn stop_that_is_not_heeded(engine: Engine) {
    let container = engine.start_sh(&[], "trap '' TERM; echo ready; while :; do sleep 1; done");
    container.await_logs("ready");
    container.ok(&["stop", "--time", "1"]);
    assert_eq!(
        container.inspect("{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}"),
        "exited 137 false"
    );
}

fn kill_with_signals(engine: Engine) {
    let container = engine.start_sh(&[], HEEDS);
    container.await_logs("ready");
    container.ok(&["kill", "--signal", "USR1"]);
    container.await_logs("usr1");
    container.ok(&["kill", "--signal", "1"]);
    container.await_logs("hup");
    assert_eq!(container.status(), "running");
    container.command(&["kill", "--signal", "NONSENSE"]).run().fails_naming(&["NONSENSE"]);
    container.ok(&["kill"]);
    container.await_inspect("{{.State.Status}} {{.State.ExitCode}}", "exited 137");
    container.command(&["kill"]).run().fails_naming(&["running"]);
}

fn restart(engine: Engine) {
    let container = engine.start_sh(&[], &format!("echo start >>/starts; {HEEDS}"));
    container.await_logs("ready");
    let pid = container.pid();
    container.ok(&["restart"]);
    eventually("it runs again", || container.exec(&[], &["cat", "/starts"]).text() == "start\nstart");
    assert_ne!(container.pid(), pid);
    assert_eq!(container.inspect("{{.State.Running}}"), "true");
    // Also from a stopped one.
    container.ok(&["stop"]);
    container.ok(&["restart"]);
    eventually("it runs again", || container.exec(&[], &["cat", "/starts"]).text().lines().count() == 3);
}

fn pause_and_unpause(engine: Engine) {
    let script = "i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.5; done";
    let volume = engine.volume();
    let container =
        engine.start_sh(&["-v", &format!("{}:/data", volume.name)], &script.replace("/count", "/data/count"));
    let file = volume.inspect("{{.Mountpoint}}") + "/count";
    let count = || std::fs::read_to_string(&file).unwrap_or_default().trim().parse::<u32>().unwrap_or(0);
    eventually("it counts", || count() > 3);
    container.ok(&["pause"]);
    assert_eq!(container.status(), "paused");
    let listed = engine.command(&["ps", "--filter", "status=paused", "--format", "{{.Names}}"]).run().ok();
    assert_eq!(listed, container.name);
    let before = count();
    // Long enough for several steps of the count.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(count(), before, "it goes on although it is paused");
    container.command(&["pause"]).run().fails_naming(&["paused"]);
    container.ok(&["unpause"]);
    eventually("it counts again", || count() > before);
    container.command(&["unpause"]).run().fails_naming(&["paused"]);
}

fn removal_in_every_state(engine: Engine) {
    let created = engine.create(&[], "debian", &["true"]);
    created.ok(&["rm"]);
    let created = engine.create(&[], "debian", &["true"]);
    created.ok(&["rm", "--force"]);
    let running = engine.start_idle(&[]);
    running.command(&["rm"]).run().fails_naming(&["running"]);
    running.ok(&["rm", "--force"]);
    let paused = engine.start_idle(&[]);
    paused.ok(&["pause"]);
    paused.command(&["rm"]).run().fails_naming(&["paused"]);
    paused.ok(&["rm", "--force"]);
    let exited = engine.start(&[], "debian", &["false"]);
    assert_eq!(exited.wait(), 1);
    exited.ok(&["rm"]);
    let left = engine.command(&["ps", "--all", "--quiet"]).run().ok();
    assert_eq!(left, "");
}

fn removal_between_restarts(engine: Engine) {
    let container = engine.start(&["--restart", "always"], "debian", &["false"]);
    eventually("it was restarted", || container.inspect("{{.RestartCount}}") != "0");
    container.ok(&["rm", "--force"]);
    let left = engine.command(&["ps", "--all", "--quiet"]).run().ok();
    assert_eq!(left, "");
}

fn removal_during_exec(engine: Engine) {
    let container = engine.start_idle(&[]);
    let mut client = container.exec_invocation(&[], &["sleep", "987"]).into_command().spawn().unwrap();
    container.exec(&["-d"], &["sleep", "986"]).ok();
    eventually("both run", || container.exec(&[], &["pgrep", "-c", "-f", "^sleep 98"]).text() == "2");
    container.ok(&["rm", "--force"]);
    assert_ne!(client.wait().unwrap().code(), Some(0));
    let left = engine.command(&["ps", "--all", "--quiet"]).run().ok();
    assert_eq!(left, "");
}

fn wait_and_exit_status(engine: Engine) {
    let container = engine.start_sh(&[], "until [ -e /go ]; do sleep 1; done; exit 42");
    let waiting = container.command(&["wait"]).into_command();
    let mut waiting = { waiting }.stdout(std::process::Stdio::piped()).spawn().unwrap();
    container.go();
    assert_eq!(pouch_tests::invocation::code(waiting.wait().unwrap()), 0);
    let text = std::io::read_to_string(waiting.stdout.take().unwrap()).unwrap();
    assert_eq!(text.trim(), "42");
    assert_eq!(container.wait(), 42);
}

fn restart_on_failure(engine: Engine) {
    let container = engine.start_sh(&["--restart", "on-failure:2"], "echo once more; exit 3");
    container.await_inspect("{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}", "2 exited 3");
    assert_eq!(container.logs().lines().count(), 3);
}

fn restart_always(engine: Engine) {
    // A success ends on-failure, and stop ends always.
    let container = engine.start_sh(
        &["--restart", "always"],
        "echo start >>/starts; [ $(wc -l </starts) -lt 2 ] || exec sleep 1000",
    );
    eventually("it was started twice", || container.exec(&[], &["cat", "/starts"]).text() == "start\nstart");
    container.ok(&["stop", "--time", "0"]);
    assert_eq!(container.inspect("{{.State.Status}} {{.RestartCount}}"), "exited 1");
}

fn rename(engine: Engine) {
    let mut container = engine.start_idle(&[]);
    let name = format!("{}-new", container.name);
    engine.command(&["rename", &container.name, &name]).run().ok();
    container.name = name;
    assert_eq!(container.sh("echo still there"), "still there");
}
