//! The VM's size: what the container's limits make of it.

use pouch_tests::{Bundle, vm_only};
use serde_json::json;

const MIB: u64 = 1 << 20;

#[test]
fn nproc_shows_the_cpu_limit() {
    vm_only!();
    for (cpu, expected) in [
        (json!({"quota": 100_000, "period": 100_000}), "1"),
        (json!({"quota": 150_000, "period": 100_000}), "2"),
        (json!({"quota": 300_000, "period": 100_000}), "3"),
    ] {
        let bundle = Bundle::debian().sh("nproc; grep -c ^processor /proc/cpuinfo");
        let output = bundle.set("/linux/resources/cpu", cpu).run().ok();
        assert_eq!(output, format!("{expected}\n{expected}"));
    }
}

#[test]
fn free_shows_the_memory_limit() {
    vm_only!();
    for mib in [128, 512] {
        let bundle = Bundle::debian().sh("free --mebi | awk '/^Mem:/ {print $2}'");
        let output = bundle.set("/linux/resources/memory", json!({"limit": mib * MIB})).run().ok();
        let total: u64 = output.parse().unwrap();
        // The guest's kernel keeps some for itself, for which the VM has a little more.
        assert!((mib * 9 / 10..=mib + 64).contains(&total), "{total} MiB for a limit of {mib} MiB");
    }
}

#[test]
fn all_of_the_memory_limit_can_be_used() {
    vm_only!();
    let bundle = Bundle::new("python").args(["python3", "-c", "x = b'x' * (190 << 20); print(len(x) >> 20)"]);
    let limit = json!({"limit": 256 * MIB});
    assert_eq!(bundle.set("/linux/resources/memory", limit).run().ok(), "190");
}

#[test]
fn without_limits_the_vm_has_its_default_size() {
    vm_only!();
    let script = "nproc; free --mebi | awk '/^Mem:/ {print $2}'; ls /sys/bus/event_source/devices | xargs";
    let output = Bundle::debian().sh(script).run().ok();
    let [cpus, memory, counters] = output.lines().collect::<Vec<_>>()[..] else { panic!("{output}") };
    // The processors have no performance counters.
    assert!(counters.split(' ').any(|name| name == "software"), "{output}");
    assert!(counters.split(' ').all(|name| name != "cpu"), "{output}");
    // The default is two, and never more than the host has.
    let host = std::thread::available_parallelism().unwrap().get();
    assert_eq!(cpus, host.min(2).to_string());
    let memory: u64 = memory.parse().unwrap();
    assert!((900..=1024).contains(&memory), "{memory} MiB");
}

#[test]
fn limits_inside_the_vm_hold() {
    let pids = json!({"limit": 10});
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; wait";
    let output = Bundle::debian().sh(script).set("/linux/resources/pids", pids).run();
    assert!(output.errors().contains("Cannot fork"), "{output}");
}

#[test]
fn the_container_sees_cgroup_v2_with_its_limits() {
    let resources = json!({"limit": 7});
    let bundle = Bundle::debian().sh("cat /sys/fs/cgroup/pids.max; cat /proc/self/cgroup");
    let output = bundle.set("/linux/resources/pids", resources).run().ok();
    assert_eq!(output, "7\n0::/");
}

#[test]
fn time_and_randomness_are_there() {
    let script = "date +%s; cat /proc/sys/kernel/random/uuid; cat /proc/sys/kernel/random/boot_id; cat /proc/sys/kernel/random/entropy_avail";
    let (first, second) = (Bundle::debian().sh(script).run().ok(), Bundle::debian().sh(script).run().ok());
    let now: i64 =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let (first, second): (Vec<&str>, Vec<&str>) = (first.lines().collect(), second.lines().collect());
    for lines in [&first, &second] {
        let guest: i64 = lines[0].parse().unwrap();
        assert!((guest - now).abs() < 600, "the guest's clock is {guest}, the host's {now}");
        assert_eq!(lines[3], "256", "the generator is seeded");
    }
    assert_ne!(first[1], second[1]);
    assert!(!pouch_tests::has_vm() || first[2] != second[2], "two VMs are two boots");
}

/// A kernel that the user brings: without our patches, but for the one that finds the guest root
/// (tests/plain-kernel).
mod plain_kernel_long {
    use std::fs;

    use pouch_tests::{Bundle, Leftovers, vm_only};

    const KERNEL: &str = "/usr/local/share/pouch-test/vmlinux-plain";

    #[test]
    fn it_runs_a_container_with_files_and_locks() {
        vm_only!();
        assert!(fs::exists(KERNEL).unwrap(), "tests/plain-kernel has not built {KERNEL}");
        let folder = tempfile::tempdir().unwrap();
        let (file, data) = (folder.path().join("config.toml"), folder.path().join("data"));
        fs::write(&file, format!("kernel = {KERNEL:?}\n")).unwrap();
        fs::create_dir(&data).unwrap();
        fs::write(data.join("secret"), "secret").unwrap();
        fs::set_permissions(data.join("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let script = "cd /data; echo written >file; cat file; \
                      flock --exclusive file sh -c 'flock --nonblock --exclusive file true; echo locked $?'; \
                      flock --nonblock file true; echo free $?; \
                      setpriv --reuid 1000 --regid 1000 --clear-groups cat secret; sync; exit 3";
        let before = Leftovers::picture();
        let bundle = Bundle::debian().sh(script).mount("/data", "bind", &data, &["bind"]);
        let output = bundle.run_invocation(&[]).env("POUCH_VM_CONFIG", &file).run();
        assert_eq!((output.status, output.text().as_str()), (3, "written\nlocked 1\nfree 0"), "{output}");
        assert!(output.errors().contains("Permission denied"), "{output}");
        assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "written\n");
        fs::remove_file(data.join("file")).unwrap();
        before.check();
    }
}
