//! Requests that cannot be met: each has an error that names the reason, and leaves nothing behind.

use pouch_tests::containerd::{CtrContainer, IMAGE, ctr, ctr_run, sh};
use pouch_tests::{Output, bundle, vm_only};

use crate::check;

/// Runs a container that cannot be; its ID is free then.
#[track_caller]
fn refused(options: &[&str], command: &[&str]) -> Output {
    let id = bundle::unique_id();
    let output = ctr_run(&[&["--rm"], options].concat(), IMAGE, &id, command).run();
    assert_ne!(output.status, 0, "{output}");
    let container = CtrContainer::named(&id);
    assert_eq!(container.listed(), None);
    output
}

#[test]
fn commands_that_cannot_be_executed() {
    check(|| {
        let output = refused(&[], &["/no/such/program"]);
        assert!(output.errors().contains("exec: \"/no/such/program\""), "{output}");
        let output = refused(&[], &["/etc/passwd"]);
        assert!(output.errors().contains("permission denied"), "{output}");
    });
}

#[test]
fn a_source_that_is_not_there() {
    check(|| {
        let output = refused(&["--mount", "type=bind,src=/no/such,dst=/x,options=rbind:rw"], &["true"]);
        assert!(output.errors().contains("/no/such"), "{output}");
    });
}

#[test]
fn the_network_of_the_host() {
    vm_only!();
    check(|| {
        let output = refused(&["--net-host"], &["true"]);
        assert!(output.errors().contains("cannot use the host's network"), "{output}");
    });
}

#[test]
fn a_checkpoint() {
    vm_only!();
    check(|| {
        let container = CtrContainer::idle(&[]);
        let output = container.task(&["checkpoint"]).run();
        assert!(output.status != 0 && output.errors().contains("checkpoint"), "{output}");
        assert_eq!(container.status(), "RUNNING");
    });
}

#[test]
fn a_container_that_does_not_exist() {
    check(|| {
        for arguments in [["task", "kill"], ["task", "pause"], ["task", "metrics"]] {
            let output = ctr(&[&arguments[..], &["no-such-container"]].concat()).run();
            assert!(output.status != 0 && output.errors().contains("not found"), "{output}");
        }
        assert_eq!(sh(&[], "echo still").ok(), "still");
    });
}
