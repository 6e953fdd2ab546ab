//! Devices of the host that a specification names. The agent refuses those that the guest does not have. The guest has
//! loop devices with the same numbers as the host's, but their content is different, so they are checked here.

use std::path::Path;

use oci_spec::runtime::{LinuxDeviceType, Spec};

use super::guest_spec::{TranslateError, unsupported};

/// The loop devices (Documentation/admin-guide/devices.txt).
const LOOP: i64 = 7;

/// Refuses loop devices that are in use on the host. A container that may use every device gets those of the guest: its
/// engine names all devices of the host, whether it is to use them or not.
///
/// # Errors
/// [`TranslateError`] names the device.
pub(super) fn check(spec: &Spec) -> Result<(), TranslateError> {
    check_with(spec, |minor| Path::new(&format!("/sys/dev/block/{LOOP}:{minor}/loop/backing_file")).exists())
}

fn check_with(spec: &Spec, in_use: impl Fn(i64) -> bool) -> Result<(), TranslateError> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let rules = linux.resources().as_ref().and_then(|resources| resources.devices().as_ref());
    let every = rules.and_then(|rules| rules.last()).is_some_and(|rule| {
        let all = |number: Option<i64>| number.is_none_or(|number| number < 0);
        let kind = matches!(rule.typ(), None | Some(LinuxDeviceType::A));
        let access =
            rule.access().as_deref().is_none_or(|access| access.contains('r') && access.contains('w'));
        rule.allow() && kind && access && all(rule.major()) && all(rule.minor())
    });
    if every {
        return Ok(());
    }
    for (index, device) in linux.devices().iter().flatten().enumerate() {
        if device.typ() == LinuxDeviceType::B && device.major() == LOOP && in_use(device.minor()) {
            let text = format!(
                "{} is a loop device that is in use on the host, and block devices cannot be passed into a VM yet",
                device.path().display()
            );
            return Err(unsupported(format!("linux.devices[{index}]"), text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_loop_device_with_content_is_refused() {
        let spec = json!({"ociVersion": "1.2.0", "linux": {"devices": [
            {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
            {"path": "/dev/xvda", "type": "b", "major": 7, "minor": 5},
        ]}});
        let spec: Spec = serde_json::from_value(spec).unwrap();
        assert!(check_with(&spec, |_| false).is_ok());
        let error = check_with(&spec, |minor| minor == 5).unwrap_err().to_string();
        assert!(error.starts_with("linux.devices[1]: /dev/xvda is a loop device"), "{error}");
        let privileged = json!({"devices": [{"allow": true, "access": "rwm"}]});
        let mut all = spec.clone();
        let resources = Some(serde_json::from_value(privileged).unwrap());
        all.linux_mut().as_mut().unwrap().set_resources(resources);
        assert!(check_with(&all, |_| true).is_ok());
    }
}
