//! Operations that look at containers or hold them: list, ps, pause, resume, spec, features, check,
//! and the options that all operations have.

use std::fs;

use pouch_tests::bundle::unique_id;
use pouch_tests::{Bundle, Container, Invocation, eventually, has_vm, vm_only};
use serde_json::Value;

fn sleeper() -> Container {
    Bundle::debian().args(["sleep", "1000"]).start()
}

#[test]
fn list_shows_the_containers() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().to_str().unwrap();
    let list = |options: &[&str]| Invocation::new([&["--root", root, "list"], options].concat()).run().ok();
    assert_eq!(list(&["-q"]), "");
    let none = list(&["-f", "json"]);
    assert!(none == "[]" || none == "null", "{none}");
    let running = Container::create_with(Bundle::debian().args(["sleep", "1000"]), &["--root", root], &[]);
    running.start();
    let created = Container::create_with(Bundle::debian().args(["true"]), &["--root", root], &[]);
    let mut ids = [running.id.as_str(), created.id.as_str()];
    ids.sort_unstable();
    assert_eq!(list(&["-q"]).lines().collect::<Vec<_>>(), ids);
    let all: Vec<Value> = serde_json::from_str(&list(&["--format", "json"])).unwrap();
    assert_eq!(all.len(), 2);
    for container in [&running, &created] {
        let entry = all.iter().find(|entry| entry["id"] == container.id.as_str()).unwrap();
        assert_eq!(entry["status"], container.state()["status"]);
        assert_eq!(entry["pid"], container.state()["pid"]);
        assert_eq!(entry["bundle"], container.state()["bundle"]);
    }
    let table = list(&[]);
    assert!(table.starts_with("ID") && table.contains("running") && table.contains("created"), "{table}");
}

#[test]
fn ps_shows_the_processes_of_the_container_only() {
    let container = Bundle::debian().sh("sleep 1001 & sleep 1002 & wait").start();
    let mut table = String::new();
    eventually("both children run", || {
        table = container.operation(&["ps"]).ok();
        // A header, the shell and its children.
        table.lines().count() == 4
    });
    assert!(table.contains("sleep 1001") && table.contains("sleep 1002"), "{table}");
    assert!(!table.contains("dockerd") && !table.contains("agent"), "{table}");
    // Engines look the numbers up among the host's processes, where those of a guest are not.
    let pids: Vec<i32> = serde_json::from_str(&container.operation(&["ps", "-f", "json"]).ok()).unwrap();
    assert_eq!(pids.len(), if has_vm() { 1 } else { 3 });
    assert!(pids.contains(&container.pid()));
}

#[test]
fn paused_processes_stand_still() {
    let container = Bundle::debian().sh("while :; do echo tick; sleep 0.05; done").start();
    container.await_output("tick\ntick");
    container.operation(&["pause"]).ok();
    assert_eq!(container.status(), "paused");
    // What was on its way has time to arrive.
    let mut before = 0;
    eventually("no more output arrives", || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let now = container.stdout().len();
        std::mem::replace(&mut before, now) == now
    });
    container.exec(&["true"]).fails_naming(&["paused"]);
    container.operation(&["pause"]).fails_naming(&[]);
    container.operation(&["resume"]).ok();
    assert_eq!(container.status(), "running");
    eventually("it goes on", || container.stdout().len() > before);
    container.operation(&["resume"]).fails_naming(&[]);
}

#[test]
fn a_paused_container_can_be_killed() {
    let container = sleeper();
    container.operation(&["pause"]).ok();
    container.delete_by_force();
    container.operation(&["state"]).fails_naming(&["does not exist"]);
}

