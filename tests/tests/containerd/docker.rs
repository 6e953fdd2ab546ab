//! Docker with the shim, which needs no entry in its configuration.

use pouch_tests::containerd::runtime;
use pouch_tests::{Engine, EngineContainer, bundle};

use crate::check;

/// Starts a container that does nothing until it is told to end.
fn idle(options: &[&str]) -> EngineContainer {
    let container = EngineContainer::named(Engine::Docker, &bundle::unique_id());
    let all = [&["--detach", "--name", &container.name], options].concat();
    let script = "echo ready; trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";
    let command = ["/bin/sh", "-c", script];
    Engine::Docker.with_runtime_of(runtime(), "run", &all, "busybox", &command).run().ok();
    container
}

#[test]
fn run() {
    check(|| {
        let script = "echo out; echo err >&2; cat; exit 5";
        let run = Engine::Docker.with_runtime_of(
            runtime(),
            "run",
            &["--rm", "--interactive"],
            "busybox",
            &["/bin/sh", "-c", script],
        );
        let output = run.stdin("input").run();
        assert_eq!(
            (output.status, output.text(), output.errors()),
            (5, "out\ninput".to_owned(), "err".to_owned())
        );
    });
}

#[test]
fn exec_logs_network_and_stop() {
    check(|| {
        let container = idle(&[]);
        container.await_logs("ready");
        assert_eq!(container.sh("echo in; exit 0"), "in");
        let address = container.address("bridge");
        assert!(container.sh("ip addr show eth0").contains(&address));
        container.ok(&["stop"]);
        assert_eq!(container.inspect("{{.State.Status}} {{.State.ExitCode}}"), "exited 0");
        container.ok(&["start"]);
        assert_eq!(container.status(), "running");
    });
}

#[test]
fn a_command_that_is_not_there() {
    check(|| {
        let container = EngineContainer::named(Engine::Docker, &bundle::unique_id());
        let run = Engine::Docker.with_runtime_of(
            runtime(),
            "run",
            &["--name", &container.name],
            "busybox",
            &["/no/such"],
        );
        let output = run.run();
        assert_eq!(output.status, 127, "{output}");
        assert!(output.errors().contains("no such file or directory"), "{output}");
    });
}
