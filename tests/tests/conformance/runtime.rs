//! runtime.md: state, lifecycle and operations.

use std::fs;

use pouch_tests::bundle::unique_id;
use pouch_tests::processes::runs;
use pouch_tests::{Bundle, Container, Invocation, Leftovers, has_vm};
use serde_json::{Value, json};

use crate::requirements::{Section, not_runc};

const DOCUMENT: &str = "runtime.md";

/// `create` of a bundle under a name of one's own.
fn create(bundle: &Bundle, id: &str) -> pouch_tests::Output {
    bundle.write();
    let path = bundle.path().to_str().unwrap();
    Invocation::new(["create", "--bundle", path, id]).leaves_something_behind().run()
}

fn sleeper() -> Bundle {
    Bundle::busybox().args(["sleep", "1000"])
}

#[track_caller]
fn end(container: &Container) {
    let pid = container.pid();
    container.kill("KILL");
    container.reap(pid);
    container.await_status("stopped");
}

/// runtime.md, "State": what the state of a container has, and how it looks as JSON.
#[test]
fn state() {
    let mut section = Section::new(DOCUMENT, "State");
    let annotations = json!({"org.example.a": "1", "org.example.empty": ""});
    let container = sleeper().set("/annotations", annotations.clone()).create();
    let (created, pid) = (container.state(), container.pid());
    container.start();
    let running = container.state();
    end(&container);
    let stopped = container.state();
    let all = [&created, &running, &stopped];
    section.must("the state has ociVersion, a version of the specification", || {
        for state in all {
            let version = state["ociVersion"].as_str().unwrap();
            assert_eq!(version.split('.').count(), 3, "{state}");
        }
    });
    section.must("the state has the container's id", || {
        all.iter().for_each(|state| assert_eq!(state["id"], json!(container.id)));
    });
    section.must("status is created, running and stopped as the container goes on", || {
        assert_eq!(all.map(|state| state["status"].as_str().unwrap()), ["created", "running", "stopped"]);
    });
    section.must("pid is the container's process as the host sees it, while there is one", || {
        assert_eq!((&created["pid"], &running["pid"]), (&json!(pid), &json!(pid)));
        assert!(pid > 1 && !runs(pid));
    });
    section.must("bundle is the absolute path of the bundle", || {
        all.iter().for_each(|state| assert_eq!(state["bundle"], json!(container.bundle.path())));
    });
    section.must("annotations are those of the configuration", || {
        all.iter().for_each(|state| assert_eq!(state["annotations"], annotations));
    });
    section.must("a status beyond those of the specification stands for a state beyond them", || {
        let container = sleeper().start();
        container.operation(&["pause"]).ok();
        assert!(!["creating", "created", "running", "stopped"].contains(&container.status().as_str()));
        container.operation(&["resume"]).ok();
        assert_eq!(container.status(), "running");
    });
}

/// runtime.md, "Lifecycle": what happens between `create` and `delete`, but for the hooks.
#[test]
fn lifecycle() {
    let mut section = Section::new(DOCUMENT, "Lifecycle");
    let container = Bundle::busybox().sh("echo of the first configuration > /ran; sleep 1000").create();
    let ran = container.bundle.rootfs().join("ran");
    section.must("the environment is made by create, and the program is not run", || {
        assert_eq!(container.status(), "created");
        std::thread::sleep(std::time::Duration::from_secs(1));
        assert!(!ran.exists());
    });
    section.must("changes of config.json after create do not affect the container", || {
        let mut changed = container.bundle.spec.clone();
        changed["process"]["args"] = json!(["touch", "/changed"]);
        fs::write(container.file("config.json"), changed.to_string()).unwrap();
        container.start();
        pouch_tests::eventually("the program ran", || ran.exists());
        assert!(!container.bundle.rootfs().join("changed").exists());
    });
    section.must("who created a container can use all operations on it", || {
        assert_eq!(container.status(), "running");
        end(&container);
        container.delete();
        container.operation(&["state"]).fails_naming(&[]);
    });
    section.must("what cannot be made as config.json asks is an error", || {
        let bundle = sleeper().mount("/data", "bind", "/no/such/source", &["bind"]);
        create(&bundle, &unique_id()).fails_naming(&[]);
    });
}

