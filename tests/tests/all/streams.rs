//! Standard streams and exit status.

use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use pouch_tests::bundle::unique_id;
use pouch_tests::invocation::{code, wait};
use pouch_tests::{Bundle, HANG, Invocation, eventually, has_vm, long, processes, vm_only};

#[test]
fn stdout_and_stderr_stay_apart() {
    let output = Bundle::debian().sh("echo out; echo err >&2; echo more").run();
    assert_eq!(output.ok(), "out\nmore");
    assert_eq!(output.errors(), "err");
}

#[test]
fn stdin_is_read_to_its_end() {
    let mut input = vec![0; 3 << 20];
    for (index, byte) in input.iter_mut().enumerate() {
        *byte = (index * 7 + index / 251) as u8;
    }
    let output = Bundle::debian().args(["cat"]).run_invocation(&[]).stdin(input.clone()).run();
    output.ok();
    assert!(output.stdout == input, "{} bytes went in, {} came out", input.len(), output.stdout.len());
}

#[test]
fn empty_stdin_ends_at_once() {
    assert_eq!(Bundle::debian().sh("wc -c; echo done").run().ok(), "0\ndone");
}

#[test]
fn input_that_nobody_reads_does_no_harm() {
    let output = Bundle::debian().sh("exit 4").run_invocation(&[]).stdin(vec![b'x'; 1 << 20]).run();
    output.fails(4);
}

#[test]
fn output_right_before_the_end_arrives() {
    let output = Bundle::debian().args(["head", "-c", "2000000", "/dev/zero"]).run();
    output.ok();
    assert_eq!(output.stdout.len(), 2_000_000);
}

#[test]
fn the_exit_status_is_the_containers() {
    for (script, status) in [("exit 0", 0), ("exit 42", 42), ("exit 255", 255), ("kill -9 $$", 137)] {
        // A shell as PID 1 of its namespace cannot kill itself, but a child of it can.
        let script = format!("sh -c '{}'; exit $?", script.replace("$$", "\"$$\""));
        Bundle::busybox().sh(&script).run().fails(status);
    }
}

#[test]
fn a_process_that_closes_its_output_may_go_on() {
    let output = Bundle::debian().sh("echo first; exec >&-; sleep 1; exit 3").run();
    output.fails(3);
    assert_eq!(output.text(), "first");
}

/// The reader takes a little and closes its end; the writer must see a broken pipe and end.
#[test]
fn stdout_closed_by_its_reader_ends_the_writer() {
    let bundle = Bundle::debian().args(["yes"]);
    let mut command = bundle.run_invocation(&[]).into_command();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut some = [0; 10_000];
    stdout.read_exact(&mut some).unwrap();
    drop(stdout);
    let status = code(wait(&mut child, "yes with nobody reading", HANG));
    // PID 1 of a namespace is not killed by SIGPIPE, so it sees the error and ends with 1.
    assert_eq!(status, 1, "yes ends with an error");
}

/// Much through a reader that is slower than the writer: nothing on the way may collect it.
#[test]
fn a_slow_reader_holds_the_writer_back() {
    const ALLOWED_GROWTH_KIB: u64 = 32 << 10;
    let all: u64 = if long() { 1 << 30 } else { 256 << 20 };
    let script = format!("dd if=/dev/zero bs=1M count={} 2>/dev/null", all >> 20);
    let bundle = Bundle::debian().sh(&script);
    let mut command = bundle.run_invocation(&[]).into_command();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
    let mut stdout = BufReader::with_capacity(1 << 16, child.stdout.take().unwrap());
    let own_memory = |pid: i32| -> u64 {
        let all = processes::descendants(pid).into_iter().chain([pid]);
        // Not the VMM: the guest's memory counts there, and the guest may use it.
        all.filter(|pid| processes::find(*pid).is_some_and(|p| !p.name.starts_with("pouch-vmm")))
            .map(processes::pss_kib)
            .sum()
    };
    let pid = child.id() as i32;
    let mut buffer = vec![0; 1 << 20];
    let (mut total, mut first, mut most) = (0, None, 0);
    loop {
        let count = stdout.read(&mut buffer).unwrap() as u64;
        if count == 0 {
            break;
        }
        total += count;
        // Now and then the reader rests for long enough that the writer could fill any buffer.
        if total % (all / 16) < count {
            std::thread::sleep(std::time::Duration::from_millis(200));
            let now = own_memory(pid);
            first.get_or_insert(now);
            most = most.max(now);
        }
    }
    assert_eq!(code(wait(&mut child, "dd", HANG)), 0);
    assert_eq!(total, all);
    let first = first.unwrap();
    assert!(most <= first + ALLOWED_GROWTH_KIB, "host processes grew from {first} to {most} KiB");
    assert!(!has_vm() || first > 0, "no host process was found below {pid}");
}

/// Starts a container with this standard output; also returns its name.
fn run_with_stdout(bundle: &Bundle, stdout: impl Into<OwnedFd>) -> (Child, String) {
    let id = unique_id();
    let folder = bundle.write().path().to_str().unwrap();
    let mut command = Invocation::new(["run", "--bundle", folder, &id]).into_command();
    let stdout = Stdio::from(stdout.into());
    (command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::null()).spawn().unwrap(), id)
}

fn is_running(id: &str) -> bool {
    Invocation::new(["state", id]).run().text().contains("\"running\"")
}

/// `runc run` copies its container's output itself, and waits for the reader when the container is gone.
#[test]
fn a_killed_container_ends_though_nobody_reads_what_it_wrote() {
    vm_only!();
    let bundle = Bundle::debian().args(["yes"]);
    let (_reader, pipe) = io::pipe().unwrap();
    // A socket cannot be given more room.
    let (_other_reader, socket) = UnixStream::pair().unwrap();
    for stdout in [OwnedFd::from(pipe), OwnedFd::from(socket)] {
        let (mut child, id) = run_with_stdout(&bundle, stdout);
        eventually("it runs", || is_running(&id));
        Invocation::new(["kill", &id, "KILL"]).run().ok();
        assert_eq!(code(wait(&mut child, "run", HANG)), 137);
        assert!(!is_running(&id));
    }
}

/// The process has ended, and its host process passes on what is left.
#[test]
fn a_process_that_ended_is_not_running_for_kill() {
    vm_only!();
    const TOTAL: usize = 350_000;
    let bundle = Bundle::debian().args(["head", "-c", &TOTAL.to_string(), "/dev/zero"]);
    let (mut reader, socket) = UnixStream::pair().unwrap();
    let (mut child, id) = run_with_stdout(&bundle, socket);
    eventually("it runs", || is_running(&id));
    let kill = || Invocation::new(["kill", &id, "CONT"]).run();
    eventually("it has ended", || kill().status != 0);
    // Docker looks for the words.
    kill().fails_naming(&["container not running", &id]);
    let mut got = Vec::new();
    reader.read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), TOTAL);
    assert_eq!(code(wait(&mut child, "run", HANG)), 0);
}
