//! The events of a container's life, in containerd's order.

use pouch_tests::containerd::{CtrContainer, Events, IMAGE, ctr_run};
use pouch_tests::{bundle, vm_only};

use crate::check;

#[test]
fn of_a_container_and_a_process_in_it() {
    check(|| {
        let events = Events::follow();
        let container = CtrContainer::idle(&[]);
        assert_eq!(container.exec(&[], &["/bin/sh", "-c", "exit 3"]).run().status, 3);
        container.task(&["pause"]).run().ok();
        container.task(&["resume"]).run().ok();
        container.task(&["kill", "--signal", "SIGKILL"]).run().ok();
        container.await_stopped();
        container.remove_task();
        let topics = events.until(&container.id, "/tasks/delete");
        let expected = [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit",
            "/tasks/paused",
            "/tasks/resumed",
            "/tasks/exit",
            "/tasks/delete",
        ];
        assert_eq!(topics, expected);
        let of = events.of(&container.id);
        assert_eq!((&of[4].1["exit_status"], &of[7].1["exit_status"]), (&3.into(), &137.into()), "{of:?}");
        assert_ne!(of[4].1["id"], container.id.as_str());
        assert_eq!(of[7].1["id"], container.id.as_str());
        assert_eq!(of[0].1["pid"], of[7].1["pid"]);
    });
}

#[test]
fn memory_that_runs_out() {
    // runc's shim looks for the event in the cgroup, whose file may be gone before.
    vm_only!();
    check(|| {
        let events = Events::follow();
        let id = bundle::unique_id();
        let fill = ["/bin/sh", "-c", "tail /dev/zero"];
        let run = ctr_run(&["--rm", "--memory-limit", "33554432"], IMAGE, &id, &fill).run();
        assert_eq!(run.status, 137, "{run}");
        let topics = events.until(&id, "/tasks/delete");
        assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit", "/tasks/delete"]);
    });
}
