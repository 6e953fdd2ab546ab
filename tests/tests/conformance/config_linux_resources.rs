//! config-linux.md, "Control groups": where the container is, and its limits.

use std::fs;
use std::path::Path;

use pouch_tests::bundle::unique_id;
use pouch_tests::{Bundle, Output};
use serde_json::{Value, json};

use crate::requirements::{Section, not_runc};

const DOCUMENT: &str = "config-linux.md";
const MIB: u64 = 1 << 20;

/// config-linux.md, "Cgroups Path".
#[test]
fn path() {
    let mut section = Section::new(DOCUMENT, "Cgroups Path");
    let name = format!("/conformance/{}", unique_id());
    let directory = Path::new("/sys/fs/cgroup").join(&name[1..]);
    let bundle = Bundle::busybox().args(["sleep", "1000"]).set("/linux/cgroupsPath", json!(name));
    let container = bundle.start();
    let pid = container.pid();
    section.must("an absolute path is below the mount point of the cgroups", || {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(cgroup.lines().any(|line| line.ends_with(&name)), "{cgroup}");
        assert!(directory.join("cgroup.procs").exists());
    });
    section.must("what create made of it goes with the container", || {
        container.kill("KILL");
        container.reap(pid);
        container.await_status("stopped");
        container.delete();
        assert!(!directory.exists());
    });
    section.must("the same path is the same place again", || {
        let bundle = Bundle::busybox().args(["sleep", "1000"]).set("/linux/cgroupsPath", json!(name));
        let container = bundle.create();
        assert!(directory.exists());
        container.delete_by_force();
    });
    section.must("a path that leads out is an error, or stays below the mount point", || {
        let bundle =
            Bundle::busybox().args(["true"]).set("/linux/cgroupsPath", json!("/../../../../tmp/out"));
        bundle.run();
        assert!(!Path::new("/tmp/out").exists());
    });
    let _ = fs::remove_dir("/sys/fs/cgroup/conformance");
}

/// What files of its cgroup a container with these resources sees.
fn limited(resources: Value, files: &str) -> Output {
    let script = format!("cd /sys/fs/cgroup; for f in {files}; do cat $f; done");
    let mut bundle = Bundle::busybox().sh(&script);
    for (name, value) in resources.as_object().unwrap() {
        bundle.spec["linux"]["resources"][name] = value.clone();
    }
    // The container's own view.
    let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().unwrap();
    if !namespaces.iter().any(|namespace| namespace["type"] == "cgroup") {
        namespaces.push(json!({"type": "cgroup"}));
    }
    bundle.run()
}

/// config-linux.md, "Memory", "CPU" and "PIDs".
#[test]
fn limits() {
    let resources = json!({
        "memory": {"limit": 96 * MIB, "reservation": 48 * MIB, "swap": 128 * MIB},
        "cpu": {"quota": 40_000, "period": 80_000, "shares": 2048},
        "pids": {"limit": 66},
    });
    let files = "memory.max memory.low memory.swap.max cpu.max pids.max cpu.weight";
    let output = limited(resources, files);
    let text = output.ok();
    let lines: Vec<&str> = text.lines().collect();
    let bytes = |mib: u64| (mib * MIB).to_string();
    let mut section = Section::new(DOCUMENT, "Memory");
    section.must("limit is the most memory", || assert_eq!(lines[0], bytes(96)));
    section.must("reservation is the soft limit", || assert_eq!(lines[1], bytes(48)));
    section.must("swap is memory and swap together", || assert_eq!(lines[2], bytes(32)));
    section.must("a limit of -1 is none", || {
        assert_eq!(limited(json!({"memory": {"limit": -1}}), "memory.max").ok(), "max");
    });
    section.must("more than the limit is not had, and the process is killed", || {
        let bundle = Bundle::debian().args(["tail", "/dev/zero"]);
        let memory = json!({"limit": 24 * MIB, "swap": 24 * MIB});
        assert_eq!(bundle.set("/linux/resources/memory", memory).run().status, 137);
    });
    let mut section = Section::new(DOCUMENT, "CPU");
    section.must("quota and period are as configured", || assert_eq!(lines[3], "40000 80000"));
    section.must("more shares are more weight", || {
        assert!(lines[5].parse::<u32>().unwrap() > 70, "{output}");
    });
    section.must("a burst is as configured", || {
        let cpu = json!({"cpu": {"quota": 40_000, "period": 80_000, "burst": 10_000}});
        let unknown = pouch_tests::runtime().ends_with("runc");
        // runc 1.1.15 does not know it yet and may let it be.
        let shown = limited(cpu, "cpu.max.burst").ok();
        assert!(shown == "10000" || unknown, "{shown}");
    });
    let mut section = Section::new(DOCUMENT, "PIDs");
    section.must("limit is the most tasks", || assert_eq!(lines[4], "66"));
    section.must("a limit of -1 is none", || {
        assert_eq!(limited(json!({"pids": {"limit": -1}}), "pids.max").ok(), "max");
    });
}

