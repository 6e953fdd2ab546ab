//! Streams through containerd's streaming server: exec, attach, and forwarded ports.

use pouch_tests::cri::{Node, StreamChannel as Channel};
use pouch_tests::eventually;

tests! {
    both: forwarded_ports;
    a_process_with_streams, a_process_with_a_terminal, attached_to_a_container,
}

/// As by `kubectl port-forward`.
fn forwarded_ports(node: Node) {
    let pod = node.pod("ports").run();
    let server = "while :; do echo answer | nc -l -p 8080 >>/received; done";
    let container = pod.container("server").sh(server).start();
    for round in ["one", "two"] {
        eventually("the server answers", || {
            assert!(container.runs(), "{:?}", container.ended());
            let mut stream = pod.forward(8080);
            stream.send(Channel::Input, format!("{round}\n").as_bytes());
            stream.await_end();
            stream.text(Channel::Input) == "answer\n"
        });
        eventually("the server has the bytes", || container.exec("cat /received").ends_with(round));
    }
    let mut closed = pod.forward(81);
    closed.await_end();
    assert_eq!(closed.text(Channel::Input), "", "nobody listens");
}

fn a_process_with_streams(node: Node) {
    let pod = node.pod("exec").run();
    let container = pod.container("one").start();
    let mut stream =
        container.exec_stream(&["/bin/sh", "-c", "read line; echo out $line; echo err >&2; exit 3"], false);
    stream.send(Channel::Input, b"line\n");
    stream.await_end();
    assert_eq!(
        (stream.text(Channel::Output).as_str(), stream.text(Channel::Errors).as_str()),
        ("out line\n", "err\n")
    );
    assert!(stream.text(Channel::End).contains("exit code 3"), "{}", stream.text(Channel::End));
}

fn a_process_with_a_terminal(node: Node) {
    let pod = node.pod("terminal").run();
    let container = pod.container("one").start();
    let script = "trap 'stty size' WINCH; tty; while :; do sleep 0.2; done";
    let mut stream = container.exec_stream(&["/bin/sh", "-c", script], true);
    stream.await_text(Channel::Output, "/dev/pts/");
    stream.send(Channel::Size, br#"{"Width":100,"Height":40}"#);
    stream.await_text(Channel::Output, "40 100");
    stream.send(Channel::Input, b"\x03");
    stream.await_end();
    assert!(stream.text(Channel::End).contains("exit code 130"), "{}", stream.text(Channel::End));
}

fn attached_to_a_container(node: Node) {
    let pod = node.pod("attach").run();
    let container = pod.container("one").with(|config| config.stdin = true);
    let container = container.sh("while read line; do echo got $line; done; exit 4").start();
    let mut stream = container.attach();
    stream.send(Channel::Input, b"first\n");
    stream.await_text(Channel::Output, "got first");
    drop(stream);
    let mut again = container.attach();
    again.send(Channel::Input, b"second\n");
    again.await_text(Channel::Output, "got second");
    eventually("the log has both", || {
        let lines: Vec<_> = container.log().into_iter().map(|line| line.text).collect();
        lines == ["got first", "got second"]
    });
    assert!(container.runs());
}
