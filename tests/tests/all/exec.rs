//! Further processes in a running container.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pouch_tests::invocation::{code, wait};
use pouch_tests::{Bundle, Container, HANG, eventually, processes, vm_only};
use serde_json::json;

fn sleeper() -> Container {
    let env =
        json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "OF=the container"]);
    let user = json!({"uid": 0, "gid": 7, "umask": 0o027, "additionalGids": [8]});
    Bundle::debian().args(["sleep", "1000"]).set("/process/env", env).set("/process/user", user).start()
}

#[test]
fn it_has_streams_and_a_status_of_its_own() {
    let container = sleeper();
    let output = container.exec(&["sh", "-c", "echo out; echo err >&2; exit 23"]);
    output.fails(23);
    assert_eq!((output.text().as_str(), output.errors().as_str()), ("out", "err"));
    let input = vec![b'i'; 1 << 20];
    let output = container.exec_invocation(&[], &["cat"]).stdin(input.clone()).run();
    output.ok();
    assert!(output.stdout == input);
    container.exec(&["sh", "-c", "sh -c 'kill -TERM $$'; exit $?"]).fails(128 + 15);
    container.exec(&["sh", "-c", "kill -TERM $$"]).fails(128 + 15);
    assert_eq!(container.stdout(), "", "the container's own output is another");
}

#[test]
fn it_is_in_the_container() {
    let container = sleeper();
    for kind in ["pid", "mnt", "uts", "ipc", "net", "cgroup"] {
        let script =
            format!("test $(readlink /proc/1/ns/{kind}) = $(readlink /proc/self/ns/{kind}) && echo same");
        assert_eq!(container.sh(&script), "same", "{kind}");
    }
    assert_eq!(container.sh("cat /proc/1/comm"), "sleep");
    container.sh("echo x >/tmp/mine");
    assert_eq!(container.sh("cat /tmp/mine"), "x");
}

#[test]
fn it_takes_environment_folder_and_user() {
    let container = sleeper();
    assert_eq!(container.sh("echo $OF"), "the container");
    let output = container.exec_with(&["-e", "A=1 2", "-e", "OF=exec", "-e", "A=3"], &["env"]).ok();
    let mut variables: Vec<_> =
        output.lines().filter(|line| ["A=", "OF="].iter().any(|name| line.starts_with(name))).collect();
    variables.sort_unstable();
    assert_eq!(variables, ["A=3", "OF=exec"], "of several values of a variable the last counts");
    assert_eq!(container.exec_with(&["--cwd", "/usr/share"], &["pwd"]).ok(), "/usr/share");
    assert_eq!(container.exec_with(&["-u", "12:34"], &["sh", "-c", "id -u; id -g"]).ok(), "12\n34");
    // What is not named stays as the container has it.
    let who = ["sh", "-c", "id -u; id -g; id -G; umask"];
    assert_eq!(container.exec_with(&["--user", "12"], &who).ok(), "12\n7\n7 8\n0027");
    assert_eq!(container.exec_with(&["-u", "12:34", "-g", "56"], &who).ok(), "12\n34\n34 8 56\n0027");
}

#[test]
fn it_has_the_containers_capabilities_and_not_more() {
    let container = Bundle::debian().args(["sleep", "1000"]).capable(&["CAP_CHOWN", "CAP_KILL"]).start();
    let script = "grep -E 'Cap(Eff|Bnd)' /proc/self/status";
    assert_eq!(container.sh(script), "CapEff:\t0000000000000021\nCapBnd:\t0000000000000021");
}

#[test]
fn it_can_have_more_capabilities_and_no_new_privileges() {
    let bundle = Bundle::debian().set("/process/noNewPrivileges", json!(false));
    let container = bundle.args(["sleep", "1000"]).capable(&["CAP_CHOWN"]).start();
    let arguments = ["grep", "-E", "CapEff|NoNewPrivs", "/proc/self/status"];
    let more = container.exec_with(&["--cap", "CAP_NET_ADMIN"], &arguments).ok();
    assert_eq!(more, "CapEff:\t0000000000001001\nNoNewPrivs:\t0");
    let none_new = container.exec_with(&["--no-new-privs"], &arguments).ok();
    assert_eq!(none_new, "CapEff:\t0000000000000001\nNoNewPrivs:\t1");
}

#[test]
fn a_process_file_says_it_all() {
    let container = sleeper();
    let process = json!({
        "terminal": false, "user": {"uid": 7, "gid": 8}, "cwd": "/usr",
        "args": ["sh", "-c", "id -u; id -g; pwd; echo $B; prlimit --nofile --noheadings --raw -o SOFT,HARD"],
        "env": ["PATH=/usr/bin:/bin", "B=b"],
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}],
    });
    let file = container.file("process.json");
    fs::write(&file, process.to_string()).unwrap();
    let output = container.exec_with(&["--process", file.to_str().unwrap()], &[]);
    assert_eq!(output.ok(), "7\n8\n/usr\nb\n100 200");
}

