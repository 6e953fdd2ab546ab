//! Devices of a specification. Its numbers are those of the host, and the guest kernel has its own devices. A
//! number may be unknown in the guest, or belong to another device; such a node is not created. Disks that the host has
//! given to the VM for this are known by their numbers on the host.

use std::path::Path;

use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Spec};
use pouch_protocol::agent::BlockDevice;

use crate::error::RequestError;
use crate::modules;

/// Where the kernel lists its devices by their numbers; those of modules come when their node is opened.
const CHARACTER_DEVICES: &str = "/sys/dev/char";
const BLOCK_DEVICES: &str = "/sys/dev/block";
/// The loop devices, which are numbered alike on every host (Documentation/admin-guide/devices.txt) and hold nothing
/// until they are set up.
const LOOP: i64 = 7;

/// Refuses devices that the guest does not have, and `disks` that are not in the specification. If a container may use
/// every device, its engine adds all devices of the host; of these the container gets those that exist in the guest.
pub fn settle(spec: &mut Spec, disks: &[BlockDevice]) -> Result<(), RequestError> {
    settle_with(spec, disks, |block, major, minor| {
        let list = if block { BLOCK_DEVICES } else { CHARACTER_DEVICES };
        Path::new(list).join(format!("{major}:{minor}")).exists() || modules::offer(block, major, minor)
    })
}

fn settle_with(
    spec: &mut Spec,
    disks: &[BlockDevice],
    has: impl Fn(bool, i64, i64) -> bool,
) -> Result<(), RequestError> {
    let is = |device: &LinuxDevice, disk: &BlockDevice| {
        let numbers = (i64::from(disk.major), i64::from(disk.minor));
        device.typ() == LinuxDeviceType::B && (device.major(), device.minor()) == numbers
    };
    let mut devices = spec.linux().as_ref().and_then(|linux| linux.devices().clone()).unwrap_or_default();
    for (index, disk) in disks.iter().enumerate() {
        if !devices.iter().any(|device| is(device, disk)) {
            let problem = format!("the specification has no block device {}:{}", disk.major, disk.minor);
            return Err(RequestError::new(format!("devices[{index}]"), problem));
        }
    }
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let given = |device: &LinuxDevice| disks.iter().any(|disk| is(device, disk));
    let problem = |device: &LinuxDevice| if given(device) { None } else { problem(device, &has) };
    if allows_all(linux) {
        devices.retain(|device| problem(device).is_none());
        linux.set_devices(Some(devices).filter(|devices| !devices.is_empty()));
        return Ok(());
    }
    match devices.iter().enumerate().find_map(|(index, device)| Some((index, problem(device)?))) {
        None => Ok(()),
        Some((index, problem)) => Err(RequestError::new(format!("linux.devices[{index}]"), problem)),
    }
}

/// Whether every device may be used, as in what engines call a privileged container.
fn allows_all(linux: &Linux) -> bool {
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_ref());
    // Rules that allow more may follow, as for volumes of a privileged container under containerd.
    rules.map(Vec::as_slice).unwrap_or_default().iter().rev().take_while(|rule| rule.allow()).any(|rule| {
        let every = |number: Option<i64>| number.is_none_or(|number| number < 0);
        matches!(rule.typ(), None | Some(LinuxDeviceType::A)) && every(rule.major()) && every(rule.minor())
    })
}

fn problem(device: &LinuxDevice, has: impl Fn(bool, i64, i64) -> bool) -> Option<String> {
    let (path, major, minor) = (device.path().display(), device.major(), device.minor());
    let what = match device.typ() {
        LinuxDeviceType::B if major != LOOP || !has(true, major, minor) => "block device",
        LinuxDeviceType::C | LinuxDeviceType::U if !has(false, major, minor) => "character device",
        _ => return None,
    };
    Some(format!("{path} is {what} {major}:{minor} of the host, which is not in the guest"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(kind: &str, major: i64, minor: i64, rules: serde_json::Value) -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.2.0",
            "linux": {
                "devices": [
                    {"path": "/dev/nought", "type": "c", "major": 1, "minor": 5},
                    {"path": "/dev/mine", "type": kind, "major": major, "minor": minor},
                ],
                "resources": {"devices": rules},
            },
        }))
        .unwrap()
    }

    fn left(spec: &Spec) -> usize {
        spec.linux().as_ref().unwrap().devices().as_ref().unwrap().len()
    }

    fn has(block: bool, major: i64, minor: i64) -> bool {
        if block { (major, minor) != (LOOP, 9) } else { major == 1 }
    }

    #[test]
    fn what_the_guest_has_is_kept() {
        let mut spec = spec("c", 1, 3, json!([{"allow": false, "access": "rwm"}]));
        settle_with(&mut spec, &[], has).unwrap();
        assert_eq!(left(&spec), 2);
    }

    #[test]
    fn loop_devices_are_the_same_everywhere() {
        let mut spec = spec("b", LOOP, 0, json!([{"allow": true, "access": "rwm"}]));
        settle_with(&mut spec, &[], has).unwrap();
        assert_eq!(left(&spec), 2);
    }

    #[test]
    fn what_it_has_not_is_named() {
        let deny = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "b", "major": 254, "minor": 0}]);
        for (kind, major, minor) in [("b", 254, 0), ("b", 1, 0), ("b", LOOP, 9), ("c", 77, 0), ("u", 77, 0)] {
            let error =
                settle_with(&mut spec(kind, major, minor, deny.clone()), &[], has).unwrap_err().to_string();
            assert!(error.contains("linux.devices[1]") && error.contains("/dev/mine"), "{error}");
        }
    }

    #[test]
    fn disks_that_were_given_are_kept() {
        let disk = |minor| BlockDevice { major: 254, minor, slot: 12, ..Default::default() };
        for rules in [json!([{"allow": false, "access": "rwm"}]), json!([{"allow": true, "access": "rwm"}])] {
            let mut spec = spec("b", 254, 0, rules);
            settle_with(&mut spec, &[disk(0)], has).unwrap();
            assert_eq!(left(&spec), 2);
            let error = settle_with(&mut spec, &[disk(0), disk(1)], has).unwrap_err().to_string();
            assert!(error.starts_with("devices[1]: ") && error.contains("254:1"), "{error}");
        }
    }

    #[test]
    fn a_privileged_container_gets_what_there_is() {
        for rules in [
            json!([{"allow": true, "access": "rwm"}]),
            json!([{"allow": true, "type": "a", "access": "rwm"}]),
            json!([{"allow": true, "access": "rwm"}, {"allow": true, "type": "b", "major": 7, "minor": 1}]),
        ] {
            let mut spec = spec("b", 254, 0, rules);
            settle_with(&mut spec, &[], has).unwrap();
            assert_eq!(left(&spec), 1);
        }
    }
}
