//! Docker and Podman on such a host.

use pouch_tests::{Engine, engine_tests};

engine_tests! {
    both: runs;
    both_long: limited, memory_runs_out;
}

fn runs(engine: Engine) {
    assert_eq!(engine.sh(&[], "echo out; uname -r | cut -d . -f 1").ok().lines().next(), Some("out"));
    let container = engine.start_idle(&["--publish", "127.0.0.1::80"]);
    assert_eq!(container.sh("ip -4 -br addr show eth0 | wc -l"), "1");
    container.ok(&["restart", "--time", "0"]);
    assert_eq!(container.sh("echo again"), "again");
}

fn limited(engine: Engine) {
    let limits = ["--memory", "200m", "--cpus", "0.5", "--pids-limit", "77", "--cpuset-cpus", "0"];
    let container = engine.start_idle(&limits);
    let limits = || container.sh("cd /sys/fs/cgroup; cat memory.max cpu.max pids.max");
    assert_eq!(limits(), "209715200\n50000 100000\n77");
    let id = container.inspect("{{.Id}}");
    let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
    assert!(cgroups.lines().any(|line| line.contains(":memory:") && line.contains(&id)), "{cgroups}");
    container.ok(&["update", "--cpus", "0.25"]);
    assert_eq!(limits(), "209715200\n25000 100000\n77");
    let usage = container.ok(&["stats", "--no-stream", "--format", "{{.MemUsage}}"]);
    assert!(usage.contains("MiB") || usage.contains("MB"), "{usage}");
}

fn memory_runs_out(engine: Engine) {
    let bystander = engine.start_idle(&[]);
    let container = engine.start(&["--memory", "64m"], "debian", &["tail", "/dev/zero"]);
    assert_eq!(container.wait(), 137);
    assert_eq!(container.inspect("{{.State.OOMKilled}} {{.State.ExitCode}}"), "true 137");
    assert_eq!(bystander.sh("echo unharmed"), "unharmed");
}
