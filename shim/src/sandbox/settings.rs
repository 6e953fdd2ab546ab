//! The host's kernel settings that a container inherits.

use std::fs;

use pouch_protocol::agent::Setting;
use pouch_protocol::settings;

/// Those of the host as a whole.
pub fn of_host() -> Vec<Setting> {
    settings::HOST.iter().filter_map(|name| read(name)).collect()
}

/// Those of the network namespace that the calling thread is in, but for what a guest has by itself.
pub fn of_network() -> Vec<Setting> {
    let all = settings::network().filter_map(|name| read(&name));
    all.filter(|setting| !settings::is_default(&setting.name, &setting.value)).collect()
}

/// A setting that this host has and a guest may be given; another kernel may know fewer.
fn read(name: &str) -> Option<Setting> {
    let value = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    let value = value.trim();
    settings::is_allowed(name, value).then(|| Setting {
        name: name.to_owned(),
        value: value.to_owned(),
        ..Setting::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_has_is_read_and_what_it_has_not_is_left_out() {
        let found = of_host();
        let nr_open = found.iter().find(|setting| setting.name == "fs/nr_open").unwrap();
        assert!(nr_open.value.parse::<u64>().unwrap() >= 1024);
        let forward = of_network().into_iter().next().unwrap();
        assert_eq!(forward.name, "net/ipv4/ip_forward");
        assert!(read("fs/no-such-setting").is_none() && read("kernel/hostname").is_none());
    }
}
