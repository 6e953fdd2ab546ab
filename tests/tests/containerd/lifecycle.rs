//! Starting, pausing, looking at and ending containers.

use pouch_tests::containerd::{CtrContainer, IMAGE, ctr, ctr_run, sh};
use pouch_tests::{Invocation, bundle, processes, vm_only};

use crate::check;

#[test]
fn output_and_status_are_those_of_the_process() {
    check(|| {
        let output = sh(&[], "echo out; echo err >&2; exit 5");
        assert_eq!((output.status, output.text()), (5, "out".to_owned()), "{output}");
        assert!(output.errors().contains("err"), "{output}");
    });
}

#[test]
fn what_a_container_sees_is_what_containerd_asked_for() {
    check(|| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "shared\n").unwrap();
        let mount = format!("type=bind,src={},dst=/shared,options=rbind:rw", folder.path().display());
        let options = ["--env", "WORD=hello", "--cwd", "/usr", "--mount", &mount, "--user", "1:2"];
        let output = sh(&options, "echo $WORD; pwd; cat /shared/file; id -u; id -g; hostname");
        let host = Invocation::of("hostname", [""; 0]).run().ok();
        assert_eq!(output.ok(), format!("hello\n/usr\nshared\n1\n2\n{host}"));
    });
}

#[test]
fn a_root_file_system_that_is_a_folder() {
    check(|| {
        let id = bundle::unique_id();
        let rootfs = "/var/lib/pouch-test/images/busybox/rootfs";
        let run = ctr_run(&["--rm", "--rootfs"], rootfs, &id, &["/bin/sh", "-c", "ls /bin/busybox"]);
        assert_eq!(run.run().ok(), "/bin/busybox");
    });
}

#[test]
fn pause_and_resume() {
    check(|| {
        let container = CtrContainer::idle(&[]);
        assert_eq!(container.status(), "RUNNING");
        container.task(&["pause"]).run().ok();
        assert_eq!(container.status(), "PAUSED");
        container.task(&["resume"]).run().ok();
        assert_eq!(container.status(), "RUNNING");
        assert!(processes::runs(container.pid()));
    });
}

#[test]
fn kill_and_remove() {
    check(|| {
        let container = CtrContainer::idle(&[]);
        let pid = container.pid();
        assert!(container.remove_task().status != 0, "it runs");
        container.task(&["kill", "--signal", "SIGTERM"]).run().ok();
        container.await_stopped();
        assert!(!processes::runs(pid));
        let again = container.task(&["kill"]).run();
        assert!(again.status != 0 && again.errors().contains("not found"), "{again}");
        // The status of the process is that of the command.
        let removed = container.remove_task();
        assert!(removed.errors().contains("exit code 7"), "{removed}");
        assert_eq!(container.listed(), None);
    });
}

#[test]
fn remove_by_force() {
    check(|| {
        let container = CtrContainer::idle(&[]);
        container.task(&["rm", "--force"]).run().ok();
        assert_eq!(container.listed(), None);
    });
}

#[test]
fn processes_and_metrics() {
    check(|| {
        let container = CtrContainer::idle(&["--memory-limit", "100000000"]);
        let listed = container.task(&["ps"]).run().ok();
        assert!(listed.contains(&container.pid().to_string()), "{listed}");
        let metrics = container.task(&["metrics"]).run().ok();
        let value = |name: &str| -> u64 {
            let line = metrics.lines().find(|line| line.starts_with(name));
            line.unwrap_or_else(|| panic!("{name}: {metrics}"))
                .split_whitespace()
                .nth(1)
                .unwrap()
                .parse()
                .unwrap()
        };
        assert!(value("pids.current") >= 1 && value("cpu.usage_usec") > 0, "{metrics}");
        assert_eq!(value("memory.usage_limit"), 100_000_000 / 4096 * 4096, "{metrics}");
        assert_eq!(value("pids.limit"), u64::MAX);
    });
}

#[test]
fn the_same_id_again() {
    check(|| {
        let container = CtrContainer::idle(&[]);
        let again = ctr_run(&["--rm"], IMAGE, &container.id, &["true"]).run();
        assert!(again.status != 0 && again.errors().contains("already exists"), "{again}");
        assert_eq!(container.status(), "RUNNING");
        let id = container.id.clone();
        drop(container);
        assert_eq!(ctr_run(&["--rm"], IMAGE, &id, &["echo", "again"]).run().ok(), "again");
    });
}

#[test]
fn several_at_once() {
    check(|| {
        let threads: Vec<_> = (0..4)
            .map(|number| std::thread::spawn(move || sh(&[], &format!("echo {number}")).ok()))
            .collect();
        let texts: Vec<String> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(texts, ["0", "1", "2", "3"]);
    });
}

#[test]
fn the_command_line_knows_it() {
    vm_only!();
    check(|| {
        let container = CtrContainer::idle(&[]);
        let pouch = |arguments: &[&str]| Invocation::new(arguments).run().ok();
        let line = pouch(&["list"]).lines().find(|line| line.starts_with(&container.id)).unwrap().to_owned();
        assert!(line.contains("running") && line.contains(&container.pid().to_string()), "{line}");
        assert!(pouch(&["state", &container.id]).contains("\"status\": \"running\""));
        assert_eq!(pouch(&["exec", &container.id, "echo", "inside"]), "inside");
        assert!(pouch(&["ps", &container.id]).contains("sleep 1000"));
    });
}

#[test]
fn nothing_is_said_of_a_container_without_a_task() {
    check(|| {
        let id = bundle::unique_id();
        let create = ["container", "create", "--runtime", pouch_tests::containerd::runtime(), IMAGE, &id];
        ctr(&[&create[..], &["true"]].concat()).run().ok();
        let container = CtrContainer::named(&id);
        assert_eq!(container.listed(), None);
        container.task(&["start"]).run().ok();
    });
}