#[test]
fn spec_writes_a_bundle_that_runs() {
    let folder = tempfile::tempdir().unwrap();
    let spec = || Invocation::new(["spec"]).current_dir(folder.path()).run();
    spec().ok();
    let text = fs::read_to_string(folder.path().join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert!(config["ociVersion"].is_string() && config["process"]["args"].is_array(), "{text}");
    spec().fails_naming(&["exist"]);
    assert_eq!(fs::read_to_string(folder.path().join("config.json")).unwrap(), text, "it is not overwritten");
    let elsewhere = tempfile::tempdir().unwrap();
    Invocation::new(["spec", "--bundle", elsewhere.path().to_str().unwrap()]).run().ok();
    assert!(elsewhere.path().join("config.json").exists());
}

#[test]
fn features_tell_what_can_be_asked() {
    let features: Value = serde_json::from_str(&Invocation::new(["features"]).run().ok()).unwrap();
    assert!(features["ociVersionMin"].is_string() && features["ociVersionMax"].is_string(), "{features}");
    let namespaces = features["linux"]["namespaces"].as_array().unwrap();
    for name in ["pid", "network", "mount", "uts", "ipc", "cgroup"] {
        assert!(namespaces.iter().any(|found| found == name), "{name} is not in {namespaces:?}");
    }
    for option in ["bind", "ro", "rbind", "nosuid"] {
        let options = features["mountOptions"].as_array().unwrap();
        assert!(options.iter().any(|found| found == option), "{option} is not in {options:?}");
    }
}

#[test]
fn check_boots_a_guest_and_says_so() {
    vm_only!();
    let output = Invocation::new(["check"]).run();
    assert!(output.ok().contains("can run containers"), "{output}");
    assert!(Invocation::new(["check", "--quiet"]).run().ok().is_empty());
}

#[test]
fn check_tells_where_the_time_goes() {
    vm_only!();
    let text = Invocation::new(["check", "--format", "json"]).run().ok();
    let report: Value = serde_json::from_str(&text).unwrap();
    let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name}: {text}"));
    assert!(number("guest_kernel_ms") > 0.0 && number("agent_ms") > 0.0, "{text}");
    assert!(number("answer_ms") > number("guest_kernel_ms") + number("agent_ms"), "{text}");
    let mib = number("guest_memory_bytes") / f64::from(1 << 20);
    assert!((8.0..64.0).contains(&mib), "a guest takes some memory, and not all: {text}");
}

#[test]
fn version_and_help() {
    for option in ["--version", "-v"] {
        let version = Invocation::new([option]).run().ok();
        // Engines take the first line apart at the word "version".
        let (name, number) = version.lines().next().unwrap().split_once(" version ").unwrap();
        assert_eq!(name, if has_vm() { "pouch-vm" } else { "runc" });
        assert!(number.starts_with(|c: char| c.is_ascii_digit()), "{version}");
        assert!(version.contains("\nspec: 1."), "{version}");
    }
    let help = Invocation::new(["--help"]).run().ok();
    for operation in ["create", "start", "state", "kill", "delete", "run", "exec", "list", "spec"] {
        assert!(help.contains(operation), "{operation} is not in {help}");
    }
}

#[test]
fn errors_are_logged_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log.json");
    let id = unique_id();
    let arguments = ["--log", log.to_str().unwrap(), "--log-format", "json", "state", &id];
    Invocation::new(arguments).run().fails_naming(&[]);
    let text = fs::read_to_string(&log).unwrap();
    let entries: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Engines show the last entry of level "error" to their users.
    let error = entries.iter().rfind(|entry| entry["level"] == "error").unwrap();
    assert!(error["msg"].as_str().unwrap().contains("does not exist"), "{text}");
    assert!(error["time"].as_str().unwrap().contains('T'), "{text}");
}

#[test]
fn errors_are_logged_as_text() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    Invocation::new(["--log", log.to_str().unwrap(), "state", &unique_id()]).run().fails_naming(&[]);
    assert!(fs::read_to_string(&log).unwrap().contains("does not exist"));
}

#[test]
fn an_error_at_create_is_in_the_log_too() {
    let bundle = Bundle::debian().args(["/no/such/program"]);
    let log = bundle.path().join("log.json");
    bundle.write();
    let path = bundle.path().to_str().unwrap();
    let id = unique_id();
    let arguments = ["--log", log.to_str().unwrap(), "--log-format", "json", "create", "--bundle", path, &id];
    Invocation::new(arguments).run().fails_naming(&["/no/such/program"]);
    assert!(fs::read_to_string(&log).unwrap().contains("/no/such/program"));
}
