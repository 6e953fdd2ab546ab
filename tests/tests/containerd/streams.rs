//! Standard streams: FIFOs, files, programs that log, and terminals.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use pouch_tests::containerd::{CtrContainer, IMAGE, ctr_run, sh};
use pouch_tests::terminal::Terminal;
use pouch_tests::{bundle, eventually, invocation, vm_only};

use crate::check;

#[test]
fn input_arrives_and_ends() {
    check(|| {
        let script = ["/bin/sh", "-c", "echo ready; cat"];
        let mut run = ctr_run(&["--rm"], IMAGE, &bundle::unique_id(), &script).into_command();
        let mut child = run.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        // If the input ends before the task exists, ctr does not tell the shim.
        let mut ready = [0; 6];
        output.read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        input.write_all(b"one\ntwo\n").unwrap();
        drop(input);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one\ntwo\n");
        let status = invocation::wait(&mut child, "ctr run", pouch_tests::HANG);
        assert_eq!(invocation::code(status), 0);
    });
}

#[test]
fn much_output_arrives_whole() {
    check(|| {
        let output = sh(&[], "seq 1 200000; seq 1 1000 >&2");
        assert_eq!(output.ok().lines().count(), 200_000);
        assert_eq!(output.errors().lines().count(), 1000);
        assert!(output.text().ends_with("\n200000"));
    });
}

#[test]
fn a_log_file() {
    check(|| {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("deep/log");
        let uri = format!("file://{}", log.display());
        let container = CtrContainer::start(&["--log-uri", &uri], "echo out; echo err >&2");
        container.await_stopped();
        let text = fs::read_to_string(log).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["err", "out"]);
    });
}

#[test]
fn a_program_that_logs() {
    // runc's shim ends the program when the container is removed, whatever it has read.
    vm_only!();
    check(|| {
        let folder = tempfile::tempdir().unwrap();
        let (program, log) = (folder.path().join("logger"), folder.path().join("log"));
        let script = format!(
            "#!/bin/sh\n{{ echo $CONTAINER_NAMESPACE $CONTAINER_ID; exec 5>&-; cat <&3; cat <&4; echo end; }} >{}\n",
            log.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let uri = format!("binary://{}", program.display());
        let container = CtrContainer::start(&["--log-uri", &uri], "echo out; echo err >&2");
        container.await_stopped();
        container.remove_task();
        let text = || fs::read_to_string(&log).unwrap_or_default();
        eventually("the program has read everything", || text().ends_with("end\n"));
        assert_eq!(text(), format!("default {}\nout\nerr\nend\n", container.id));
    });
}

#[test]
fn a_terminal() {
    check(|| {
        // ctr tells the size when the container runs.
        let script = "until stty size | grep -q '40 132'; do sleep 0.1; done; stty size; tty; read word; \
                      echo got $word; exit 3";
        let run = ctr_run(&["--rm", "--tty"], IMAGE, &bundle::unique_id(), &["/bin/sh", "-c", script]);
        let (mut terminal, mut child) = Terminal::spawn(run.into_command(), 40, 132);
        terminal.await_text("40 132");
        terminal.type_in("hello\n");
        terminal.await_text("got hello");
        let status = invocation::wait(&mut child, "ctr run", pouch_tests::HANG);
        assert_eq!(invocation::code(status), 3);
    });
}

#[test]
fn a_client_detaches_and_another_attaches() {
    check(|| {
        let container = CtrContainer::start(&[], "while read word; do echo got $word; done; sleep 1000");
        let mut first = container.task(&["attach"]).into_command();
        first.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut first = first.spawn().unwrap();
        first.stdin.as_mut().unwrap().write_all(b"one\n").unwrap();
        let mut got = [0; 8];
        first.stdout.as_mut().unwrap().read_exact(&mut got).unwrap();
        assert_eq!(&got, b"got one\n");
        first.kill().unwrap();
        first.wait().unwrap();
        assert_eq!(container.status(), "RUNNING");
    });
}
