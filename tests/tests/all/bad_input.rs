//! What users and engines get wrong: a clear error that names it, and nothing left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use pouch_tests::bundle::unique_id;
use pouch_tests::{Bundle, Invocation, Leftovers, has_vm, vm_only};
use serde_json::{Value, json};

/// Creates and runs the bundle; both must fail, name the words, and leave nothing.
#[track_caller]
fn refused(bundle: &Bundle, words: &[&str]) {
    bundle.write();
    refused_at(bundle.path().to_str().unwrap(), words);
}

#[track_caller]
fn refused_at(path: &str, words: &[&str]) {
    // The folder of all states stays once it is made.
    Invocation::new(["list"]).run();
    let _ = fs::create_dir("/run/pouch-vm");
    for operation in ["create", "run"] {
        let before = Leftovers::picture();
        let id = unique_id();
        Invocation::new([operation, "--bundle", path, &id]).run().fails_naming(words);
        Invocation::new(["state", &id]).run().fails_naming(&["does not exist"]);
        before.check();
    }
}

#[test]
fn nothing_left_of_a_bundle_that_is_missing() {
    refused_at("/no/such/bundle", &["/no/such/bundle"]);
    let empty = tempfile::tempdir().unwrap();
    refused_at(empty.path().to_str().unwrap(), &["config.json"]);
}

#[test]
fn nothing_left_of_a_bundle_that_cannot_be_read() {
    // Root reads everything, except for what is not a file.
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("config.json")).unwrap();
    refused_at(folder.path().to_str().unwrap(), &["config.json"]);
}

#[test]
fn nothing_left_of_a_configuration_that_is_no_json() {
    let folder = tempfile::tempdir().unwrap();
    for text in ["", "{", "no json", "[]", "{\"ociVersion\": 1}", "\0\0\0"] {
        fs::write(folder.path().join("config.json"), text).unwrap();
        refused_at(folder.path().to_str().unwrap(), if has_vm() { &["config.json"] } else { &[] });
    }
}

#[test]
fn nothing_left_of_a_configuration_that_lacks_something() {
    vm_only!();
    for (pointer, words) in [
        ("/process", &["process"][..]),
        ("/root", &["root"]),
        ("/process/args", &["args"]),
        ("/process/cwd", &["cwd"]),
        ("/ociVersion", &["ociVersion"]),
    ] {
        let mut bundle = Bundle::busybox();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = bundle.spec.pointer_mut(parent).and_then(Value::as_object_mut).unwrap();
        parent.remove(name);
        refused(&bundle, words);
    }
}

#[test]
fn nothing_left_of_a_wrong_version() {
    vm_only!();
    for version in ["2.0.0", "0.9.0", "one", ""] {
        let bundle = Bundle::busybox().set("/ociVersion", json!(version));
        refused(&bundle, &["ociVersion"]);
    }
}

#[test]
fn nothing_left_of_a_root_that_is_missing() {
    refused(&Bundle::without_root(), &["rootfs"]);
    let bundle = Bundle::without_root().set("/root/path", json!("/no/such/root"));
    refused(&bundle, &["/no/such/root"]);
}

#[test]
fn nothing_left_of_a_root_that_is_no_root() {
    vm_only!();
    let bundle = Bundle::without_root();
    fs::write(bundle.path().join("rootfs"), "neither a folder nor an image").unwrap();
    refused(&bundle, &["rootfs"]);
}

#[test]
fn nothing_left_of_a_command_that_is_not_found() {
    for (command, status, words) in [
        ("no-such-program", 127, &["no-such-program", "executable file not found"][..]),
        ("/no/such/program", 127, &["/no/such/program", "no such file or directory"]),
        ("/etc/passwd", 126, &["/etc/passwd", "permission denied"]),
        ("/etc", 126, &["/etc"]),
    ] {
        let bundle = Bundle::busybox().args([command]);
        fs::write(bundle.rootfs().join("etc/passwd"), "no program\n").unwrap();
        let mode = fs::Permissions::from_mode(0o644);
        fs::set_permissions(bundle.rootfs().join("etc/passwd"), mode).unwrap();
        refused(&bundle, words);
        if has_vm() {
            bundle.run().fails(status);
        }
    }
}

