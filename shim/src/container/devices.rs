//! Block devices of the host that a specification names. A container gets each as a disk of its VM.
//!
//! The guest has loop devices with the same numbers as the host's. Those that are not in use on the host mean the
//! guest's.

use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxNamespaceType, Spec};
use pouch_vmm_api::config::MAX_DISK_SLOTS;

use super::guest_spec::{TranslateError, unsupported};
use crate::sandbox::disks::HostDisk;

/// The loop devices (Documentation/admin-guide/devices.txt).
const LOOP: i64 = 7;

/// The block devices of the host that a container is to have, each once. If it may use every device, its engine names all
/// devices of the host, whether it is to use them or not. Then it gets those that have a rule of their own, as volumes of
/// privileged containers have under containerd.
///
/// # Errors
/// [`TranslateError`] names the device.
pub(super) fn of_host(spec: &Spec) -> Result<Vec<HostDisk>, TranslateError> {
    of_host_with(spec, |minor| {
        Path::new(&format!("/sys/dev/block/{LOOP}:{minor}/loop/backing_file")).exists()
    })
}

fn of_host_with(spec: &Spec, in_use: impl Fn(i64) -> bool) -> Result<Vec<HostDisk>, TranslateError> {
    let Some(linux) = spec.linux() else { return Ok(Vec::new()) };
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_deref());
    let rules = rules.unwrap_or_default();
    let (every, rules) = split(rules);
    let mut namespaces = linux.namespaces().iter().flatten();
    let own_users = namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    let mut disks: Vec<HostDisk> = Vec::new();
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        let (major, minor) = (device.major(), device.minor());
        let named = !every || rules.iter().any(|rule| is_for(rule, major, minor));
        if device.typ() != LinuxDeviceType::B || !named || (major == LOOP && !in_use(minor)) {
            continue;
        }
        let refused = |problem: &str| {
            let text = format!("{}, block device {major}:{minor}, {problem}", device.path().display());
            unsupported(format!("linux.devices[{index}]"), text)
        };
        if own_users {
            return Err(refused("cannot be in a container with a user namespace"));
        }
        let (Ok(major), Ok(minor)) = (u32::try_from(major), u32::try_from(minor)) else {
            return Err(refused("has numbers that no device has"));
        };
        if disks.iter().any(|disk| (disk.major, disk.minor) == (major, minor)) {
            continue;
        }
        if disks.len() >= usize::from(MAX_DISK_SLOTS) {
            return Err(refused(&format!("is one too many: a VM can have {MAX_DISK_SLOTS} at a time")));
        }
        let read_only = !may_write(rules, major, minor);
        disks.push(HostDisk { path: device.path().clone(), major, minor, read_only });
    }
    Ok(disks)
}

/// Whether the rules allow every device, as in what engines call a privileged container; and then the rules after the one
/// that does so.
fn split(rules: &[LinuxDeviceCgroup]) -> (bool, &[LinuxDeviceCgroup]) {
    match rules.iter().rposition(allows_all) {
        Some(index) if rules[index..].iter().all(LinuxDeviceCgroup::allow) => (true, &rules[index + 1..]),
        _ => (false, rules),
    }
}

/// Whether a rule is for this block device only.
fn is_for(rule: &LinuxDeviceCgroup, major: i64, minor: i64) -> bool {
    rule.typ() == Some(LinuxDeviceType::B) && (rule.major(), rule.minor()) == (Some(major), Some(minor))
}

/// Whether a rule allows every device.
fn allows_all(rule: &LinuxDeviceCgroup) -> bool {
    let all = |number: Option<i64>| number.is_none_or(|number| number < 0);
    let kind = matches!(rule.typ(), None | Some(LinuxDeviceType::A));
    let access = rule.access().as_deref().is_none_or(|access| access.contains('r') && access.contains('w'));
    rule.allow() && kind && access && all(rule.major()) && all(rule.minor())
}

