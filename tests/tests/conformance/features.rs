//! features.md and features-linux.md: what `features` says must be true.

use std::path::Path;

use pouch_tests::{Bundle, Invocation, has_vm};
use serde_json::{Value, json};

use crate::requirements::Section;

const DOCUMENT: &str = "features.md";

fn features() -> Value {
    serde_json::from_str(&Invocation::new(["features"]).run().ok()).unwrap()
}

fn names<'a>(features: &'a Value, pointer: &str) -> Vec<&'a str> {
    let list = features.pointer(pointer).and_then(Value::as_array);
    let list = list.unwrap_or_else(|| panic!("no {pointer} in {features}"));
    list.iter().map(|name| name.as_str().unwrap()).collect()
}

/// features.md, "Specification version", "Hooks" and "Mount options".
#[test]
fn document() {
    let features = features();
    let mut section = Section::new(DOCUMENT, "Specification version");
    section.must("ociVersionMin and ociVersionMax are accepted as a configuration's ociVersion", || {
        for name in ["ociVersionMin", "ociVersionMax"] {
            let output = Bundle::busybox().sh("echo ran").set("/ociVersion", features[name].clone()).run();
            assert_eq!(output.ok(), "ran", "{name}");
        }
    });
    section.must("ociVersionMax is not less than ociVersionMin", || {
        let numbers = |name: &str| -> Vec<u32> {
            let text = features[name].as_str().unwrap().split(['-', '+']).next().unwrap();
            text.split('.').map(|number| number.parse().unwrap()).collect()
        };
        assert!(numbers("ociVersionMin") <= numbers("ociVersionMax"));
    });
    let mut section = Section::new(DOCUMENT, "Hooks");
    section.must("every hook that is named is run", || {
        let bundle = Bundle::busybox().args(["true"]);
        let note = |point: &str| {
            // That one is in the container.
            let folder = if point == "startContainer" { Path::new("") } else { bundle.path() };
            let script = format!("echo {point} >> {}/notes", folder.display());
            json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}])
        };
        let points = names(&features, "/hooks");
        let hooks = points.iter().map(|point| ((*point).to_owned(), note(point))).collect();
        let bundle = bundle.set("/hooks", Value::Object(hooks));
        bundle.run().ok();
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let notes = read(bundle.path().join("notes")) + &read(bundle.rootfs().join("notes"));
        points.iter().for_each(|point| assert!(notes.contains(point), "no {point} in {notes}"));
    });
    let mut section = Section::new(DOCUMENT, "Mount options");
    section.must("every mount option that is named is taken", || {
        let folder = tempfile::Builder::new().prefix("pouch-volume-").tempdir_in("/var/tmp").unwrap();
        let mut bundle = Bundle::busybox().sh("echo ran");
        for (index, option) in names(&features, "/mountOptions").into_iter().enumerate() {
            let place = format!("/m{index}");
            bundle = match option {
                "bind" | "rbind" => bundle.mount(&place, "none", folder.path(), &[option]),
                "defaults" if !has_vm() => bundle,
                // They need more than a mount of their own; config_mounts.rs has them.
                "remount" | "idmap" | "ridmap" | "acl" | "noacl" | "mand" => bundle,
                _ => bundle.mount(&place, "tmpfs", "tmpfs", &[option]),
            };
        }
        assert_eq!(bundle.run().ok(), "ran");
    });
}

/// features-linux.md.
#[test]
fn linux() {
    let features = features();
    let mut section = Section::new("features-linux.md", "Linux features");
    section.must("every namespace that is named is known", || {
        let types = names(&features, "/linux/namespaces").into_iter().filter(|kind| *kind != "user");
        let list: Vec<Value> = types.map(|kind| json!({"type": kind})).collect();
        let bundle = Bundle::busybox().sh("echo ran").set("/linux/namespaces", json!(list));
        assert_eq!(bundle.run().ok(), "ran");
    });
    section.must("every capability that is named can be given", || {
        let all = names(&features, "/linux/capabilities");
        let bundle = Bundle::busybox().sh("grep CapBnd /proc/self/status").capable(&all);
        let text = bundle.run().ok();
        let mask = u64::from_str_radix(text.split('\t').nth(1).unwrap(), 16).unwrap();
        assert_eq!(mask.count_ones() as usize, all.len(), "{text}");
    });
    section.must("every action, operator and architecture of seccomp that is named is known", || {
        let operators = names(&features, "/linux/seccomp/operators");
        let argument = |op: &&str| json!({"index": 0, "value": 7, "valueTwo": 7, "op": op});
        let rule =
            |op: &&str| json!({"names": ["personality"], "action": "SCMP_ACT_LOG", "args": [argument(op)]});
        let mut rules: Vec<Value> = operators.iter().map(rule).collect();
        // The default action needs no rule, and a listener is a matter of its own.
        let apart = ["SCMP_ACT_ALLOW", "SCMP_ACT_NOTIFY"];
        let actions =
            names(&features, "/linux/seccomp/actions").into_iter().filter(|name| !apart.contains(name));
        let calls = ["acct", "swapon", "swapoff", "reboot", "sethostname", "quotactl", "iopl", "ioperm"];
        rules.extend(actions.zip(calls).map(|(action, call)| json!({"names": [call], "action": action})));
        let seccomp = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        });
        assert_eq!(Bundle::busybox().sh("echo ran").set("/linux/seccomp", seccomp).run().ok(), "ran");
    });
}
