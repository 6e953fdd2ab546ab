//! Disks that a specification names by their numbers on the host get those that they have in the guest.

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

/// The numbers of a disk, each as (major, minor).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renumbered {
    /// Those on the host, which the specification has.
    pub host: (u32, u32),
    /// Those in the guest.
    pub guest: (u32, u32),
}

impl Renumbered {
    fn is(&self, device: &LinuxDevice) -> bool {
        let host = (i64::from(self.host.0), i64::from(self.host.1));
        device.typ() == LinuxDeviceType::B && (device.major(), device.minor()) == host
    }
}

/// Gives the devices that are disks their numbers in the guest.
pub fn devices(devices: &mut [LinuxDevice], disks: &[Renumbered]) {
    for device in devices {
        if let Some(disk) = disks.iter().find(|disk| disk.is(device)) {
            device.set_major(disk.guest.0.into()).set_minor(disk.guest.1.into());
        }
    }
}

/// The device rules for the guest. A rule for one disk is for its numbers in the guest instead; one for several devices
/// of the host, among them disks, is for these disks too. The order of rules, which decides, stays the same.
pub fn rules(rules: &[LinuxDeviceCgroup], disks: &[Renumbered]) -> Vec<LinuxDeviceCgroup> {
    let mut renumbered = Vec::with_capacity(rules.len());
    for rule in rules {
        let number = |number: Option<i64>| number.filter(|number| *number >= 0);
        let (major, minor) = (number(rule.major()), number(rule.minor()));
        let matches = |disk: &&Renumbered| {
            matches!(rule.typ(), None | Some(LinuxDeviceType::A | LinuxDeviceType::B))
                && major.is_none_or(|major| major == i64::from(disk.host.0))
                && minor.is_none_or(|minor| minor == i64::from(disk.host.1))
        };
        let mut among: Vec<LinuxDeviceCgroup> = Vec::new();
        if major.is_some() || minor.is_some() {
            among.extend(disks.iter().filter(matches).map(|disk| {
                let mut own = rule.clone();
                own.set_typ(Some(LinuxDeviceType::B));
                own.set_major(Some(disk.guest.0.into())).set_minor(Some(disk.guest.1.into()));
                own
            }));
        }
        let of_one_disk =
            rule.typ() == Some(LinuxDeviceType::B) && major.is_some() && minor.is_some() && !among.is_empty();
        if !of_one_disk {
            renumbered.push(rule.clone());
        }
        renumbered.append(&mut among);
    }
    renumbered
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const DISKS: [Renumbered; 2] = [
        Renumbered { host: (7, 3), guest: (254, 0) },
        // Its number on the host is that of the other one in the guest.
        Renumbered { host: (254, 0), guest: (254, 16) },
    ];

    fn renumbered(list: Value) -> Value {
        let list: Vec<LinuxDeviceCgroup> = serde_json::from_value(list).unwrap();
        serde_json::to_value(rules(&list, &DISKS)).unwrap()
    }

    #[test]
    fn nodes_get_the_numbers_of_the_guest() {
        let list = json!([
            {"path": "/dev/null", "type": "c", "major": 7, "minor": 3},
            {"path": "/dev/one", "type": "b", "major": 7, "minor": 3, "fileMode": 432, "uid": 1, "gid": 6},
            {"path": "/dev/two", "type": "b", "major": 254, "minor": 0},
            {"path": "/dev/loop4", "type": "b", "major": 7, "minor": 4},
        ]);
        let mut list: Vec<LinuxDevice> = serde_json::from_value(list).unwrap();
        devices(&mut list, &DISKS);
        let numbers: Vec<_> = list.iter().map(|device| (device.major(), device.minor())).collect();
        assert_eq!(numbers, [(7, 3), (254, 0), (254, 16), (7, 4)]);
        assert_eq!((list[1].file_mode(), list[1].uid(), list[1].gid()), (Some(432), Some(1), Some(6)));
    }

    #[test]
    fn a_rule_for_a_disk_is_for_its_number_in_the_guest() {
        let rule = |major: i64, minor: i64, access: &str| json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": access});
        let list =
            json!([{"allow": false, "access": "rwm"}, rule(7, 3, "r"), rule(254, 0, "rw"), rule(7, 4, "rw")]);
        let expected = json!([{"allow": false, "access": "rwm"}, rule(254, 0, "r"), rule(254, 16, "rw"), rule(7, 4, "rw")]);
        assert_eq!(renumbered(list), expected);
    }

    #[test]
    fn a_rule_for_several_devices_is_for_the_disks_among_them_too() {
        let character = json!({"allow": true, "type": "c", "major": 7, "access": "rw"});
        let loops = json!({"allow": true, "type": "b", "major": 7, "minor": -1, "access": "rw"});
        let disk = json!({"allow": true, "type": "b", "major": 254, "minor": 0, "access": "rw"});
        let blocks = json!({"allow": true, "type": "b", "access": "m"});
        let list = json!([blocks, character, loops]);
        assert_eq!(renumbered(list), json!([blocks, character, loops, disk]));
    }
}
