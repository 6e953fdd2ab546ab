//! config.md, "POSIX-platform Hooks", and the steps of runtime.md, "Lifecycle", that run them.

use std::fs;
use std::path::{Path, PathBuf};

use pouch_tests::bundle::unique_id;
use pouch_tests::{Bundle, Container, Invocation, Output};
use serde_json::{Value, json};

use crate::requirements::{Section, Unmet, not_pouch, not_runc};

const EARLY_POSTSTART: Unmet = not_runc("runc 1.1 runs poststart in create");

/// A hook that appends a line of a shell's words to the file `notes` of `folder`.
fn note(folder: &Path, words: &str) -> Value {
    let script = format!("state=$(cat | tr -d ' \\n'); echo {words} >> $0/notes");
    json!({"path": "/bin/sh", "args": [folder, "-c", script], "env": ["PATH=/usr/bin:/bin"]})
}

fn notes(folder: &Path) -> Vec<String> {
    let text = fs::read_to_string(folder.join("notes")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn end(container: &Container) {
    let pid = container.pid();
    container.kill("KILL");
    container.reap(pid);
    container.await_status("stopped");
}

const ON_HOST: [&str; 5] = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];

/// config.md, "POSIX-platform Hooks": when hooks are called, in which order, with what.
#[test]
fn order_and_state() {
    let mut section = Section::new("config.md", "POSIX-platform Hooks");
    let bundle = Bundle::busybox().sh("echo program >> /trace; sleep 1000");
    let folder = bundle.path().to_owned();
    let two = |point: &str| {
        json!([note(&folder, &format!("{point} 1 $state")), note(&folder, &format!("{point} 2"))])
    };
    let mut hooks: serde_json::Map<String, Value> =
        ON_HOST.iter().map(|point| ((*point).to_owned(), two(point))).collect();
    let inside = json!({"path": "/bin/sh", "args": ["sh", "-c", "cat > /state; echo hook >> /trace"]});
    hooks.insert("startContainer".to_owned(), json!([inside]));
    let container = bundle.set("/hooks", Value::Object(hooks)).create();
    let at_create = notes(&folder);
    let trace = container.bundle.rootfs().join("trace");
    let trace_at_create = trace.exists();
    container.start();
    let at_start = notes(&folder);
    pouch_tests::eventually("the program runs", || {
        fs::read_to_string(&trace).is_ok_and(|text| text.contains("program"))
    });
    end(&container);
    let before_delete = notes(&folder);
    container.delete();
    let after_delete = notes(&folder);

    let points = |notes: &[String]| -> Vec<String> {
        notes.iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
    };
    let index = |point: &str| points(&after_delete).iter().position(|found| found == point).unwrap();
    section.must("hooks of a kind are called in the listed order", || {
        for point in ON_HOST {
            assert!(index(&format!("{point} 1")) < index(&format!("{point} 2")), "{after_delete:?}");
        }
    });
    section.must("the container's state is passed to hooks over standard input", || {
        for line in after_delete.iter().filter(|line| line.split(' ').nth(1) == Some("1")) {
            let state: Value = serde_json::from_str(line.splitn(3, ' ').nth(2).unwrap()).unwrap();
            assert_eq!(state["id"], json!(container.id), "{line}");
            assert_eq!(state["bundle"], json!(folder), "{line}");
        }
        let inside = fs::read_to_string(container.bundle.rootfs().join("state")).unwrap();
        let state: Value = serde_json::from_str(&inside).unwrap();
        assert_eq!(state["id"], json!(container.id));
    });
    for point in ["prestart", "createRuntime", "createContainer"] {
        let name = match point {
            "prestart" => "prestart hooks are called in create",
            "createRuntime" => "createRuntime hooks are called in create",
            _ => "createContainer hooks are called in create",
        };
        section.must(name, || assert!(points(&at_create).contains(&format!("{point} 1")), "{at_create:?}"));
    }
    section.must("prestart comes before createRuntime, and createContainer after it", || {
        assert!(index("prestart 2") < index("createRuntime 1"));
        assert!(index("createRuntime 2") < index("createContainer 1"));
    });
    section.must("startContainer hooks are called in start, before the program", || {
        assert!(!trace_at_create);
        assert_eq!(fs::read_to_string(&trace).unwrap(), "hook\nprogram\n");
    });
    section.must_but(
        "poststart hooks are called in start, after the program, and not in create",
        &[EARLY_POSTSTART],
        || {
            assert!(!points(&at_create).contains(&"poststart 1".to_owned()));
            assert!(points(&at_start).contains(&"poststart 2".to_owned()));
        },
    );
    section.must("poststop hooks are called in delete", || {
        assert!(!points(&before_delete).contains(&"poststop 1".to_owned()));
        assert!(points(&after_delete).contains(&"poststop 2".to_owned()));
    });
}

/// config.md, "POSIX-platform Hooks": in which namespaces, and from which root, hooks are run.
#[test]
fn namespaces() {
    let mut section = Section::new("config.md", "POSIX-platform Hooks");
    let bundle = Bundle::busybox().args(["sleep", "1000"]);
    let folder = bundle.path().to_owned();
    let look = "$(readlink /proc/self/ns/net) $(readlink /proc/self/ns/mnt)";
    let hooks =
        ON_HOST.iter().map(|point| ((*point).to_owned(), json!([note(&folder, &format!("{point} {look}"))])));
    let mut hooks: serde_json::Map<String, Value> = hooks.collect();
    let only_inside = json!([{"path": "/bin/busybox", "args": ["hostname", "-F", "/dev/null"]}]);
    hooks.insert("startContainer".to_owned(), only_inside);
    let container = bundle.set("/hooks", Value::Object(hooks)).create();
    let of = |kind: &str| {
        fs::read_link(format!("/proc/{}/ns/{kind}", container.pid())).unwrap().display().to_string()
    };
    let (network, started) = (of("net"), container.operation(&["start"]));
    end(&container);
    container.delete();
    let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    let of = |point: &str| {
        let all = notes(&folder);
        let line = all
            .iter()
            .find(|line| line.starts_with(&format!("{point} ")))
            .unwrap_or_else(|| panic!("{all:?}"));
        line.split(' ').skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    for (point, name) in [
        ("prestart", "prestart hooks are run in the runtime's namespaces"),
        ("createRuntime", "createRuntime hooks are run in the runtime's namespaces"),
        ("poststart", "poststart hooks are run in the runtime's namespaces"),
        ("poststop", "poststop hooks are run in the runtime's namespaces"),
    ] {
        section.must(name, || assert_eq!(of(point), [own("net"), own("mnt")]));
    }
    section.must("createContainer hooks are run in the container's network namespace", || {
        assert_eq!(of("createContainer")[0], network);
    });
    let guests = [not_pouch("its mounts are in the guest; the hook, a program of the host, sees the host's")];
    section.must_but("createContainer hooks are run in the container's mount namespace", &guests, || {
        assert_ne!(of("createContainer")[1], own("mnt"));
    });
    section.must("startContainer hooks are found and run inside the container", || drop(started.ok()));
}

fn create(bundle: &Bundle, id: &str) -> Output {
    bundle.write();
    let path = bundle.path().to_str().unwrap();
    Invocation::new(["create", "--bundle", path, id]).leaves_something_behind().run()
}

/// A bundle whose hooks of `point` are a failing one and one after it, with a note in poststop.
fn failing(point: &str) -> (Bundle, PathBuf) {
    let bundle = Bundle::busybox().sh("touch /ran; sleep 1000");
    let folder = bundle.path().to_owned();
    let fail = json!({"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]});
    let mut hooks = json!({"poststop": [note(&folder, "poststop")]});
    hooks[point] = json!([fail, note(&folder, "after")]);
    (bundle.set("/hooks", hooks), folder)
}

/// runtime.md, "Lifecycle": what becomes of a container whose hook fails.
#[test]
fn failures() {
    let mut section = Section::new("runtime.md", "Lifecycle");
    for (point, error, stop) in [
        (
            "prestart",
            "a prestart hook that fails is an error of create, and the container is gone",
            "poststop hooks are run when a prestart hook has failed",
        ),
        (
            "createRuntime",
            "a createRuntime hook that fails is an error of create, and the container is gone",
            "poststop hooks are run when a createRuntime hook has failed",
        ),
        (
            "createContainer",
            "a createContainer hook that fails is an error of create, and the container is gone",
            "poststop hooks are run when a createContainer hook has failed",
        ),
    ] {
        let (bundle, folder) = failing(point);
        let id = unique_id();
        let output = create(&bundle, &id);
        section.must(error, || {
            output.fails_naming(&[]);
            Invocation::new(["state", &id]).run().fails_naming(&[]);
            assert!(!notes(&folder).contains(&"after".to_owned()));
        });
        section.must(stop, || assert_eq!(notes(&folder), ["poststop"]));
    }
    start_failures(&mut section);
    stop_failures(&mut section);
}

fn start_failures(section: &mut Section) {
    let (bundle, _) = failing("startContainer");
    let container = bundle.create();
    let output = container.operation(&["start"]);
    section.must("a startContainer hook that fails stops the container, and the program is not run", || {
        pouch_tests::eventually("it is stopped or gone", || {
            let state = container.operation(&["state"]);
            state.status != 0 || state.text().contains("\"stopped\"")
        });
        assert!(!container.bundle.rootfs().join("ran").exists());
    });
    let tells = [not_runc("start of runc 1.1 does not wait for it")];
    section.must_but("a startContainer hook that fails is an error of start", &tells, || {
        output.fails_naming(&[]);
    });
    let (bundle, folder) = failing("poststart");
    let id = unique_id();
    let create = create(&bundle, &id);
    let start = Invocation::new(["start", &id]).run();
    section.must_but(
        "a poststart hook that fails is an error of start, and the container is gone (1.3)",
        &[EARLY_POSTSTART],
        || {
            create.ok();
            start.fails_naming(&[]);
            Invocation::new(["state", &id]).run().fails_naming(&[]);
            assert_eq!(notes(&folder), ["poststop"]);
        },
    );
    Invocation::new(["delete", "--force", &id]).run();
}

fn stop_failures(section: &mut Section) {
    let (bundle, folder) = failing("startContainer");
    let fail = json!({"path": "/bin/sh", "args": ["sh", "-c", "exit 3"]});
    let hooks = json!({"poststop": [fail, note(&folder, "after")]});
    let container = bundle.set("/hooks", hooks).create();
    let log = container.file("log");
    end(&container);
    let delete = Invocation::new(["--log", log.to_str().unwrap(), "delete", &container.id]).run();
    section.must("a poststop hook that fails does not keep the container from being deleted", || {
        container.operation(&["state"]).fails_naming(&[]);
    });
    let stops = [not_runc("runc 1.1 ends with the first that fails, and with an error")];
    section.must_but("a poststop hook that fails is a warning, and the others are run", &stops, || {
        delete.ok();
        assert_eq!(notes(&folder), ["after"]);
        assert!(fs::read_to_string(&log).unwrap().contains("warning"));
    });
}

/// config.md, "POSIX-platform Hooks": what a hook may be.
#[test]
fn form() {
    let mut section = Section::new("config.md", "POSIX-platform Hooks");
    let run =
        |hook: Value| Bundle::busybox().args(["true"]).set("/hooks", json!({"createRuntime": [hook]})).run();
    section.must("a hook's args and env are what its program gets", || {
        let bundle = Bundle::busybox().args(["true"]);
        let folder = bundle.path().to_owned();
        let script = "echo $0 $1 $A > $B/got";
        let hook = json!({
            "path": "/bin/sh", "args": ["sh", "-c", script, "zero", "one"],
            "env": ["A=a", format!("B={}", folder.display())],
        });
        let bundle = bundle.set("/hooks", json!({"createRuntime": [hook]}));
        bundle.run().ok();
        assert_eq!(fs::read_to_string(folder.join("got")).unwrap(), "zero one a\n");
    });
    section.must("a hook that takes longer than its timeout is aborted", || {
        run(json!({"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1})).fails_naming(&[]);
    });
    section.must("a hook's path that is not absolute is an error", || {
        run(json!({"path": "true"})).fails_naming(&[]);
    });
    section.must("a timeout that is not greater than 0 is an error", || {
        run(json!({"path": "/bin/true", "timeout": 0})).fails_naming(&[]);
    });
}