/// runtime.md, "Errors": an operation that fails leaves things as they were.
#[test]
fn nothing_left_of_errors() {
    let mut section = Section::new(DOCUMENT, "Errors");
    // The folder of all states stays once it is made.
    Bundle::busybox().args(["true"]).run().ok();
    section.must("a create that fails leaves nothing behind", || {
        for bundle in [
            sleeper().mount("/data", "bind", "/no/such/source", &["bind"]),
            Bundle::busybox().args(["/no/such/program"]),
            sleeper().set("/linux/namespaces", json!([{"type": "mount"}, {"type": "nonsense"}])),
        ] {
            let before = Leftovers::picture();
            let id = unique_id();
            create(&bundle, &id).fails_naming(&[]);
            Invocation::new(["state", &id]).run().fails_naming(&[]);
            before.check();
        }
    });
    section.must("a start, kill, delete or exec that fails leaves the container as it was", || {
        let container = sleeper().start();
        let before = container.state();
        container.operation(&["start"]).fails_naming(&[]);
        container.operation(&["delete"]).fails_naming(&[]);
        container.invocation(&["kill", &container.id, "NOSUCH"]).run().fails_naming(&[]);
        container.exec(&["/no/such/program"]).fails_naming(&[]);
        assert_eq!(container.state(), before);
        assert_eq!(container.sh("echo alive"), "alive");
    });
}

/// runtime.md, "Query State".
#[test]
fn query_state() {
    let mut section = Section::new(DOCUMENT, "Query State");
    section.must("state without an ID is an error", || {
        assert_ne!(Invocation::new(["state"]).run().status, 0);
    });
    section.must("state of a container that does not exist is an error", || {
        Invocation::new(["state", &unique_id()]).run().fails_naming(&[]);
    });
    section.must("state returns the state of the container", || {
        let container = sleeper().create();
        assert_eq!(container.state()["id"], json!(container.id));
    });
}

/// runtime.md, "Create".
#[test]
fn create_operation() {
    let mut section = Section::new(DOCUMENT, "Create");
    section.must("create without an ID is an error", || {
        let bundle = sleeper();
        bundle.write();
        let path = bundle.path().to_str().unwrap();
        assert_ne!(Invocation::new(["create", "--bundle", path]).run().status, 0);
    });
    section.must("create without a bundle is an error", || {
        let empty = tempfile::tempdir().unwrap();
        let id = unique_id();
        assert_ne!(Invocation::new(["create", &id]).current_dir(empty.path()).run().status, 0);
        Invocation::new(["create", "--bundle", "/no/such/bundle", &id]).run().fails_naming(&[]);
    });
    section.must("an ID that is in use is an error, and no new container is made", || {
        let container = sleeper().start();
        let other = Bundle::busybox().args(["true"]);
        create(&other, &container.id).fails_naming(&[]);
        assert_eq!(container.state()["bundle"], json!(container.bundle.path()));
        assert_eq!(container.sh("echo alive"), "alive");
    });
    section.must("an ID that is not valid is an error, and no new container is made", || {
        let list = || Invocation::new(["list", "-q"]).run().ok();
        let before = list();
        for id in ["", "a/b", "..", "a b", "ä"] {
            assert_ne!(create(&sleeper(), id).status, 0, "{id:?}");
        }
        assert_eq!(list(), before);
    });
    section.must("a created container's program has not run", || {
        let container = Bundle::busybox().sh("echo ran").create();
        assert_eq!((container.status().as_str(), container.stdout().as_str()), ("created", ""));
    });
    section.must("two containers with IDs of their own can be at once", || {
        let (one, other) = (sleeper().create(), sleeper().create());
        assert_eq!((one.status(), other.status()), ("created".to_owned(), "created".to_owned()));
    });
}

/// runtime.md, "Start".
#[test]
fn start_operation() {
    let mut section = Section::new(DOCUMENT, "Start");
    section.must("start without an ID is an error", || {
        assert_ne!(Invocation::new(["start"]).run().status, 0);
    });
    section.must("start of a container that does not exist is an error", || {
        Invocation::new(["start", &unique_id()]).run().fails_naming(&[]);
    });
    section.must("start runs the program as process has it", || {
        let container = Bundle::busybox().sh("echo $0 $A; pwd; exit 3").set("/process/cwd", json!("/etc"));
        let container = container.set("/process/env", json!(["PATH=/bin", "A=b"])).create();
        let pid = container.pid();
        container.start();
        assert_eq!(container.reap(pid), 3);
        assert_eq!(container.stdout(), "/bin/sh b\n/etc\n");
    });
    let container = sleeper().start();
    section.must("start of a running container has no effect and is an error", || {
        let pid = container.pid();
        container.operation(&["start"]).fails_naming(&[]);
        assert_eq!((container.status().as_str(), container.pid()), ("running", pid));
    });
    section.must("start of a stopped container has no effect and is an error", || {
        end(&container);
        container.operation(&["start"]).fails_naming(&[]);
        assert_eq!(container.status(), "stopped");
    });
    section.must("without process, start (or create before it) is an error", || {
        let mut bundle = sleeper();
        bundle.spec.as_object_mut().unwrap().remove("process");
        let id = unique_id();
        if create(&bundle, &id).status == 0 {
            let start = Invocation::new(["start", &id]).run();
            Invocation::new(["delete", "--force", &id]).run();
            start.fails_naming(&[]);
        }
    });
}