#[test]
fn it_can_be_detached() {
    let container = sleeper();
    let pid_file = container.file("pid");
    let options = ["--detach", "--pid-file", pid_file.to_str().unwrap()];
    let script = "echo started >/tmp/started; sleep 1003; echo never";
    container.exec_invocation(&options, &["sh", "-c", script]).leaves_something_behind().run().ok();
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert!(processes::runs(pid), "the process that stands for it lives");
    eventually("it runs", || container.exec(&["cat", "/tmp/started"]).status == 0);
    assert!(container.operation(&["ps"]).ok().contains("sleep 1003"));
    // An engine reaps that process to learn the status, and signals it.
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert_eq!(container.reap(pid), 128 + 15);
}

#[test]
fn a_detached_process_ends_with_its_status() {
    let container = sleeper();
    let pid_file = container.file("pid");
    let options = ["-d", "--pid-file", pid_file.to_str().unwrap()];
    container
        .exec_invocation(&options, &["sh", "-c", "sleep 1; exit 9"])
        .leaves_something_behind()
        .run()
        .ok();
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert_eq!(container.reap(pid), 9);
}

#[test]
fn signals_are_passed_on() {
    let container = sleeper();
    let script = "trap 'exit 11' TERM; touch /tmp/ready; while :; do sleep 0.1; done";
    let mut command = container.exec_invocation(&[], &["sh", "-c", script]).into_command();
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    eventually("it is ready", || container.exec(&["test", "-e", "/tmp/ready"]).status == 0);
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(code(wait(&mut child, "exec", HANG)), 11);
}

#[test]
fn many_at_once() {
    let container = sleeper();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|number: i32| {
                let container = &container;
                scope.spawn(move || {
                    let script = format!("head -c 100000 /dev/zero | wc -c; exit {number}");
                    let output = container.exec(&["sh", "-c", &script]);
                    assert_eq!((output.status, output.text().as_str()), (number, "100000"), "{output}");
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn it_ends_when_killed_though_nobody_reads_what_it_wrote() {
    // runc copies the output itself, and waits for the reader.
    vm_only!();
    let container = sleeper();
    let mut command =
        container.exec_invocation(&[], &["sh", "-c", "echo $$ >/tmp/pid; exec yes"]).into_command();
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    eventually("it runs", || container.exec(&["cat", "/tmp/pid"]).status == 0);
    container.sh("kill -KILL $(cat /tmp/pid)");
    // Its pipe is full, and open until here.
    let status = code(wait(&mut child, "exec", HANG));
    drop(child.stdout.take());
    assert_eq!(status, 128 + 9);
}

/// Inodes of tmpfs that the guest has: no others than those of its own /run can become more here.
fn inodes_of_tmpfs(container: &Container) -> i64 {
    let script = "awk '$1 == \"shmem_inode_cache\" { print $2 }' /proc/slabinfo";
    container.sh(script).parse().unwrap()
}

#[test]
fn it_leaves_no_inode_behind() {
    // Under runc these are the host's, which others use.
    vm_only!();
    const TIMES: i64 = 60;
    // What the kernel calls active has the free ones of the last slabs with it.
    const ALLOWED: i64 = 40;
    let container = sleeper();
    let before = inodes_of_tmpfs(&container);
    for _ in 0..TIMES {
        container.exec(&["true"]).ok();
    }
    let now = inodes_of_tmpfs(&container);
    assert!(now < before + ALLOWED, "{before} before, {now} now");
}

#[test]
fn what_cannot_be_executed_is_named() {
    let container = sleeper();
    let missing = container.exec(&["no-such-program"]);
    missing.fails_naming(&["no-such-program"]);
    container.exec(&["/etc/passwd"]).fails_naming(&["/etc/passwd", "permission denied"]);
    container.exec_with(&["--cwd", "/no/such/folder"], &["true"]).fails_naming(&["/no/such/folder"]);
    container.exec_with(&["--process", "/no/such/file"], &[]).fails_naming(&["/no/such/file"]);
    fs::write(container.file("bad.json"), "{").unwrap();
    let file = container.file("bad.json");
    container.exec_with(&["--process", file.to_str().unwrap()], &[]).fails_naming(&[]);
    container.exec(&[]).fails_naming(&[]);
    assert_eq!(container.sh("echo unharmed"), "unharmed");
}

#[test]
fn only_a_running_container_executes() {
    let container = Bundle::debian().args(["true"]).start();
    container.await_status("stopped");
    container.exec(&["true"]).fails_naming(&["stopped"]);
    container.delete();
    container.exec(&["true"]).fails_naming(&["does not exist"]);
}

#[test]
fn it_ends_with_the_container() {
    let container = sleeper();
    let mut command = container.exec_invocation(&[], &["sleep", "1004"]).into_command();
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    eventually("it runs", || container.operation(&["ps"]).text().contains("sleep 1004"));
    container.kill("KILL");
    assert_ne!(code(wait(&mut child, "exec", HANG)), 0);
}

/// The command lines of all processes can be read by all users of the host.
#[test]
fn its_environment_is_on_no_command_line_and_may_be_large() {
    let container = sleeper();
    let (secret, large) = ("PASSWORD=correct-horse", format!("LARGE={}", "x".repeat(100_000)));
    let options = ["--detach", "--env", secret, "--env", &large];
    let script = "echo ${#LARGE} >/tmp/length; sleep 1007";
    container.exec_invocation(&options, &["sh", "-c", script]).leaves_something_behind().run().ok();
    eventually("it runs", || container.exec(&["cat", "/tmp/length"]).text() == "100000");
    for pid in processes::all().into_keys() {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains("correct-horse"), "process {pid}");
    }
}
