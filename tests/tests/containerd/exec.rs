//! Further processes in a container.

use pouch_tests::containerd::CtrContainer;
use pouch_tests::terminal::Terminal;
use pouch_tests::{eventually, invocation};

use crate::check;

#[test]
fn output_and_status() {
    check(|| {
        let container = CtrContainer::idle(&["--env", "WORD=hello"]);
        let output = container.exec(&[], &["/bin/sh", "-c", "echo $WORD; echo err >&2; exit 3"]).run();
        assert_eq!((output.status, output.text()), (3, "hello".to_owned()), "{output}");
        assert!(output.errors().contains("err"), "{output}");
        let output =
            container.exec(&["--cwd", "/usr", "--user", "1:2"], &["/bin/sh", "-c", "pwd; id -u; id -g"]);
        assert_eq!(output.run().ok(), "/usr\n1\n2");
        assert_eq!(container.status(), "RUNNING");
    });
}

#[test]
fn input_arrives_and_ends() {
    check(|| {
        let container = CtrContainer::idle(&[]);
        assert_eq!(container.exec(&[], &["cat"]).stdin("one\ntwo\n").run().ok(), "one\ntwo");
    });
}

#[test]
fn a_terminal() {
    check(|| {
        let container = CtrContainer::idle(&[]);
        let script = "tty; stty size; read word; echo got $word; exit 4";
        let exec = container.exec(&["--tty"], &["/bin/sh", "-c", script]).into_command();
        let (mut terminal, mut child) = Terminal::spawn(exec, 33, 99);
        terminal.await_text("/dev/pts/");
        terminal.type_in("hello\n");
        terminal.await_text("got hello");
        let status = invocation::wait(&mut child, "ctr task exec", pouch_tests::HANG);
        assert_eq!(invocation::code(status), 4);
    });
}

#[test]
fn a_command_that_is_not_there() {
    check(|| {
        let container = CtrContainer::idle(&[]);
        let output = container.exec(&[], &["/no/such/program"]).run();
        assert!(output.status != 0 && output.errors().contains("no such file"), "{output}");
        assert_eq!(container.exec(&[], &["echo", "still"]).run().ok(), "still");
    });
}

#[test]
fn it_ends_with_the_container() {
    check(|| {
        let container = CtrContainer::idle(&[]);
        let mut exec = container.exec(&[], &["/bin/sh", "-c", "echo >/ready; sleep 1000"]).into_command();
        exec.stdin(std::process::Stdio::null());
        let mut child = exec.spawn().unwrap();
        eventually("the process runs", || container.exec(&[], &["test", "-e", "/ready"]).run().status == 0);
        container.task(&["kill", "--signal", "SIGKILL"]).run().ok();
        let status = invocation::wait(&mut child, "ctr task exec", pouch_tests::HANG);
        assert_eq!(invocation::code(status), 137);
        container.await_stopped();
    });
}
