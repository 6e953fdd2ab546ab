//! The container's cgroups on the host, one for each controller.

use std::fs;
use std::path::Path;

use pouch_tests::bundle::unique_id;
use pouch_tests::{Bundle, Container, Leftovers, processes};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// A container that waits, in a cgroup of this path.
fn sleeper(path: &str) -> Container {
    let resources = json!({
        "memory": {"limit": 128 * MIB},
        "cpu": {"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0"},
        "pids": {"limit": 50},
    });
    let bundle = Bundle::busybox().args(["sleep", "1000"]).set("/linux/resources", resources);
    bundle.set("/linux/cgroupsPath", json!(path)).start()
}

/// A file of the cgroup with this path.
fn read(controller: &str, path: &str, file: &str) -> String {
    let file = Path::new("/sys/fs/cgroup").join(controller).join(&path[1..]).join(file);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_owned()
}

#[test]
fn the_vm_is_in_each_with_its_limits() {
    let path = format!("/{}", unique_id());
    let container = sleeper(&path);
    let processes = processes::vmm_of(container.pid()).into_iter().chain([container.pid()]);
    for pid in processes {
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        for controller in ["memory", "cpu,cpuacct", "cpuset", "pids", "blkio", "freezer"] {
            let line = format!(":{controller}:{path}");
            assert!(cgroups.lines().any(|found| found.ends_with(&line)), "{controller} of {cgroups}");
        }
    }
    assert_eq!(read("cpu", &path, "cpu.cfs_quota_us"), "50000");
    assert_eq!(read("cpu", &path, "cpu.shares"), "512");
    assert_eq!(read("cpuset", &path, "cpuset.cpus"), "0");
    // With what the VM needs beyond the limit, and not much more.
    let memory: u64 = read("memory", &path, "memory.limit_in_bytes").parse().unwrap();
    assert!((128 * MIB..272 * MIB).contains(&memory), "{memory}");
    // That limit is of the container's processes, not of the VMM's.
    assert_eq!(container.sh("cat /sys/fs/cgroup/pids.max; nproc"), "50\n1");
}

#[test]
fn limits_change_while_it_runs() {
    let path = format!("/{}", unique_id());
    let container = sleeper(&path);
    let update =
        ["update", "--memory", "64m", "--memory-swap", "64m", "--cpu-quota", "20000", "--pids-limit", "44"];
    container.operation(&update).ok();
    assert_eq!(read("cpu", &path, "cpu.cfs_quota_us"), "20000");
    assert_eq!(container.sh("cd /sys/fs/cgroup; cat memory.max pids.max"), format!("{}\n44", 64 * MIB));
    container.operation(&["update", "--memory", "900m"]).fails_naming(&["memory"]);
    container.operation(&["pause"]).ok();
    assert_eq!(container.status(), "paused");
    container.operation(&["resume"]).ok();
    assert_eq!(container.sh("echo alive"), "alive");
}

#[test]
fn nothing_left_of_its_cgroups() {
    let before = Leftovers::picture();
    let (first, second) =
        (sleeper(&format!("/{}", unique_id())), Bundle::busybox().args(["sleep", "9"]).create());
    first.delete_by_force();
    second.delete_by_force();
    Bundle::busybox().args(["true"]).run().ok();
    Bundle::busybox().args(["/not/there"]).run().fails_naming(&["/not/there"]);
    drop((first, second));
    before.check();
}

#[test]
fn a_cgroup_with_others_in_it_is_refused_and_they_live_on() {
    let path = format!("/{}", unique_id());
    let container = sleeper(&path);
    let second = Bundle::busybox().args(["true"]).set("/linux/cgroupsPath", json!(path));
    second.run().fails_naming(&["linux.cgroupsPath", &path, "processes in it"]);
    assert_eq!(container.sh("echo unharmed"), "unharmed");
}

#[test]
fn what_the_host_refuses_is_named() {
    let run = |resources| Bundle::busybox().args(["true"]).set("/linux/resources", resources).run();
    let before = Leftovers::picture();
    run(json!({"cpu": {"cpus": "0-999"}})).fails_naming(&["linux.resources.cpu.cpus"]);
    run(json!({"cpu": {"quota": 1, "period": 100_000}})).fails_naming(&["cpu"]);
    Bundle::busybox()
        .args(["true"])
        .set("/linux/cgroupsPath", json!("/../x"))
        .run()
        .fails_naming(&["cgroupsPath"]);
    before.check();
}
