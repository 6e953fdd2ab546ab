//! config.md: what stands at the top of the configuration.

use std::fs;

use pouch_tests::Bundle;
use serde_json::{Value, json};

use crate::requirements::{Section, not_runc};

const DOCUMENT: &str = "config.md";

/// config.md, "Root".
#[test]
fn root() {
    let mut section = Section::new(DOCUMENT, "Root");
    let script = "touch /written && echo written; cat /proc/version > /dev/null && echo read";
    let run = |bundle: Bundle| bundle.sh(script).run();
    section.must("root.path may be relative to the bundle", || {
        assert_eq!(run(Bundle::busybox()).ok(), "written\nread");
    });
    section.must("root.path may be absolute", || {
        let bundle = Bundle::busybox();
        let path = bundle.rootfs();
        assert_eq!(run(bundle.set("/root/path", json!(path))).ok(), "written\nread");
    });
    section.must("a root.path where nothing is, is an error", || {
        run(Bundle::busybox().set("/root/path", json!("nowhere"))).fails_naming(&[]);
    });
    section.must("a root that is readonly cannot be written", || {
        let output = run(Bundle::busybox().set("/root/readonly", json!(true)));
        assert_eq!(output.ok(), "read");
        assert!(output.errors().contains("Read-only file system"), "{output}");
    });
    section.must("a configuration without root is an error", || {
        let mut bundle = Bundle::busybox();
        bundle.spec.as_object_mut().unwrap().remove("root");
        run(bundle).fails_naming(&[]);
    });
}

/// config.md, "Hostname" and "Domainname".
#[test]
fn names() {
    let mut section = Section::new(DOCUMENT, "Hostname");
    let script = "hostname; cat /proc/sys/kernel/domainname";
    let bundle =
        Bundle::busybox().sh(script).set("/hostname", json!("ours")).set("/domainname", json!("example.org"));
    let output = bundle.run();
    section.must("hostname is the container's", || assert_eq!(output.ok().lines().next(), Some("ours")));
    section.must("the host keeps its own", || {
        assert_ne!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim(), "ours");
    });
    let mut section = Section::new(DOCUMENT, "Domainname");
    section.must_but("domainname is the container's", &[not_runc("runc 1.1 does not know it")], || {
        assert_eq!(output.ok().lines().nth(1), Some("example.org"));
    });
}

/// config.md, "Annotations".
#[test]
fn annotations() {
    let mut section = Section::new(DOCUMENT, "Annotations");
    let run = |annotations: Value| Bundle::busybox().sh("echo ran").set("/annotations", annotations).run();
    section.must("keys that are not known are no error, nor are empty values", || {
        assert_eq!(run(json!({"org.opencontainers.unknown": "x", "any": ""})).ok(), "ran");
    });
    section.must("values that are no strings are an error", || {
        run(json!({"a": 1})).fails_naming(&[]);
        run(json!({"a": {"b": "c"}})).fails_naming(&[]);
    });
    section.must("annotations that are no map are an error", || {
        run(json!(["a"])).fails_naming(&[]);
    });
}

/// config.md, "Extensibility".
#[test]
fn extensibility() {
    let mut section = Section::new(DOCUMENT, "Extensibility");
    section.must("properties that are not known are ignored, wherever they stand", || {
        let unknown = json!({"deep": [1, {"x": null}]});
        let mut bundle = Bundle::busybox().sh("echo ran");
        for place in ["", "/process", "/process/user", "/root", "/linux", "/linux/resources", "/mounts/0"] {
            bundle.spec.pointer_mut(place).unwrap()["org.example.unknown"] = unknown.clone();
        }
        assert_eq!(bundle.run().ok(), "ran");
    });
}

/// config.md, "Valid values".
#[test]
fn valid_values() {
    let mut section = Section::new(DOCUMENT, "Valid values");
    let refused = |pointer: &str, value: Value| {
        let output = Bundle::busybox().args(["true"]).set(pointer, value.clone()).run();
        assert_ne!(output.status, 0, "{pointer} {value}: {output}");
    };
    section.must("values of the wrong kind are an error", || {
        for (pointer, value) in [
            ("/process/args", json!("true")),
            ("/process/user/uid", json!("root")),
            ("/process/user/uid", json!(-1)),
            ("/root/readonly", json!("yes")),
            ("/mounts", json!({})),
            ("/linux/namespaces", json!("all")),
            ("/linux/resources/pids", json!({"limit": "many"})),
        ] {
            refused(pointer, value);
        }
    });
    section.must("a namespace's type that does not exist is an error", || {
        refused("/linux/namespaces", json!([{"type": "mount"}, {"type": "pid"}, {"type": "nonsense"}]));
    });
    section.must("a resource limit's type that does not exist is an error", || {
        refused("/process/rlimits", json!([{"type": "RLIMIT_NONSENSE", "soft": 1, "hard": 1}]));
    });
    section.must("a seccomp action that does not exist is an error", || {
        refused("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_NONSENSE"}));
    });
    section.must("a propagation of the root that does not exist is an error", || {
        refused("/linux/rootfsPropagation", json!("upward"));
    });
    section.must("a device's type that does not exist is an error", || {
        refused("/linux/devices", json!([{"path": "/dev/x", "type": "z", "major": 1, "minor": 3}]));
    });
    section.must("a kernel setting that does not exist is an error", || {
        refused("/linux/sysctl", json!({"net.no_such_setting": "1"}));
    });
    section.must("a file system's type that does not exist is an error", || {
        let bundle = Bundle::busybox().args(["true"]).mount("/x", "nonsense", "none", &[]);
        assert_ne!(bundle.run().status, 0);
    });
    section.must("a configuration that is no JSON is an error", || {
        let bundle = Bundle::busybox();
        fs::write(bundle.path().join("config.json"), "{").unwrap();
        let words = ["run", "--bundle", bundle.path().to_str().unwrap(), "no-json"];
        assert_ne!(pouch_tests::Invocation::new(words).run().status, 0);
    });
}