/// Whether the rules allow writing to a block device: the last one about that decides.
fn may_write(rules: &[LinuxDeviceCgroup], major: u32, minor: u32) -> bool {
    let about = |rule: &&LinuxDeviceCgroup| {
        let matches = |number: Option<i64>, own: u32| {
            number.is_none_or(|number| number < 0 || number == i64::from(own))
        };
        // No access named is every access.
        let access = rule.access().as_deref().unwrap_or_default();
        matches!(rule.typ(), None | Some(LinuxDeviceType::A | LinuxDeviceType::B))
            && matches(rule.major(), major)
            && matches(rule.minor(), minor)
            && (access.is_empty() || access.contains('w'))
    };
    rules.iter().rev().find(about).is_some_and(LinuxDeviceCgroup::allow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn found(devices: Value, rules: Value) -> Result<Vec<HostDisk>, TranslateError> {
        let linux = json!({"devices": devices, "resources": {"devices": rules}});
        let spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "linux": linux})).unwrap();
        of_host_with(&spec, |minor| minor == 5)
    }

    fn block(path: &str, major: i64, minor: i64) -> Value {
        json!({"path": path, "type": "b", "major": major, "minor": minor})
    }

    #[test]
    fn block_devices_are_found_once() {
        let devices = json!([
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
            // A loop device without content is the guest's.
            block("/dev/loop4", 7, 4),
            block("/dev/xvda", 7, 5),
            block("/dev/xvdb", 253, 0),
            block("/dev/again", 253, 0),
        ]);
        let rules = json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 7, "minor": 5, "access": "r"},
            {"allow": true, "type": "b", "major": 253, "minor": 0, "access": "rwm"},
        ]);
        let disk =
            |path: &str, major, minor, read_only| HostDisk { path: path.into(), major, minor, read_only };
        let disks = found(devices.clone(), rules).unwrap();
        assert_eq!(disks, [disk("/dev/xvda", 7, 5, true), disk("/dev/xvdb", 253, 0, false)]);
        for access in [Value::Null, json!("rwm")] {
            assert_eq!(found(devices.clone(), json!([{"allow": true, "access": access}])).unwrap(), []);
        }
    }

    #[test]
    fn a_privileged_container_gets_devices_with_rules_of_their_own() {
        let devices =
            json!([block("/dev/vda", 254, 0), block("/dev/xvda", 253, 1), block("/dev/xvdb", 253, 2)]);
        let all = json!({"allow": true, "access": "rwm"});
        let rule = |minor: i64, access: &str| json!({"allow": true, "type": "b", "major": 253, "minor": minor, "access": access});
        let disks = found(devices.clone(), json!([rule(9, "rw"), all, rule(1, "rw"), rule(2, "r")])).unwrap();
        let disks: Vec<_> = disks.iter().map(|disk| (disk.minor, disk.read_only)).collect();
        assert_eq!(disks, [(1, false), (2, true)]);
        assert_eq!(found(devices.clone(), json!([rule(1, "rw"), all])).unwrap(), []);
        // What is denied after all were allowed shows that not all are meant.
        let deny = json!({"allow": false, "type": "c", "access": "rwm"});
        assert_eq!(found(devices, json!([all, deny])).unwrap().len(), 3);
    }

    #[test]
    fn the_last_rule_about_writing_decides() {
        let rule = |allow: bool, minor: Value, access: &str| json!({"allow": allow, "type": "b", "major": 253, "minor": minor, "access": access});
        let writable = |rules: Value| !found(json!([block("/dev/x", 253, 2)]), rules).unwrap()[0].read_only;
        assert!(!writable(json!([])));
        assert!(writable(json!([rule(true, json!(2), "rw")])));
        assert!(writable(json!([rule(true, Value::Null, "w"), rule(false, json!(2), "r")])));
        assert!(writable(json!([rule(true, json!(-1), ""), rule(true, json!(2), "r")])));
        assert!(!writable(json!([rule(true, json!(2), "rw"), rule(false, json!(2), "w")])));
        assert!(!writable(json!([rule(true, json!(3), "rw")])));
        assert!(!writable(json!([{"allow": true, "type": "c", "access": "rw"}])));
    }

    #[test]
    fn what_cannot_be_given_is_refused_by_name() {
        let error = found(json!([block("/dev/x", -1, 0)]), json!([])).unwrap_err().to_string();
        assert!(error.starts_with("linux.devices[0]: /dev/x, block device -1:0, has numbers"), "{error}");
        let many: Vec<Value> = (0..8).map(|minor| block(&format!("/dev/x{minor}"), 253, minor)).collect();
        assert_eq!(found(json!(many[..7]), json!([])).unwrap().len(), 7);
        let error = found(json!(many), json!([])).unwrap_err().to_string();
        assert!(error.starts_with("linux.devices[7]: /dev/x7") && error.ends_with("7 at a time"), "{error}");
        let linux = json!({"devices": [block("/dev/x", 253, 0)], "namespaces": [{"type": "user"}]});
        let spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "linux": linux})).unwrap();
        let error = of_host_with(&spec, |_| false).unwrap_err().to_string();
        assert!(error.contains("linux.devices[0]") && error.contains("user namespace"), "{error}");
    }
}
