//! The host's kernel settings that a container inherits.

use std::os::fd::OwnedFd;

use pouch_protocol::agent::Setting;
use pouch_protocol::settings;
use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::read;

/// Bytes that are read of a value. A longer one is not one that a guest may be given.
const READ_MAX: usize = 256;

/// Those of the host as a whole.
pub fn of_host() -> Vec<Setting> {
    let mut reader = Reader::default();
    settings::HOST.iter().filter_map(|name| reader.read(name)).collect()
}

/// Those of the network namespace that the calling thread is in, but for what a guest has by itself.
pub fn of_network() -> Vec<Setting> {
    let mut reader = Reader::default();
    let all = settings::network().filter_map(|name| reader.read(&name));
    all.filter(|setting| !settings::is_default(&setting.name, &setting.value)).collect()
}

/// Reads settings. It keeps the directory of the last one open, because a path below `/proc/sys` takes the kernel longer
/// to look up than all the rest, and a container's start reads more than a hundred.
#[derive(Default)]
struct Reader {
    path: String,
    directory: Option<OwnedFd>,
}

impl Reader {
    /// A setting that this host has and a guest may be given; another kernel may know fewer.
    fn read(&mut self, name: &str) -> Option<Setting> {
        let (path, file) = name.rsplit_once('/')?;
        if self.path != path {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            self.directory = open(format!("/proc/sys/{path}"), flags, Mode::empty()).ok();
            path.clone_into(&mut self.path);
        }
        let file =
            openat(self.directory.as_ref()?, file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut value = [0; READ_MAX];
        // The kernel gives the whole value in one piece (proc_sysctl.c).
        let length = read(&file, &mut value).ok()?;
        let value = str::from_utf8(&value[..length]).ok()?.trim();
        settings::is_allowed(name, value).then(|| Setting {
            name: name.to_owned(),
            value: value.to_owned(),
            ..Setting::default()
        })
    }
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
        let mut reader = Reader::default();
        for name in ["fs/no-such-setting", "no-such/setting", "kernel/hostname", "setting"] {
            assert!(reader.read(name).is_none(), "{name}");
        }
        assert_eq!(reader.read("fs/nr_open").unwrap().value, nr_open.value);
    }
}
