//! `metrics`: what Prometheus gets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;

use pouch_tests::{Bundle, Container, Invocation, eventually, vm_only};

/// A server of metrics, which ends when it is dropped.
struct Server {
    child: std::process::Child,
    address: String,
}

impl Server {
    fn start() -> Self {
        let mut command = Invocation::new(["metrics", "--listen", "127.0.0.1:0"]).into_command();
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
        Server { child, address }
    }

    /// The answer to a request: its first line and its body.
    fn get(&self, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn printed() -> String {
    Invocation::new(["metrics"]).run().ok()
}

/// The value in the line that begins with this.
#[track_caller]
fn value(text: &str, begin: &str) -> f64 {
    let line = text.lines().find(|line| line.starts_with(begin));
    let line = line.unwrap_or_else(|| panic!("{begin} is not in\n{text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_container_and_its_vm_are_measured() {
    vm_only!();
    let container = Bundle::busybox().args(["sleep", "1000"]).create();
    let id = &container.id;
    let status = |status| {
        format!("pouch_vm_container_status{{container=\"{id}\",sandbox=\"{id}\",status=\"{status}\"}} 1")
    };
    assert!(printed().contains(&status("created")));
    container.start();
    let text = printed();
    assert!(text.contains(&status("running")), "{text}");
    let of = |name: &str| value(&text, &format!("pouch_vm_{name}{{container=\"{id}\",sandbox=\"{id}\""));
    assert_eq!(
        (of("container_answers"), of("container_processes"), of("container_oom_kills_total")),
        (1.0, 1.0, 0.0)
    );
    assert!(of("container_memory_bytes") > 4096.0);
    let of_process = |name: &str, process| {
        value(&text, &format!("pouch_vm_sandbox_host_{name}{{sandbox=\"{id}\",process=\"{process}\"}}"))
    };
    assert!(of_process("cpu_seconds_total", "vmm") > 0.0);
    assert!(of_process("memory_bytes", "vmm") > of_process("memory_bytes", "host"), "it has guest memory");
    let phase = |phase| {
        value(&text, &format!("pouch_vm_sandbox_start_seconds{{sandbox=\"{id}\",phase=\"{phase}\"}}"))
    };
    assert!(phase("vmm_started") > 0.0);
    assert!(
        phase("vmm_started") < phase("guest_answered")
            && phase("guest_answered") < phase("container_created")
    );
    let pid = container.pid();
    container.kill("KILL");
    container.reap(pid);
    container.await_status("stopped");
    let exit = format!("pouch_vm_container_exit_status{{container=\"{id}\",sandbox=\"{id}\"}} 137");
    assert!(printed().contains(&exit));
}

#[test]
fn they_are_served_over_http() {
    vm_only!();
    let container = vm_container();
    let server = Server::start();
    let (status, text) = server.get("/metrics");
    assert!(status.contains("200"), "{status}");
    assert!(text.contains(&format!("container=\"{}\"", container.id)) && text.ends_with("# EOF\n"), "{text}");
    assert!(server.get("/").0.contains("404"));
    // One after the other, and one that says nothing does not keep the others waiting.
    let silent = TcpStream::connect(&server.address).unwrap();
    assert!(server.get("/metrics").0.contains("200"));
    drop(silent);
    let id = container.id.clone();
    drop(container);
    eventually("it is gone from the metrics", || !server.get("/metrics").1.contains(&id));
}

fn vm_container() -> Container {
    Bundle::busybox().args(["sleep", "1000"]).start()
}

#[test]
fn an_address_that_cannot_be_used_is_named() {
    vm_only!();
    let listen = |address: &str| Invocation::new(["metrics", "--listen", address]).run();
    listen("203.0.113.7:80").fails_naming(&["--listen 203.0.113.7:80"]);
    listen("here").fails_naming(&["--listen"]);
}

#[test]
fn a_container_whose_host_process_is_silent_is_told_as_that() {
    vm_only!();
    let (silent, other) = (vm_container(), vm_container());
    let pid = silent.pid();
    let stop = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    stop(nix::sys::signal::Signal::SIGSTOP);
    let text = printed();
    stop(nix::sys::signal::Signal::SIGCONT);
    let answers = |id: &str| value(&text, &format!("pouch_vm_container_answers{{container=\"{id}\""));
    assert_eq!((answers(&silent.id), answers(&other.id)), (0.0, 1.0));
}