/// config-linux.md, "Unified".
#[test]
fn unified() {
    let mut section = Section::new(DOCUMENT, "Unified");
    let run = |unified: Value, files: &str| limited(json!({"unified": unified}), files);
    section.must("settings are written to the files that are named", || {
        let unified = json!({"memory.high": "50331648", "pids.max": "77"});
        assert_eq!(run(unified, "memory.high pids.max").ok(), "50331648\n77");
    });
    section.must("the controllers that they need are enabled", || {
        assert_eq!(run(json!({"cpu.max": "30000 90000"}), "cpu.max").ok(), "30000 90000");
    });
    section.must("a controller that does not exist is an error", || {
        run(json!({"nonsense.max": "1"}), "cgroup.type").fails_naming(&["nonsense"]);
    });
    section.must("a file that does not exist is an error", || {
        run(json!({"memory.nonsense": "1"}), "cgroup.type").fails_naming(&["memory.nonsense"]);
    });
    section.must("a value that the kernel refuses is an error", || {
        run(json!({"memory.high": "lots"}), "cgroup.type").fails_naming(&["memory.high"]);
    });
}

/// config-linux.md, "Unified": settings of cgroup v1 on a host of v2.
#[test]
fn conversions() {
    let mut section = Section::new(DOCUMENT, "Unified");
    let silent = "runc 1.1 leaves it out in silence";
    section.must_but("what cgroup v2 does not have is an error: kernel memory", &[not_runc(silent)], || {
        limited(json!({"memory": {"kernel": 64 * MIB}}), "cgroup.type").fails_naming(&[]);
    });
    section.must_but("what cgroup v2 does not have is an error: swappiness", &[not_runc(silent)], || {
        limited(json!({"memory": {"swappiness": 10}}), "cgroup.type").fails_naming(&[]);
    });
    section.must_but(
        "what cgroup v2 does not have is an error: classes of packets",
        &[not_runc(silent)],
        || {
            limited(json!({"network": {"classID": 1_048_577}}), "cgroup.type").fails_naming(&[]);
        },
    );
}

/// config-linux.md, "Allowed Device list".
#[test]
fn device_rules() {
    let mut section = Section::new(DOCUMENT, "Allowed Device list");
    let script = "mknod /tmp/x c 1 3; echo a > /tmp/x && echo null; mknod /tmp/y c 1 5; \
                  head -c 1 /tmp/y > /dev/null && echo zero; mknod /tmp/z c 1 11; head -c 0 /tmp/z && echo kmsg";
    let rules = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm"},
        {"allow": false, "type": "c", "major": 1, "minor": 11, "access": "rwm"},
    ]);
    let bundle = Bundle::busybox().sh(script).capable(&["CAP_MKNOD"]);
    let output = bundle.set("/linux/resources/devices", rules).run();
    section.must("what a rule allows can be made and used", || {
        assert!(output.text().contains("null"), "{output}");
    });
    section.must("what a later rule denies cannot be used: rules count in their order", || {
        assert!(!output.text().contains("kmsg"), "{output}");
    });
    section.must("the default devices can be used whatever the rules", || {
        let bundle = Bundle::busybox().sh("echo x > /dev/null && head -c 1 /dev/urandom | wc -c");
        let rules = json!([{"allow": false, "access": "rwm"}]);
        assert_eq!(bundle.set("/linux/resources/devices", rules).run().ok(), "1");
    });
}

/// config-linux.md, "RDMA" and "Huge page limits": what a machine without them says.
#[test]
fn hardware() {
    let mut section = Section::new(DOCUMENT, "RDMA");
    section.must("rdma without such devices is an error", || {
        limited(json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}}), "cgroup.type").fails_naming(&[]);
    });
    let mut section = Section::new(DOCUMENT, "Huge page limits");
    section.must("a page size that does not exist is an error", || {
        let limits = json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 4096}]});
        limited(limits, "cgroup.type").fails_naming(&[]);
    });
}
