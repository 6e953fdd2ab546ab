//! `update`: new limits for a running container.

use std::fs;

use pouch_tests::{Bundle, Container, Invocation, vm_only};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// A container of 256 MiB and a CPU and a half.
fn sleeper() -> Container {
    let resources = json!({
        "memory": {"limit": 256 * MIB, "swap": 256 * MIB},
        "cpu": {"quota": 150_000, "period": 100_000},
    });
    Bundle::debian().args(["sleep", "1000"]).set("/linux/resources", resources).start()
}

/// Files of its cgroup, as it sees them.
fn files(container: &Container, names: &str) -> Vec<String> {
    let text = container.sh(&format!("cd /sys/fs/cgroup; for f in {names}; do cat $f; done"));
    text.lines().map(str::to_owned).collect()
}

#[test]
fn limits_change_while_it_runs() {
    let container = sleeper();
    let update = |words: &[&str]| container.operation(&[&["update"], words].concat()).ok();
    update(&["--memory", "128m", "--memory-swap", "128m", "--memory-reservation", "67108864"]);
    update(&["--cpu-quota", "50000", "--cpu-period", "100000", "--cpu-share", "512"]);
    update(&["--pids-limit", "55"]);
    let names = "memory.max memory.swap.max memory.low cpu.max pids.max";
    let expected = ["134217728", "0", "67108864", "50000 100000", "55"];
    assert_eq!(files(&container, names), expected);
    assert_ne!(files(&container, "cpu.weight"), ["100"], "a smaller share");
    update(&["--pids-limit", "-1", "--cpu-quota", "-1"]);
    assert_eq!(files(&container, "pids.max cpu.max"), ["max", "max 100000"]);
    update(&[]);
    assert_eq!(files(&container, "memory.max"), ["134217728"], "nothing asked, nothing changed");
}

#[test]
fn what_is_left_out_stays() {
    // runc 1.1 knows no swap without memory's limit beside it.
    vm_only!();
    let container = sleeper();
    let update = |words: &[&str]| container.operation(&[&["update"], words].concat()).ok();
    update(&["--cpu-period", "200000"]);
    assert_eq!(files(&container, "cpu.max"), ["150000 200000"]);
    update(&["--cpu-quota", "100000"]);
    assert_eq!(files(&container, "cpu.max"), ["100000 200000"]);
    update(&["--memory-swap", "300m"]);
    let megabytes = |text: &str| text.parse::<u64>().unwrap() / MIB;
    assert_eq!(megabytes(&files(&container, "memory.max")[0]), 256);
    assert_eq!(megabytes(&files(&container, "memory.swap.max")[0]), 300 - 256);
}

#[test]
fn a_file_and_standard_input_have_resources() {
    let container = sleeper();
    let file = container.file("resources");
    let file_option = file.to_str().unwrap();
    // What a runtime does not know it lets be.
    fs::write(&file, r#"{"pids":{"limit":44},"unknown":{"x":1}}"#).unwrap();
    container.operation(&["update", "--resources", file_option, "--pids-limit", "1"]).ok();
    assert_eq!(files(&container, "pids.max"), ["44"], "the file is all that counts");
    let update = container.invocation(&["update", "-r", "-", &container.id]);
    update.stdin(r#"{"pids":{"limit":45}}"#).run().ok();
    assert_eq!(files(&container, "pids.max"), ["45"]);
    for bad in ["{", "[]", "nonsense"] {
        let update = container.invocation(&["update", "-r", "-", &container.id]).stdin(bad);
        update.run().fails_naming(&[]);
    }
    container.operation(&["update", "-r", "/no/such/file"]).fails_naming(&["/no/such/file"]);
    assert_eq!(files(&container, "pids.max"), ["45"]);
}

#[test]
fn what_cannot_be_changed_is_refused_by_name() {
    vm_only!();
    let container = sleeper();
    let names = "memory.max cpu.max pids.max";
    let before = files(&container, names);
    for (words, field) in [
        (&["--memory", "2g"][..], "linux.resources.memory.limit"),
        (&["--cpu-quota", "250000"], "linux.resources.cpu.quota"),
        (&["--cpu-quota", "30000", "--cpu-period", "10000"], "linux.resources.cpu.quota"),
        (&["--cpuset-cpus", "0-2"], "linux.resources.cpu.cpus"),
        (&["--cpuset-cpus", "many"], "linux.resources.cpu.cpus"),
        (&["--cpu-rt-runtime", "10000"], "linux.resources.cpu.realtimeRuntime"),
        (&["--cpu-rt-period", "10000"], "linux.resources.cpu.realtimePeriod"),
        (&["--kernel-memory", "64m"], "linux.resources.memory.kernel"),
        (&["--kernel-memory-tcp", "64m"], "linux.resources.memory.kernelTCP"),
        (&["--l3-cache-schema", "L3:0=f"], "--l3-cache-schema"),
        (&["--mem-bw-schema", "MB:0=9"], "--mem-bw-schema"),
        (&["--memory", "lots"], "--memory"),
        (&["--pids-limit", "x"], "--pids-limit"),
    ] {
        container.operation(&[&["update"], words].concat()).fails_naming(&[field]);
    }
    assert_eq!(files(&container, names), before, "what is refused changes nothing");
    // One of the host's, which limits the VM and shows nothing in the guest.
    container.operation(&["update", "--cpuset-cpus", "0", "--cpuset-mems", "0"]).ok();
}

#[test]
fn only_a_container_that_lives_has_limits() {
    let container = sleeper();
    let pid = container.pid();
    container.kill("KILL");
    container.reap(pid);
    container.await_status("stopped");
    let update = container.operation(&["update", "--pids-limit", "5"]);
    vm_only!();
    update.fails_naming(&["stopped"]);
    let none = Invocation::new(["update", "--pids-limit", "5", "no-such-container"]).run();
    none.fails_naming(&["does not exist"]);
}
