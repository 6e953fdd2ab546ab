//! Terminals.

use std::io::Read;
use std::time::Duration;

use pouch_tests::invocation::{code, wait};
use pouch_tests::terminal::{ConsoleSocket, SIZES, Terminal};
use pouch_tests::{Bundle, Container, HANG, Invocation, eventually};
use serde_json::json;

fn with_terminal(arguments: &[&str]) -> Bundle {
    Bundle::debian().args(arguments).set("/process/terminal", json!(true))
}

#[test]
fn run_uses_the_terminal_that_it_is_on() {
    let bundle = with_terminal(&["perl", "-e", SIZES]);
    let (mut terminal, mut child) = Terminal::spawn(bundle.run_invocation(&[]).into_command(), 33, 111);
    terminal.await_text("size 33 111");
    assert!(terminal.screen().contains("/dev/pts/0") || terminal.screen().contains("/dev/console"));
    terminal.type_in("hello\r");
    terminal.await_text("got <hello>");
    terminal.resize(44, 99);
    terminal.await_text("size 44 99");
    terminal.type_in("end\r");
    assert_eq!(code(wait(&mut child, "run", HANG)), 6);
}

#[test]
fn keys_are_the_containers() {
    let bundle = with_terminal(&[
        "bash",
        "-c",
        "trap 'echo interrupted' INT; echo ready; cat; echo after; sleep 1000 || exit 12",
    ]);
    let (mut terminal, mut child) = Terminal::spawn(bundle.run_invocation(&[]).into_command(), 24, 80);
    terminal.await_text("ready");
    terminal.type_in("line\r\x04");
    terminal.await_text("after");
    // The key interrupts the guest's foreground processes, not the command on the host. It is pressed
    // until the foreground process is the one that it should interrupt.
    eventually("the container ends", || {
        terminal.type_in("\x03");
        std::thread::sleep(Duration::from_millis(500));
        child.try_wait().unwrap().is_some()
    });
    assert_eq!(code(wait(&mut child, "run", HANG)), 12);
    assert!(terminal.screen().contains("interrupted"), "{}", terminal.screen());
}

#[test]
fn standard_error_is_on_the_terminal_too() {
    let bundle = with_terminal(&["bash", "-c", "test -t 0 && test -t 1 && test -t 2 && echo all >&2"]);
    let (terminal, mut child) = Terminal::spawn(bundle.run_invocation(&[]).into_command(), 24, 80);
    assert_eq!(code(wait(&mut child, "run", HANG)), 0);
    terminal.await_text("all");
}

#[test]
fn a_terminal_is_sent_to_the_console_socket() {
    let bundle = with_terminal(&["perl", "-e", SIZES]);
    let path = bundle.path().join("console");
    let socket = ConsoleSocket::bind(&path);
    let (container, mut terminal) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| socket.receive());
        let container = Container::create(bundle, &["--console-socket", path.to_str().unwrap()]);
        (container, receiver.join().unwrap())
    });
    let pid = container.pid();
    terminal.resize(50, 100);
    container.start();
    terminal.await_text("size 50 100");
    terminal.resize(60, 120);
    terminal.await_text("size 60 120");
    terminal.type_in("end\r");
    assert_eq!(container.reap(pid), 6);
}

/// More than a terminal holds, from a process that ends as soon as the last of it fits in.
#[test]
fn a_slow_reader_of_a_terminal_gets_all_of_it() {
    const TOTAL: usize = 40_000;
    let script = format!("head -c {TOTAL} /dev/zero | tr '\\0' x; echo the end");
    let bundle = with_terminal(&["bash", "-c", &script]);
    let path = bundle.path().join("console");
    let socket = ConsoleSocket::bind(&path);
    let (container, mut terminal) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| socket.receive_unread());
        let container = Container::create(bundle, &["--console-socket", path.to_str().unwrap()]);
        (container, receiver.join().unwrap())
    });
    let pid = container.pid();
    container.start();
    let (mut shown, mut buffer) = (Vec::new(), [0; 1000]);
    // EIO is a terminal's way to say that nobody has it open any more.
    while let Ok(count @ 1..) = terminal.read(&mut buffer) {
        shown.extend_from_slice(&buffer[..count]);
        std::thread::sleep(Duration::from_millis(60));
    }
    assert_eq!(container.reap(pid), 0);
    let text = String::from_utf8_lossy(&shown);
    assert_eq!(text.matches('x').count(), TOTAL);
    assert!(text.ends_with("the end\r\n"), "{:?}", &text[text.len().saturating_sub(20)..]);
}

#[test]
fn exec_can_have_a_terminal() {
    let container = Bundle::debian().args(["sleep", "1000"]).start();
    let command = container.exec_invocation(&["--tty"], &["perl", "-e", SIZES]).into_command();
    let (mut terminal, mut child) = Terminal::spawn(command, 21, 71);
    terminal.await_text("size 21 71");
    terminal.resize(22, 72);
    terminal.await_text("size 22 72");
    terminal.type_in("\x04");
    assert_eq!(code(wait(&mut child, "exec", HANG)), 5, "{}", terminal.screen());
}

#[test]
fn exec_sends_its_terminal_to_a_console_socket() {
    let container = Bundle::debian().args(["sleep", "1000"]).start();
    let path = container.file("console");
    let socket = ConsoleSocket::bind(&path);
    let pid_file = container.file("pid");
    let options = [
        "--tty",
        "--detach",
        "--console-socket",
        path.to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
    ];
    let invocation = container.exec_invocation(&options, &["perl", "-e", SIZES]);
    // Whoever started it waits for the end of its output, which must not be that of the process.
    let mut terminal = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| socket.receive());
        invocation.run().ok();
        receiver.join().unwrap()
    });
    terminal.resize(31, 41);
    terminal.await_text("size 31 41");
    terminal.type_in("end\r");
    let pid: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    assert_eq!(container.reap(pid), 6);
}

#[test]
fn a_terminal_that_is_not_there_is_an_error() {
    let bundle = with_terminal(&["bash", "-c", "true"]);
    bundle.run().fails_naming(&["t"]);
    bundle.write();
    let arguments = ["run", "--detach", "--bundle", bundle.path().to_str().unwrap(), "no-terminal"];
    Invocation::new(arguments).run().fails_naming(&["console"]);
    let nobody = bundle.path().join("nobody-listens");
    let nobody = nobody.to_str().unwrap();
    let arguments =
        ["create", "--console-socket", nobody, "--bundle", bundle.path().to_str().unwrap(), "no-socket"];
    Invocation::new(arguments).run().fails_naming(&["nobody-listens"]);
}

#[test]
fn a_console_socket_without_a_terminal_is_an_error() {
    let bundle = Bundle::debian().args(["true"]);
    let path = bundle.path().join("console");
    let _socket = ConsoleSocket::bind(&path);
    bundle.run_invocation(&["--console-socket", path.to_str().unwrap()]).run().fails_naming(&["console"]);
}
