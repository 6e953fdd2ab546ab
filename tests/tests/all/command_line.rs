//! The command line as engines use it, and what it refuses.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pouch_tests::bundle::unique_id;
use pouch_tests::processes::runs;
use pouch_tests::{Bundle, Container, Invocation, Leftovers, eventually, has_vm, vm_only};
use serde_json::{Value, json};

fn sleeper() -> Container {
    Bundle::debian().args(["sleep", "1000"]).start()
}

/// A file with an OCI process that runs this script.
fn process_file(container: &Container, script: &str) -> String {
    let file = container.file("process.json");
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh", "-c", script],
        "env": ["PATH=/usr/bin:/bin"],
    });
    fs::write(&file, process.to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn the_words_of_containerd() {
    let root = tempfile::tempdir().unwrap();
    let bundle = Bundle::debian().sh("trap 'echo hung up' HUP; echo ready; while :; do sleep 0.1; done");
    let log = bundle.path().join("log.json").to_str().unwrap().to_owned();
    let pid_file = bundle.path().join("init.pid");
    let global = ["--root", root.path().to_str().unwrap(), "--log", &log, "--log-format", "json"];
    let container = Container::create_with(bundle, &global, &["--pid-file", pid_file.to_str().unwrap()]);
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    container.start();
    container.await_output("ready");

    let (process, exec_pid) = (process_file(&container, "exit 12"), container.file("exec.pid"));
    let words = ["exec", "--process", &process, "--detach", "--pid-file", exec_pid.to_str().unwrap()];
    container.invocation(&[&words[..], &[&container.id]].concat()).leaves_something_behind().run().ok();
    let exec: i32 = fs::read_to_string(&exec_pid).unwrap().parse().unwrap();
    assert_eq!(container.reap(exec), 12);

    let pids: Vec<i32> =
        serde_json::from_str(&container.operation(&["ps", "--format", "json"]).ok()).unwrap();
    assert!(pids.contains(&pid), "{pids:?}");
    let update = container.invocation(&["update", "--resources=-", &container.id]);
    update.stdin(r#"{"cpu":{},"memory":{},"pids":{"limit":99}}"#).run().ok();
    assert_eq!(container.sh("cat /sys/fs/cgroup/pids.max"), "99");
    container.operation(&["pause"]).ok();
    container.operation(&["resume"]).ok();
    container.kill("1");
    container.await_output("hung up");
    container.kill("9");
    assert_eq!(container.reap(pid), 137);
    container.await_status("stopped");
    container.operation(&["delete"]).ok();
    container.operation(&["delete", "--force"]).ok();
    container.operation(&["delete", "--force"]).ok();
}

#[test]
fn the_words_of_conmon() {
    let container = sleeper();
    let pid = container.pid();
    let (process, exec_pid) = (process_file(&container, "exit 13"), container.file("exec.pid"));
    let words = ["exec", "--pid-file", exec_pid.to_str().unwrap(), "--process", &process, "--detach"];
    container.invocation(&[&words[..], &[&container.id]].concat()).leaves_something_behind().run().ok();
    let exec: i32 = fs::read_to_string(&exec_pid).unwrap().parse().unwrap();
    assert_eq!(container.reap(exec), 13);
    let file = container.file("resources");
    fs::write(&file, r#"{"pids":{"limit":98}}"#).unwrap();
    let resources = format!("--resources={}", file.display());
    container.operation(&["update", &resources]).ok();
    assert_eq!(container.sh("cat /sys/fs/cgroup/pids.max"), "98");
    container.kill("9");
    container.reap(pid);
    container.operation(&["delete", "--force"]).ok();
}

#[test]
fn options_may_follow_the_id() {
    // runc takes them for further arguments.
    vm_only!();
    let root = tempfile::tempdir().unwrap();
    let root = ["--root", root.path().to_str().unwrap()];
    let bundle = Bundle::debian().args(["sleep", "1000"]);
    bundle.write();
    let id = unique_id();
    let run =
        |words: &[&str]| Invocation::new(words.iter().chain(&root)).leaves_something_behind().run().ok();
    run(&["create", &id, "--bundle", bundle.path().to_str().unwrap(), "--no-pivot"]);
    run(&["start", &id]);
    assert!(run(&["state", &id]).contains("running"));
    run(&["kill", &id, "KILL", "--all"]);
    run(&["delete", &id, "--force"]);
    assert_eq!(fs::read_dir(root[1]).unwrap().count(), 0);
}

#[test]
fn options_without_meaning_in_a_vm_are_accepted() {
    let list = |options: &[&str]| Invocation::new([options, &["list", "-q"]].concat()).run();
    for options in [
        &["--debug"][..],
        &["--rootless", "auto"],
        &["--rootless", "false"],
        &["--rootless=false"],
        &["--criu", "/no/criu"],
        &["--log-format", "text"],
    ] {
        list(options).ok();
    }
    let container =
        Container::create(Bundle::debian().args(["sleep", "1000"]), &["--no-pivot", "--no-new-keyring"]);
    container.start();
    assert_eq!(container.exec_with(&["--preserve-fds", "0"], &["echo", "x"]).ok(), "x");
    if has_vm() {
        // Those of crun.
        for options in
            [&["--log-level", "debug"][..], &["--cgroup-manager", "systemd"], &["--systemd-cgroup"]]
        {
            list(options).ok();
        }
        list(&["--rootless", "true"]).fails_naming(&["as root"]);
        list(&["--rootless", "perhaps"]).fails_naming(&["--rootless"]);
    }
    list(&["--no-such-option"]).fails_naming(&["no-such-option"]);
}

#[test]
fn descriptors_of_the_host_are_refused() {
    vm_only!();
    let container = sleeper();
    container.exec_with(&["--preserve-fds", "1"], &["true"]).fails_naming(&["--preserve-fds", "bind mounts"]);
    let bundle = Bundle::debian().args(["true"]);
    bundle.run_invocation(&["--preserve-fds", "1"]).run().fails_naming(&["--preserve-fds"]);
}

#[test]
fn checkpoint_and_restore_are_refused() {
    let container = sleeper();
    let folder = container.file("image");
    let image = ["--image-path", folder.to_str().unwrap()];
    let words: &[&str] = if has_vm() { &["not supported yet"] } else { &[] };
    let checkpoint = container.operation(&[&["checkpoint"][..], &image, &["--leave-running"]].concat());
    checkpoint.fails_naming(words);
    assert_eq!(container.sh("echo unharmed"), "unharmed");
    assert!(!folder.join("inventory.img").exists());
    let id = unique_id();
    let bundle = ["--bundle", container.bundle.path().to_str().unwrap()];
    let restore = Invocation::new([&["restore"][..], &image, &bundle, &["--detach", &id]].concat()).run();
    restore.fails_naming(words);
    Invocation::new(["state", &id]).run().fails_naming(&["does not exist"]);
}

#[test]
fn the_state_has_the_annotations() {
    let annotations = json!({"org.example.key": "value", "empty": ""});
    let container = Bundle::busybox().args(["true"]).set("/annotations", annotations.clone()).create();
    let state = container.state();
    assert_eq!(state["annotations"], annotations);
    assert_eq!(state["pid"], json!(container.pid()));
    assert!(runs(container.pid()));
}

#[test]
fn all_processes_can_be_signalled() {
    let child = "trap 'echo the child' USR1; echo ready; while :; do sleep 0.1; done";
    let script =
        format!("sh -c \"{child}\" & trap 'echo the first' USR1; echo ready; while :; do sleep 0.1; done");
    let container = Bundle::debian().sh(&script).start();
    eventually("both are ready", || container.stdout().matches("ready").count() == 2);
    container.invocation(&["kill", "--all", &container.id, "USR1"]).run().ok();
    container.await_output("the first");
    container.await_output("the child");
}

#[test]
fn run_keeps_the_container_if_asked() {
    let bundle = Bundle::busybox().sh("exit 4");
    bundle.write();
    let id = unique_id();
    let path = bundle.path().to_str().unwrap();
    Invocation::new(["run", "--keep", "--no-subreaper", "--bundle", path, &id]).run().fails(4);
    let state: Value = serde_json::from_str(&Invocation::new(["state", &id]).run().ok()).unwrap();
    assert_eq!(state["status"], "stopped");
    Invocation::new(["delete", &id]).run().ok();
}

#[test]
fn ps_takes_options_after_the_id() {
    let container = Bundle::debian().sh("sleep 1001 & wait").start();
    let ps = |options: &[&str]| container.invocation(&[&["ps", &container.id][..], options].concat()).run();
    eventually("the child runs", || ps(&["-ef"]).ok().lines().count() == 3);
    let table = ps(&["-o", "pid,args"]).ok();
    let mut lines = table.lines();
    assert_eq!(lines.next().unwrap().split_whitespace().collect::<Vec<_>>(), ["PID", "COMMAND"]);
    assert_eq!(lines.count(), 2, "{table}");
    ps(&["--no-such-option"]).fails_naming(if has_vm() { &["--no-such-option"] } else { &[] });
    container.operation(&["ps", "--format", "xml"]).fails_naming(&["xml"]);
}

#[test]
fn ps_gives_engines_processes_of_the_host() {
    let container = sleeper();
    let of =
        || -> Vec<i32> { serde_json::from_str(&container.operation(&["ps", "-f", "json"]).ok()).unwrap() };
    assert_eq!(of(), [container.pid()]);
    let pid_file = container.file("pid");
    let options = ["--detach", "--pid-file", pid_file.to_str().unwrap()];
    container.exec_invocation(&options, &["sleep", "1003"]).leaves_something_behind().run().ok();
    let exec: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let mut pids = of();
    pids.sort_unstable();
    let mut expected = [container.pid(), exec];
    expected.sort_unstable();
    assert_eq!(pids, expected);
    kill(Pid::from_raw(exec), Signal::SIGKILL).unwrap();
    container.reap(exec);
    eventually("it is not listed any more", || of() == [container.pid()]);
    assert!(!container.operation(&["ps"]).ok().contains("sleep 1003"), "and its process is gone");
}

#[test]
fn labels_of_the_host_have_no_effect_in_the_guest() {
    // runc fails where the kernel has no AppArmor.
    vm_only!();
    let container = sleeper();
    let file = container.file("process.json");
    let process = json!({
        "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["echo", "ran"], "env": ["PATH=/usr/bin:/bin"],
        "apparmorProfile": "docker-default", "selinuxLabel": "",
    });
    fs::write(&file, process.to_string()).unwrap();
    let log = container.file("log");
    let exec = |words: &[&str]| {
        let words = [&["--log", log.to_str().unwrap(), "exec"], words].concat();
        Invocation::new(words).run().ok()
    };
    assert_eq!(exec(&["--process", file.to_str().unwrap(), &container.id]), "ran");
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("process.apparmorProfile has no effect") && !text.contains("selinux"), "{text}");
    let options = ["--apparmor", "docker-default", "--process-label", "a:b:c", &container.id, "echo", "too"];
    assert_eq!(exec(&options), "too");
    assert!(fs::read_to_string(&log).unwrap().contains("--process-label has no effect"));
}

#[test]
fn exec_can_choose_a_cgroup_of_the_container() {
    let mut bundle = Bundle::debian().args(["sleep", "1000"]);
    for mount in bundle.spec["mounts"].as_array_mut().unwrap() {
        if mount["type"] == "cgroup" {
            mount["options"] = json!(["nosuid", "noexec", "nodev", "relatime"]);
        }
    }
    let container = bundle.start();
    container.sh("mkdir /sys/fs/cgroup/below");
    let show = |cgroup: &str| container.exec_with(&["--cgroup", cgroup], &["cat", "/proc/self/cgroup"]);
    assert_eq!(show("below").ok(), "0::/below");
    assert_eq!(show("/below").ok(), "0::/below");
    show("missing").fails_naming(&["missing"]);
    show("../..").fails_naming(&[]);
    assert_eq!(container.sh("cat /proc/self/cgroup"), "0::/");
}

#[test]
fn exec_in_a_paused_container_is_refused() {
    // runc starts it, and it waits for the container to go on.
    vm_only!();
    let container = sleeper();
    container.operation(&["pause"]).ok();
    container.exec_with(&["--ignore-paused"], &["true"]).fails_naming(&["--ignore-paused", "resume"]);
    container.operation(&["resume"]).ok();
    container.exec_with(&["--ignore-paused"], &["true"]).ok();
}

#[test]
fn wrong_values_of_exec_are_named() {
    vm_only!();
    let container = sleeper();
    for (options, word) in [
        (&["--user", "root"][..], "--user \"root\""),
        (&["--user", "1:x"], "--user \"1:x\""),
        (&["-g", "x"], "--additional-gids"),
        (&["--cap", "CAP_NO_SUCH"], "NO_SUCH"),
        (&["--env", "novalue"], "env["),
        (&["--cwd", "relative"], "cwd"),
    ] {
        container.exec_with(options, &["true"]).fails_naming(&[word]);
    }
    for (process, word) in [("[]", "not a JSON object"), (r#"{"terminal":"yes"}"#, "process.terminal")] {
        fs::write(container.file("bad"), process).unwrap();
        let file = container.file("bad");
        container.exec_with(&["--process", file.to_str().unwrap()], &[]).fails_naming(&[word]);
    }
    assert_eq!(container.exec(&["echo", "unharmed"]).ok(), "unharmed");
}

#[test]
fn an_exec_that_is_killed_takes_its_process_along() {
    // The process of runc's exec is a child of the host's.
    vm_only!();
    let container = sleeper();
    let mut exec = container.exec_invocation(&[], &["sleep", "1005"]).into_command();
    let mut exec = exec.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    eventually("it runs", || container.operation(&["ps"]).ok().contains("sleep 1005"));
    exec.kill().unwrap();
    exec.wait().unwrap();
    eventually("it is gone", || !container.operation(&["ps"]).ok().contains("sleep 1005"));
}

#[test]
fn an_exec_whose_pid_file_cannot_be_written_leaves_no_process() {
    let container = sleeper();
    let options = ["--detach", "--pid-file", "/no/such/folder/pid"];
    let exec = container.exec_invocation(&options, &["sleep", "1006"]).leaves_something_behind().run();
    exec.fails_naming(&["/no/such/folder"]);
    eventually("it is gone", || !container.operation(&["ps"]).ok().contains("sleep 1006"));
}

#[test]
fn operations_that_are_killed_do_no_harm() {
    let container = sleeper();
    for words in [
        &["update", "--pids-limit", "77"][..],
        &["events"],
        &["events", "--stats"],
        &["ps"],
        &["state"],
        &["list"],
        &["pause"],
        &["resume"],
    ] {
        let words = [words, &[&container.id]].concat();
        let words = if words[0] == "list" { &words[..1] } else { &words[..] };
        let mut command = container.invocation(words).into_command();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // The pause may have been done or not.
    container.operation(&["resume"]);
    eventually("it runs", || container.status() == "running");
    assert_eq!(container.sh("echo unharmed"), "unharmed");
}

#[test]
fn a_damaged_state_does_not_hide_the_others() {
    vm_only!();
    let root = tempfile::tempdir().unwrap();
    let global = ["--root", root.path().to_str().unwrap()];
    let container = Container::create_with(Bundle::busybox().args(["true"]), &global, &[]);
    let damaged = root.path().join("damaged");
    fs::create_dir(&damaged).unwrap();
    fs::write(damaged.join("state.json"), "{").unwrap();
    let output = container.invocation(&["list", "-q"]).run();
    assert_eq!(output.ok(), container.id);
    assert!(output.errors().contains("damaged/state.json is damaged"), "{output}");
    container.invocation(&["delete", "--force", "damaged"]).run().ok();
    assert!(!damaged.exists());
}

#[test]
fn delete_by_force_ends_a_container_whose_state_is_damaged() {
    vm_only!();
    let before = Leftovers::picture();
    let container = Bundle::busybox().args(["sleep", "1000"]).start();
    let pid = container.pid();
    fs::write(format!("/run/pouch-vm/{}/state.json", container.id), "{").unwrap();
    container.delete_by_force();
    container.reap(pid);
    before.check();
}

#[test]
fn a_cgroup_with_others_in_it_is_refused_and_they_live_on() {
    vm_only!();
    let name = format!("/{}", unique_id());
    let bundle = |program: &[&str]| Bundle::busybox().args(program).set("/linux/cgroupsPath", json!(name));
    let container = bundle(&["sleep", "1000"]).start();
    bundle(&["true"]).run().fails_naming(&["linux.cgroupsPath", &name, "processes in it"]);
    assert_eq!(container.sh("echo unharmed"), "unharmed");
}
