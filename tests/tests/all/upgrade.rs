//! The runtime is replaced by another build, from `create` on.

use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use pouch_tests::installation::{is_replaced, replace};
use pouch_tests::{Bundle, Leftovers, processes, vm_only};
use serde_json::{Value, json};

#[test]
fn nothing_left_of_a_container_of_the_build_before() {
    Bundle::debian().args(["true"]).run().ok();
    let bundle = Bundle::debian().sh("trap 'exit 4' TERM; echo ready; while :; do sleep 0.1; done");
    let before = Leftovers::picture();
    let container = bundle.create();
    let pid = container.pid();
    replace();
    if pouch_tests::has_vm() {
        assert!(is_replaced(pid) && processes::vmm_of(pid).into_iter().all(is_replaced));
    }
    container.start();
    assert_eq!(container.sh("echo in the old one"), "in the old one");
    container.kill("TERM");
    assert_eq!(container.reap(pid), 4);
    assert_eq!(container.stdout(), "ready\n");
    container.delete();
    before.check();
    // And by force, which asks the old host process.
    let container = Bundle::debian().args(["sleep", "1000"]).start();
    let pid = container.pid();
    replace();
    container.delete_by_force();
    container.reap(pid);
    before.check();
}

/// Sends a message to a container's host process and receives the answer.
fn ask(path: &str, message: &Value) -> Value {
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
    connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    send(fd.as_raw_fd(), message.to_string().as_bytes(), MsgFlags::empty()).unwrap();
    let mut answer = vec![0; 65536];
    let size = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
    serde_json::from_slice(&answer[..size]).unwrap_or_else(|error| panic!("{message}: {error}"))
}

#[test]
fn a_request_of_a_later_build_is_refused() {
    vm_only!();
    let container = Bundle::debian().args(["sleep", "1000"]).start();
    let path = format!("/run/pouch-vm/{}/host.sock", container.id);
    for unknown in [json!("of_tomorrow"), json!({"signal": {"of_tomorrow": 1}}), json!(7)] {
        let answer = ask(&path, &unknown);
        let text = answer["failed"]["message"].as_str().unwrap_or_else(|| panic!("{answer}"));
        assert!(text.contains("another build"), "{text}");
    }
    assert_eq!(ask(&path, &json!("status")), json!({"status": "running"}));
    assert_eq!(container.sh("echo unharmed"), "unharmed");
}
