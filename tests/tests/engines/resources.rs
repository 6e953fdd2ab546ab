//! Limits, as the container sees them and as they hold.

use std::path::PathBuf;

use pouch_tests::engine::eventually;
use pouch_tests::{Difference, Engine, EngineContainer, engine_tests};

engine_tests! {
    both: memory_and_processors, update_while_running;
    both_long: ulimits, update_refused, in_the_cgroup, host_memory_runs_out, number_of_processes, memory_runs_out,
        tmpfs_and_shm_sizes, update_beyond_the_first_size, score;
    podman: disk_throughput;
}

fn memory_and_processors(engine: Engine) {
    let script = "cd /sys/fs/cgroup; cat memory.max cpu.max pids.max cpuset.cpus.effective; nproc; \
        awk '/MemTotal/ {print $2}' /proc/meminfo; cat cpu.weight memory.low";
    let mut options = vec!["--memory", "256m", "--cpus", "0.5", "--pids-limit", "77", "--cpuset-cpus", "0"];
    options.extend(["--cpu-shares", "512", "--memory-reservation", "64m"]);
    let output = engine.sh(&options, script).ok();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..5], ["268435456", "50000 100000", "77", "0", "1"], "{output}");
    let total: u64 = lines[5].parse().unwrap();
    if pouch_tests::has_vm() {
        // All of the limit can be used, and the VM is not much larger.
        assert!((256 * 1024..336 * 1024).contains(&total), "{total} KiB");
    }
    // Shares become a weight by one of two formulas: that of older runc, and that of newer runc and crun.
    assert!(["20", "59"].contains(&lines[6]) && lines[7] == "67108864", "{output}");
}

fn ulimits(engine: Engine) {
    let options = ["--ulimit", "nofile=1000:2000", "--ulimit", "core=0", "--ulimit", "nproc=555"];
    let output =
        engine.run(&options, "debian", &["bash", "-c", "ulimit -n; ulimit -Hn; ulimit -c; ulimit -u"]);
    assert_eq!(output.ok(), "1000\n2000\n0\n555");
    // The others are those of whoever calls the runtime.
    let limits = |runtime: &str| {
        let options = ["--rm", "--net=none"];
        engine.with_runtime_of(runtime, "run", &options, "busybox", &["cat", "/proc/self/limits"]).run().ok()
    };
    assert_eq!(limits(&pouch_tests::runtime()), limits("runc"));
}

fn number_of_processes(engine: Engine) {
    let script = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); sleep 1000 & done; echo all";
    let output = engine.run(&["--pids-limit", "20"], "debian", &["sh", "-c", script]);
    assert!(
        output.errors().contains("Cannot fork") || output.errors().contains("Resource temporarily"),
        "{output}"
    );
    assert!(!output.text().contains("all"), "{output}");
}

fn memory_runs_out(engine: Engine) {
    let bystander = engine.start_idle(&[]);
    let script = "import time\nblocks = []\nwhile True:\n    blocks.append(bytearray(b'x' * 1000000))\n";
    let container = engine.start(&["--memory", "64m"], "python", &["python3", "-c", script]);
    assert_eq!(container.wait(), 137);
    assert_eq!(container.inspect("{{.State.OOMKilled}} {{.State.ExitCode}}"), "true 137");
    assert_eq!(bystander.sh("echo unharmed"), "unharmed");
    // A process that is killed is not the container.
    let script = "perl -e 'push @x, \"x\" x 1000000 while 1'; echo status $?; exit 3";
    let output = engine.sh(&["--memory", "64m"], script);
    output.fails(3);
    assert_eq!(output.text(), "status 137");
}

fn tmpfs_and_shm_sizes(engine: Engine) {
    let options = ["--shm-size", "32m", "--tmpfs", "/scratch:size=2m,mode=1750,noexec"];
    let script = "df -k --output=size /dev/shm /scratch | tail -2; stat -c %a /scratch; cp /bin/true /scratch; \
        /scratch/true; head -c 3M /dev/zero >/scratch/file; stat -c %s /scratch/file; echo x >/dev/shm/x && cat /dev/shm/x";
    let output = engine.sh(&options, script);
    let (text, errors) = (output.ok(), output.errors());
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[..3], ["32768", "2048", "1750"], "{output}");
    assert!(words[3].parse::<u32>().unwrap() < 2_097_153 && words[4] == "x", "{output}");
    assert!(errors.contains("Permission denied") && errors.contains("No space left"), "{output}");
}

fn update_while_running(engine: Engine) {
    let container = engine.start_idle(&["--memory", "256m", "--cpus", "1", "--pids-limit", "100"]);
    let limits = || container.sh("cd /sys/fs/cgroup; cat memory.max cpu.max pids.max");
    assert_eq!(limits(), "268435456\n100000 100000\n100");
    let swap = if engine.is_docker() { &["--memory-swap", "256m"][..] } else { &[] };
    container.ok(&[&["update", "--memory", "128m"], swap].concat());
    container.ok(&["update", "--cpus", "0.25"]);
    container.ok(&["update", "--pids-limit", "50"]);
    assert_eq!(limits(), "134217728\n25000 100000\n50");
    // And back, within what it began with.
    container.ok(&[&["update", "--memory", "256m"], swap].concat());
    container.ok(&["update", "--cpus", "1"]);
    assert_eq!(limits(), "268435456\n100000 100000\n50");
    assert_eq!(container.inspect("{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}"), "268435456 50");
}

fn update_refused(engine: Engine) {
    let container = engine.start_idle(&["--memory", "256m"]);
    container.command(&["update", "--cpuset-cpus", "63"]).run().fails_naming(&["63"]);
    if engine.is_docker() {
        // Podman passes it on, and runc then takes the memory away from the container.
        container.command(&["update", "--memory", "1k"]).run().fails_naming(&["memory"]);
    }
    assert_eq!(container.sh("cat /sys/fs/cgroup/memory.max"), "268435456");
}

