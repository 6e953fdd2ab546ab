//! Terminals, `attach` and `logs --follow`.

use std::io::Write;
use std::process::Stdio;

use pouch_tests::invocation::{code, wait};
use pouch_tests::terminal::{SIZES, Terminal};
use pouch_tests::{Engine, HANG, engine_tests, eventually};

engine_tests! {
    both: run_on_a_terminal;
    both_long: exec_on_a_terminal, attach_to_a_terminal, attach_to_streams, logs_are_followed;
    docker_28_long: exec_on_a_terminal;
}

fn converse(terminal: &mut Terminal) {
    terminal.await_text("size 33 111");
    terminal.type_in("hello\r");
    terminal.await_text("got <hello>");
    terminal.resize(44, 99);
    terminal.await_text("size 44 99");
}

fn run_on_a_terminal(engine: Engine) {
    let (mut terminal, mut child) = engine.run_on_terminal(&[], &["perl", "-e", SIZES], (33, 111));
    converse(&mut terminal);
    terminal.type_in("end\r");
    assert_eq!(code(wait(&mut child, "run", HANG)), 6);
}

fn exec_on_a_terminal(engine: Engine) {
    let container = engine.start_idle(&[]);
    let command = container.exec_invocation(&["-it"], &["perl", "-e", SIZES]).into_command();
    let (mut terminal, mut child) = Terminal::spawn(command, 33, 111);
    converse(&mut terminal);
    terminal.type_in("end\r");
    assert_eq!(code(wait(&mut child, "exec", HANG)), 6);
}

fn attach_to_a_terminal(engine: Engine) {
    let container = engine.start(&["-it"], "debian", &["perl", "-e", SIZES]);
    let (mut terminal, mut child) = Terminal::spawn(container.command(&["attach"]).into_command(), 33, 111);
    converse(&mut terminal);
    // The keys that detach; the container goes on.
    if engine.is_docker() {
        terminal.type_in("\x10\x11");
    } else {
        // Podman's attach did not heed them, with runc neither: its client is killed instead.
        child.kill().unwrap();
    }
    wait(&mut child, "attach", HANG);
    assert_eq!(container.status(), "running");
    let (mut terminal, mut child) = Terminal::spawn(container.command(&["attach"]).into_command(), 20, 70);
    terminal.await_text("size 20 70");
    terminal.type_in("end\r");
    assert_eq!(code(wait(&mut child, "attach", HANG)), if engine.is_docker() { 6 } else { 0 });
    assert_eq!(container.wait(), 6);
}

fn attach_to_streams(engine: Engine) {
    let script =
        "echo ready; while read -r line; do echo \"got $line\"; [ \"$line\" = end ] && exit 3; done; exit 4";
    let container = engine.start(&["-i"], "debian", &["sh", "-c", script]);
    let mut command = container.command(&["attach"]).into_command();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"one\n").unwrap();
    container.await_logs("got one");
    input.write_all(b"end\n").unwrap();
    // Podman's attach does not pass the status on, with runc neither; wait does.
    assert_eq!(code(wait(&mut child, "attach", HANG)), if engine.is_docker() { 3 } else { 0 });
    assert_eq!(container.wait(), 3);
    assert_eq!(container.logs(), "ready\ngot one\ngot end");
}

fn logs_are_followed(engine: Engine) {
    let script = "echo first; until [ -e /go ]; do sleep 1; done; echo second >&2; seq 2000; exit 5";
    let container = engine.start_sh(&[], script);
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut command = container.command(&["logs", "--follow"]).into_command();
    let stream = || Stdio::from(file.as_file().try_clone().unwrap());
    let mut child = command.stdout(stream()).stderr(stream()).spawn().unwrap();
    let read = || std::fs::read_to_string(file.path()).unwrap();
    eventually("the first line is followed", || read() == "first\n");
    container.go();
    assert_eq!(container.wait(), 5);
    assert_eq!(code(wait(&mut child, "logs --follow", HANG)), 0);
    let text = read();
    let mut lines: Vec<&str> = text.lines().collect();
    // The two streams have no common order.
    lines.retain(|line| *line != "second");
    assert_eq!((lines.len(), text.lines().count()), (2001, 2002), "{text}");
    assert_eq!(lines.last(), Some(&"2000"));
}