#[test]
fn nothing_left_of_a_folder_or_mount_that_is_missing() {
    vm_only!();
    let bundle = Bundle::busybox().set("/process/cwd", json!("relative"));
    refused(&bundle, &["cwd"]);
    let bundle = Bundle::busybox().mount("/data", "bind", "/no/such/source", &["rbind"]);
    refused(&bundle, &["/no/such/source"]);
    let bundle = Bundle::busybox().mount("/data", "nosuchfs", "none", &[]);
    refused(&bundle, &["nosuchfs"]);
}

/// What no VM can give must be an error that names the field, never something left out.
#[test]
fn nothing_left_of_what_cannot_be_done() {
    vm_only!();
    for (pointer, value, words) in [
        ("/process/rlimits", json!([{"type": "RLIMIT_NO_SUCH", "soft": 1, "hard": 1}]), &["RLIMIT_NO_SUCH"]),
        ("/linux/namespaces", json!([{"type": "no-such"}]), &["no-such"]),
        ("/linux/sysctl", json!({"kernel.no_such": "1"}), &["no_such"]),
        ("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NO_SUCH"}), &["SCMP_ACT_NO_SUCH"]),
        ("/linux/resources/memory", json!({"limit": 100_000}), &["memory"]),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "q", "major": 1, "minor": 1}]),
            &["config.json"],
        ),
    ] {
        let bundle = Bundle::busybox().args(["true"]).set(pointer, value);
        refused(&bundle, words);
    }
}

#[test]
fn nothing_left_of_an_id_that_cannot_be() {
    let long = "x".repeat(1100);
    let bundle = Bundle::busybox().args(["true"]);
    bundle.write();
    let path = bundle.path().to_str().unwrap();
    for id in ["a/b", "..", "../../etc", "/absolute", "", ".", "with space", "new\nline", "ünïcode", &long]
    {
        for operation in [&["create", "--bundle", path][..], &["run", "--bundle", path]] {
            let before = Leftovers::picture();
            let output = Invocation::new([operation, &[id]].concat()).run();
            output.fails_naming(if has_vm() { &["id"] } else { &[] });
            assert!(output.errors().len() < 2000, "{output}");
            before.check();
        }
        for operation in ["start", "state", "kill", "delete", "exec", "ps", "pause", "resume"] {
            let mut arguments = vec![operation, id];
            if operation == "exec" {
                arguments.push("true");
            }
            Invocation::new(arguments).run().fails_naming(&[]);
        }
    }
    Invocation::new(["delete", "--force", ".."]).run().fails_naming(&[]);
}

#[test]
fn nothing_left_of_operations_without_a_container() {
    let before = Leftovers::picture();
    for operation in ["start", "state", "kill", "delete", "ps", "pause", "resume"] {
        Invocation::new([operation, "no-such"]).run().fails_naming(&["does not exist"]);
    }
    Invocation::new(["exec", "no-such", "true"]).run().fails_naming(&["does not exist"]);
    before.check();
}

#[test]
fn nothing_left_of_commands_that_make_no_sense() {
    let before = Leftovers::picture();
    for arguments in [
        &["no-such-operation"][..],
        &["create"],
        &["--no-such-option"],
        &["run", "--no-such-option", "x"],
        &["kill"],
    ] {
        Invocation::new(arguments).run().fails_naming(&[]);
    }
    before.check();
}

#[test]
fn unknown_signals_are_refused() {
    let container = Bundle::debian().args(["sleep", "1000"]).start();
    for signal in ["NOSUCH", "SIGNOSUCH", "65", "-1", "", "9x"] {
        if !has_vm() && ["65", ""].contains(&signal) {
            continue;
        }
        let output = container.invocation(&["kill", "--", &container.id, signal]).run();
        output.fails_naming(&["signal"]);
    }
    assert_eq!(container.sh("echo unharmed"), "unharmed");
    let pid = container.pid();
    container.kill("KILL");
    container.reap(pid);
    container.await_status("stopped");
    container.operation(&["kill"]).fails_naming(&["container not running"]);
}
