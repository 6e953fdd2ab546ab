//! Looking at containers: `ps`, `inspect`, `top`, `stats`, events and health checks.

use std::os::unix::fs::MetadataExt;

use pouch_tests::engine::eventually;
use pouch_tests::{Difference, Engine, engine_tests, processes};
use serde_json::Value;

engine_tests! {
    both: ps_and_inspect;
    both_long: top, stats, events, health, traffic_in_stats, a_health_check_that_hangs;
}

fn ps_and_inspect(engine: Engine) {
    let container = engine.start_idle(&["--label", "kind=test"]);
    let format = "{{.Names}} {{.Image}} {{.State}}";
    let listed = engine.command(&["ps", "--filter", "label=kind=test", "--format", format]).run().ok();
    assert!(listed.starts_with(&container.name) && listed.ends_with("running"), "{listed}");
    let pid = container.pid();
    assert!(processes::runs(pid), "the pid {pid} is a process of the host");
    // Tools enter the container's network by its pid.
    let namespace = |pid: &str| std::fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino();
    assert_ne!(namespace(&pid.to_string()), namespace("self"));
    let runtime =
        container.inspect(if engine.is_docker() { "{{.HostConfig.Runtime}}" } else { "{{.OCIRuntime}}" });
    assert_eq!(runtime, pouch_tests::runtime());
    container.ok(&["kill"]);
    container.await_inspect("{{.State.Running}} {{.State.ExitCode}} {{.State.Pid}}", "false 137 0");
    assert!(!processes::runs(pid));
    let listed =
        engine.command(&["ps", "--all", "--filter", "status=exited", "--format", "{{.Names}}"]).run();
    assert_eq!(listed.ok(), container.name);
}

fn top(engine: Engine) {
    let container = engine.start(&[], "debian", &["sleep", "4321"]);
    let output = container.command(&["top"]).run();
    let text = output.ok();
    assert!(text.contains("PID") && text.lines().count() >= 2, "{output}");
    if Difference::Top.with_vm() {
        assert!(
            text.contains("pouch-vm") && !text.contains("init"),
            "the VM's processes and no others: {output}"
        );
    } else {
        assert!(text.contains("sleep 4321"), "{output}");
    }
    // This one always works.
    assert!(container.exec(&[], &["ps", "-ef"]).ok().contains("sleep 4321"));
}

fn stats(engine: Engine) {
    let script = "$x = 'x' x 60000000; $| = 1; print \"ready\\n\"; 1 while 1";
    let container = engine.start(&["--memory", "200m"], "debian", &["perl", "-e", script]);
    container.await_logs("ready");
    // The first look has nothing to compare with.
    eventually("the processor's use is seen", || {
        let text = container.ok(&["stats", "--no-stream", "--format", "{{json .}}"]);
        let stats: Value = serde_json::from_str(&text).unwrap();
        // Docker gives text with units, Podman numbers.
        let field =
            |name: &str| stats.get(name).map_or_else(|| panic!("no {name}: {text}"), Value::to_string);
        let number = |text: String| {
            text.trim_matches('"').trim_end_matches('%').parse::<f64>().unwrap_or_else(|_| panic!("{text}"))
        };
        let memory = number(field("MemPerc"));
        // 60 MB of 200 MiB, or of what the VM may take with them.
        if engine.is_docker() || !Difference::StatsOfPodman.with_vm() {
            assert!((15.0..=100.0).contains(&memory), "{text}");
        }
        assert!(number(field("PIDs")) >= 1.0, "{text}");
        number(field(if engine.is_docker() { "CPUPerc" } else { "CPU" })) > 10.0
    });
}

/// What a number with its unit is, such as `16.5kB`.
fn bytes(text: &str) -> f64 {
    let number = text.trim_end_matches(char::is_alphabetic);
    let factor = match &text[number.len()..] {
        "B" => 1e0,
        "kB" => 1e3,
        "MB" => 1e6,
        _ => panic!("{text}"),
    };
    number.parse::<f64>().unwrap() * factor
}

fn traffic_in_stats(engine: Engine) {
    let container = engine.start_idle(&[]);
    container.sh(
        "gateway=$(ip route | awk '$1 == \"default\" { print $3 }'); ping -c 3 -W 60 -s 5000 $gateway >/dev/null
        dd if=/dev/zero of=/srv/file bs=1M count=8 conv=fsync status=none",
    );
    let text = container.ok(&["stats", "--no-stream", "--format", "{{.NetIO}} / {{.BlockIO}}"]);
    let numbers: Vec<f64> = text.split(" / ").map(bytes).collect();
    let [received, sent, _, written] = numbers[..] else { panic!("{text}") };
    assert!(received > 15e3 && sent > 15e3 && written > 8e6, "{text}");
}

fn events(engine: Engine) {
    let container = engine.start_sh(&[], "exit 6");
    container.wait();
    let name = format!("container={}", container.name);
    let end: &[&str] = if engine.is_docker() { &["--until", "0s"] } else { &["--stream=false"] };
    let format = if engine.is_docker() {
        "{{.Action}} {{.Actor.Attributes.exitCode}}"
    } else {
        "{{.Status}} {{.ContainerExitCode}}"
    };
    let filter = ["--since", "10m", "--filter", &name, "--format", format];
    let arguments = [&["events"], end, &filter].concat();
    let death = if engine.is_docker() { "die 6" } else { "died 6" };
    let mut text = String::new();
    eventually("the death is told", || {
        text = engine.command(&arguments).run().ok();
        text.lines().any(|line| line == death)
    });
    assert!(text.contains("create") && text.contains("start"), "{text}");
}

fn health(engine: Engine) {
    // Podman leaves the timer to systemd, which the testbed has not; the check itself is the same.
    let interval = if engine.is_docker() { "1s" } else { "disable" };
    let options = [
        "--health-cmd",
        "test -e /healthy || { echo not yet; false; }",
        "--health-interval",
        interval,
        "--health-retries",
        "1",
    ];
    let container = engine.start_idle(&options);
    let check = || {
        if !engine.is_docker() {
            container.command(&["healthcheck", "run"]).run();
        }
        container.inspect("{{.State.Health.Status}}")
    };
    eventually("it is unhealthy", || check() == "unhealthy");
    assert!(container.inspect("{{json .State.Health.Log}}").contains("not yet"));
    container.sh("touch /healthy");
    eventually("it is healthy", || check() == "healthy");
}

fn a_health_check_that_hangs(engine: Engine) {
    // Podman waits for its end, and leaves the timer to systemd.
    let (interval, hang) = if engine.is_docker() { ("1s", "987") } else { ("disable", "5") };
    let command = format!("[ ! -e /hangs ] || exec sleep {hang}");
    let options = [
        "--health-cmd",
        &command,
        "--health-timeout",
        "1s",
        "--health-interval",
        interval,
        "--health-retries",
        "1",
    ];
    let container = engine.start_sh(&options, "touch /hangs; exec sleep 1000");
    eventually("it is unhealthy", || {
        if !engine.is_docker() {
            container.command(&["healthcheck", "run"]).run();
        }
        container.inspect("{{.State.Health.Status}}") == "unhealthy"
    });
    let log = container.inspect("{{json .State.Health.Log}}");
    let told = if engine.is_docker() { "exceeded timeout" } else { "\"ExitCode\":-1" };
    assert!(log.contains(told), "{log}");
    container.sh("rm /hangs");
    let pattern = format!("^sleep {hang}");
    eventually("none of them is left", || container.exec(&[], &["pgrep", "-f", &pattern]).status == 1);
}
