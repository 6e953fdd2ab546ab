//! Kernel settings (`/proc/sys`): those that a container inherits from its host, and those in its
//! specification for an interface that does not exist yet.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use pouch_protocol::agent::Setting;
use pouch_protocol::settings;

use crate::error::RequestError;

const ROOT: &str = "/proc/sys";
/// The limit for the length of lists.
const LIST_MAX: usize = 1024;

/// Applies the host's settings. All are checked before the first is changed. A setting that the kernel refuses, because
/// its limits differ from the host kernel's, is logged.
pub fn inherit(list: &[Setting]) -> Result<(), RequestError> {
    if list.len() > LIST_MAX {
        return Err(RequestError::new("settings", format!("has more than {LIST_MAX} entries")));
    }
    for (index, setting) in list.iter().enumerate() {
        if !settings::is_allowed(&setting.name, &setting.value) {
            return Err(RequestError::new(
                format!("settings[{index}]"),
                format!("{:?} is not an inherited setting, or its value is malformed", setting.name),
            ));
        }
    }
    for setting in list {
        if let Err(error) = fs::write(Path::new(ROOT).join(&setting.name), &setting.value) {
            log::warn!("{} cannot be set to {:?}: {error}", setting.name, setting.value);
        }
    }
    Ok(())
}

/// The file of a setting as a specification names it: with dots for slashes.
pub fn path_of(key: &str) -> PathBuf {
    Path::new(ROOT).join(key.replace('.', "/"))
}

/// A setting of a specification that waits for its interface.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiting {
    container: String,
    interface: String,
    key: String,
    value: String,
}

/// Settings of interfaces that are attached when the container is started.
#[derive(Debug, Default)]
pub struct InterfaceSettings(Mutex<Vec<Waiting>>);

impl InterfaceSettings {
    /// Keeps the setting if it is one of an interface that is not there; else it is to be set at once.
    pub fn keep(&self, container: &str, key: &str, value: &str) -> bool {
        let Some(interface) = interface_of(key) else { return false };
        if Path::new("/sys/class/net").join(interface).exists() {
            return false;
        }
        self.lock().push(Waiting {
            container: container.to_owned(),
            interface: interface.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
        });
        true
    }

    /// Applies the settings that waited for this interface. An error has the setting's name.
    pub fn set(&self, interface: &str) -> Result<(), (String, io::Error)> {
        let mut all = self.lock();
        let (ready, waiting) = all.drain(..).partition(|waiting| waiting.interface == interface);
        *all = waiting;
        let ready: Vec<Waiting> = ready;
        for Waiting { key, value, .. } in ready {
            fs::write(path_of(&key), value).map_err(|error| (key, error))?;
        }
        Ok(())
    }

    /// Forgets a container; returns one of its settings, and the interface, if any is left.
    pub fn forget(&self, container: &str) -> Option<(String, String)> {
        let mut all = self.lock();
        let left = all.iter().find(|waiting| waiting.container == container);
        let left = left.map(|waiting| (waiting.key.clone(), waiting.interface.clone()));
        all.retain(|waiting| waiting.container != container);
        left
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The interface whose setting this is: `net.ipv4.conf.NAME.…`, and so for IPv6 and neighbours. Those of
/// a name with a slash or a dot are not meant: the specification's names cannot say them.
pub fn interface_of(key: &str) -> Option<&str> {
    let mut parts = key.split(['.', '/']);
    if parts.next() != Some("net") || !matches!(parts.next(), Some("ipv4" | "ipv6")) {
        return None;
    }
    if !matches!(parts.next(), Some("conf" | "neigh")) {
        return None;
    }
    let interface = parts.next()?;
    let of_one = parts.count() == 1 && !interface.is_empty();
    (of_one && !matches!(interface, "all" | "default" | "lo")).then_some(interface)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(name: &str, value: &str) -> Setting {
        Setting { name: name.to_owned(), value: value.to_owned(), ..Setting::default() }
    }

    #[test]
    fn what_is_not_on_the_list_is_refused_by_its_place() {
        for bad in [setting("kernel/modprobe", "/x"), setting("vm/swappiness", "|x"), setting("", "1")] {
            let error = inherit(&[bad]).unwrap_err().to_string();
            assert!(error.starts_with("settings[0]"), "{error}");
        }
        let many = vec![setting("vm/swappiness", "1"); LIST_MAX + 1];
        assert!(inherit(&many).unwrap_err().to_string().starts_with("settings: "));
    }

    #[test]
    fn settings_of_an_interface_are_known_by_their_names() {
        assert_eq!(interface_of("net.ipv4.conf.eth0.rp_filter"), Some("eth0"));
        assert_eq!(interface_of("net/ipv6/neigh/eth0/gc_stale_time"), Some("eth0"));
        for other in [
            "net.ipv4.conf.all.rp_filter",
            "net.ipv4.conf.lo.rp_filter",
            "net.ipv4.ip_forward",
            "net.core.conf.eth0.x",
            "net.ipv4.conf.eth0",
            "net.ipv4.conf.eth0.5.rp_filter",
            "kernel.msgmax",
        ] {
            assert_eq!(interface_of(other), None, "{other}");
        }
    }

    #[test]
    fn they_wait_for_it_and_what_is_left_is_told() {
        let settings = InterfaceSettings::default();
        assert!(settings.keep("a", "net.ipv4.conf.no-such0.rp_filter", "2"));
        assert!(settings.keep("b", "net.ipv4.conf.no-such1.rp_filter", "2"));
        assert!(!settings.keep("a", "net.ipv4.conf.lo.rp_filter", "2"));
        settings.set("another0").unwrap();
        // The name is right, the file is missing.
        let (key, _) = settings.set("no-such0").unwrap_err();
        assert_eq!(key, "net.ipv4.conf.no-such0.rp_filter");
        assert_eq!(settings.forget("a"), None);
        let left = settings.forget("b").unwrap();
        assert_eq!(left, ("net.ipv4.conf.no-such1.rp_filter".to_owned(), "no-such1".to_owned()));
        assert_eq!(settings.forget("b"), None);
    }
}