/// Of a container that runs, and of one that is stopped.
fn update_beyond_the_first_size(engine: Engine) {
    let container = engine.start_idle(&["--memory", "256m", "--memory-swap", "1g"]);
    let more = container.command(&["update", "--memory", "512m"]).run();
    let grown = if Difference::Growth.with_vm() {
        more.fails_naming(&["memory", "the VM has", "create the container again"]);
        "268435456"
    } else {
        more.ok();
        "536870912"
    };
    assert_eq!(container.sh("cat /sys/fs/cgroup/memory.max"), grown);
    if engine.is_docker() {
        assert_eq!(container.inspect("{{.HostConfig.Memory}}"), grown);
        container.ok(&["stop", "--time", "0"]);
        container.ok(&["update", "--memory", "512m"]);
        container.ok(&["start"]);
        assert_eq!(container.sh("cat /sys/fs/cgroup/memory.max"), "536870912");
    }
}

fn score(engine: Engine) {
    let output = engine.sh(&["--oom-score-adj", "321"], "cat /proc/self/oom_score_adj");
    assert_eq!(output.ok(), "321");
}

/// The host's cgroup of a container's process.
fn cgroup(container: &EngineContainer) -> PathBuf {
    let text = std::fs::read_to_string(format!("/proc/{}/cgroup", container.pid())).unwrap();
    let path = text.trim().strip_prefix("0::").unwrap();
    PathBuf::from(format!("/sys/fs/cgroup{path}"))
}

fn in_the_cgroup(engine: Engine) {
    let container = engine.start_idle(&["--memory", "256m", "--cpus", "0.5", "--pids-limit", "77"]);
    let folder = cgroup(&container);
    let id = container.inspect("{{.Id}}");
    assert!(folder.to_string_lossy().contains(&id), "{} is not the container's", folder.display());
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let members: Vec<i32> = read("cgroup.procs").lines().map(|line| line.parse().unwrap()).collect();
    let pid = container.pid();
    assert!(members.contains(&pid), "{members:?}");
    assert_eq!(read("cpu.max").trim(), "50000 100000");
    let limit: u64 = read("memory.max").trim().parse().unwrap();
    if Difference::HostCgroup.with_vm() {
        // All processes of the VM, with what the VM needs beyond the limit, and not much more.
        let vmm = processes_of_vmm(pid);
        assert!(!vmm.is_empty() && vmm.iter().all(|pid| members.contains(pid)), "{vmm:?} of {members:?}");
        assert!((256 << 20..400 << 20).contains(&limit), "{limit}");
    } else {
        assert_eq!(limit, 256 << 20);
        assert_eq!(read("pids.max").trim(), "77");
    }
}

/// A cgroup of the host above a container's.
struct Parent(PathBuf);

impl Parent {
    fn new() -> Self {
        let folder = PathBuf::from(format!("/sys/fs/cgroup/{}", pouch_tests::bundle::unique_id()));
        std::fs::create_dir(&folder).unwrap();
        Parent(folder)
    }

    fn name(&self) -> String {
        format!("/{}", self.0.file_name().unwrap().to_string_lossy())
    }

    /// Takes memory away, a little more each time.
    fn shrink(&self) {
        let current = std::fs::read_to_string(self.0.join("memory.current")).unwrap();
        let current: u64 = current.trim().parse().unwrap();
        std::fs::write(self.0.join("memory.max"), current.saturating_sub(16 << 20).to_string()).unwrap();
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        // Podman puts its conmon beside the container, and never removes that cgroup.
        let conmon = self.0.join("conmon");
        if conmon.exists() && !std::thread::panicking() {
            eventually("conmon has gone", || std::fs::remove_dir(&conmon).is_ok());
        }
        let removed = std::fs::remove_dir(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{}: {removed:?}", self.0.display());
    }
}

/// The host in small: a cgroup above the container's has no more memory. (Of two containers in it the kernel may
/// take both: a VM's memory is back only when its process is gone, and it does not wait for that.)
fn host_memory_runs_out(engine: Engine) {
    let parent = Parent::new();
    let name = parent.name();
    let script = "import time\nx = [bytearray(b'x' * 1000000) for _ in range(100)]\nprint('ready', flush=True)\ntime.sleep(1000)";
    let options = ["--cgroup-parent", &name, "--oom-score-adj", "1000"];
    let chosen = engine.start(&options, "python", &["python3", "-c", script]);
    let bystander = engine.start_idle(&[]);
    chosen.await_logs("ready");
    eventually("the kernel chooses", || {
        let runs = chosen.status() == "running";
        if runs {
            parent.shrink();
        }
        !runs
    });
    std::fs::write(parent.0.join("memory.max"), "max").unwrap();
    assert_eq!(chosen.inspect("{{.State.ExitCode}} {{.State.OOMKilled}}"), "137 true");
    assert_eq!(bystander.sh("echo unharmed"), "unharmed");
    chosen.ok(&["start"]);
    drop((chosen, bystander));
}

fn processes_of_vmm(pid: i32) -> Vec<i32> {
    pouch_tests::processes::vmm_of(pid)
}

/// Docker leaves this limit out on a host without io.cost.
fn disk_throughput(engine: Engine) {
    let container = engine.start_idle(&["--device-write-bps", "/dev/vda:1mb"]);
    let text = std::fs::read_to_string(cgroup(&container).join("io.max")).unwrap();
    assert!(text.contains("wbps=1048576"), "{text:?}");
}