/// runtime.md, "Kill".
#[test]
fn kill_operation() {
    let mut section = Section::new(DOCUMENT, "Kill");
    section.must("kill without an ID is an error", || {
        assert_ne!(Invocation::new(["kill"]).run().status, 0);
    });
    section.must("kill of a container that does not exist is an error", || {
        Invocation::new(["kill", &unique_id(), "TERM"]).run().fails_naming(&[]);
    });
    section.must("kill sends the signal that is named to the container's process", || {
        let container =
            Bundle::busybox().sh("trap 'exit 21' USR2; echo ready; while :; do sleep 0.1; done").start();
        let pid = container.pid();
        container.await_output("ready");
        container.kill("USR2");
        assert_eq!(container.reap(pid), 21);
        container.await_status("stopped");
    });
    section.must("a created container can be killed", || {
        let container = sleeper().create();
        end(&container);
    });
    section.must("kill of a stopped container has no effect and is an error", || {
        let container = sleeper().start();
        end(&container);
        container.operation(&["kill"]).fails_naming(&[]);
        assert_eq!(container.status(), "stopped");
    });
}

/// runtime.md, "Delete".
#[test]
fn nothing_left_by_delete_operation() {
    let mut section = Section::new(DOCUMENT, "Delete");
    section.must("delete without an ID is an error", || {
        assert_ne!(Invocation::new(["delete"]).run().status, 0);
    });
    section.must("delete of a container that does not exist is an error", || {
        Invocation::new(["delete", &unique_id()]).run().fails_naming(&[]);
    });
    section.must("delete of a running container has no effect and is an error", || {
        let container = sleeper().start();
        container.operation(&["delete"]).fails_naming(&[]);
        assert_eq!(container.sh("echo alive"), "alive");
    });
    section.must_but(
        "delete of a created container has no effect and is an error",
        &[not_runc("runc kills and deletes a container that was not started")],
        || {
            let container = sleeper().create();
            container.operation(&["delete"]).fails_naming(&[]);
            assert_eq!(container.status(), "created");
        },
    );
    section.must("delete deletes what create made", || {
        Bundle::busybox().args(["true"]).run().ok();
        let bundle = sleeper();
        let before = Leftovers::picture();
        let container = bundle.create();
        container.start();
        end(&container);
        container.delete();
        before.check();
    });
    section.must("delete does not delete what create did not make", || {
        let volume = tempfile::Builder::new().prefix("pouch-volume-").tempdir_in("/var/tmp").unwrap();
        fs::write(volume.path().join("file"), "kept").unwrap();
        let container = sleeper().mount("/data", "bind", volume.path(), &["rbind"]).start();
        end(&container);
        container.delete();
        assert_eq!(fs::read_to_string(volume.path().join("file")).unwrap(), "kept");
        assert!(container.file("config.json").exists() && container.bundle.rootfs().join("bin").exists());
    });
    section.must("a deleted container's ID can be used again", || {
        let container = sleeper().start();
        end(&container);
        container.delete();
        create(&container.bundle, &container.id).ok();
        assert_eq!(container.status(), "created");
    });
}

/// features.md names versions; config.md, "Specification version", says what they mean.
#[test]
fn versions() {
    let mut section = Section::new("config.md", "Specification version");
    let run = |version: Value| Bundle::busybox().sh("echo ran").set("/ociVersion", version).run();
    section.must("configurations of 1.0.0, 1.0.2, 1.1.0 and 1.2.1 are run", || {
        for version in ["1.0.0", "1.0.2", "1.1.0", "1.2.1"] {
            assert_eq!(run(json!(version)).ok(), "ran", "{version}");
        }
    });
    if has_vm() {
        section.must("configurations of 1.3.0 are run", || assert_eq!(run(json!("1.3.0")).ok(), "ran"));
    }
    let unchecked = "runc 1.1 does not look at it";
    section.must_but("a version that is no SemVer is an error", &[not_runc(unchecked)], || {
        for version in ["nonsense", "1", "1.0", ""] {
            run(json!(version)).fails_naming(&["ociVersion"]);
        }
    });
    section.must_but("a version with another major number is an error", &[not_runc(unchecked)], || {
        run(json!("2.0.0")).fails_naming(&["ociVersion"]);
    });
}
