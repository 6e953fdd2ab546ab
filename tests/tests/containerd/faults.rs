//! Processes that are killed: containerd learns of the end, and nothing is left.

use pouch_tests::containerd::{CtrContainer, Events};
use pouch_tests::processes::{self, sigkill};
use pouch_tests::{eventually, vm_only};

use crate::check;

#[test]
fn the_host_process_is_killed() {
    check(|| {
        let events = Events::follow();
        let container = CtrContainer::idle(&[]);
        let (pid, vmm) = (container.pid(), processes::vmm_of(container.pid()));
        sigkill(pid);
        container.await_stopped();
        let topics = events.until(&container.id, "/tasks/exit");
        assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit"]);
        assert_eq!(events.of(&container.id)[2].1["exit_status"], 137);
        eventually("the VM ends", || !vmm.iter().any(|pid| processes::runs(*pid)));
    });
}

#[test]
fn the_vmm_is_killed() {
    vm_only!();
    check(|| {
        let container = CtrContainer::idle(&[]);
        sigkill(processes::vmm_of(container.pid())[0]);
        container.await_stopped();
        let removed = container.remove_task();
        assert!(removed.errors().contains("exit code 137"), "{removed}");
    });
}

#[test]
fn the_shim_is_killed() {
    // runc's shim leaves its socket.
    vm_only!();
    check(|| {
        let events = Events::follow();
        let container = CtrContainer::idle(&[]);
        let (pid, vmm) = (container.pid(), processes::vmm_of(container.pid()));
        sigkill(container.shim());
        // containerd runs the shim's `delete`, and tells of the end.
        let topics = events.until(&container.id, "/tasks/delete");
        assert!(topics.contains(&"/tasks/exit".to_owned()), "{topics:?}");
        eventually("the container ends", || {
            !processes::runs(pid) && !vmm.iter().any(|pid| processes::runs(*pid))
        });
        assert_eq!(container.listed(), None);
    });
}

#[test]
fn a_command_of_the_client_is_killed() {
    check(|| {
        let container = CtrContainer::idle(&[]);
        let mut exec = container.exec(&[], &["/bin/sh", "-c", "echo ready; sleep 1000"]).into_command();
        exec.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped());
        let mut child = exec.spawn().unwrap();
        let mut got = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut got).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(container.exec(&[], &["echo", "still"]).run().ok(), "still");
        container.task(&["kill", "--signal", "SIGKILL"]).run().ok();
        container.await_stopped();
    });
}
