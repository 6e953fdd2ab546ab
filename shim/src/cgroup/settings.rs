//! Saves the settings of a cgroup, to restore them if an update fails.
//!
//! The kernel's files are read and written even if systemd manages the cgroup. systemd keeps the values that
//! it was told last, and writes these when it next updates the cgroup.

use std::fs;
use std::path::PathBuf;

use oci_spec::runtime::LinuxResources;

use super::{Cgroup, Driver, hierarchies};

/// The files that limits change, of both cgroup versions. A file that bounds another comes first.
const FILES: [&str; 20] = [
    "blkio.bfq.weight",
    "blkio.weight",
    "cpu.idle",
    "cpu.weight",
    "cpu.shares",
    "cpu.max",
    "cpu.max.burst",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
    "cpu.cfs_burst_us",
    "cpuset.cpus",
    "cpuset.mems",
    "io.bfq.weight",
    "io.weight",
    "memory.low",
    "memory.max",
    "memory.swap.max",
    "memory.soft_limit_in_bytes",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
];
/// Files with a line for each limited device, and the value that removes a device's limit.
const OF_DEVICES: [(&str, &str); 5] = [
    ("io.max", "rbps=max wbps=max riops=max wiops=max"),
    ("blkio.throttle.read_bps_device", "0"),
    ("blkio.throttle.read_iops_device", "0"),
    ("blkio.throttle.write_bps_device", "0"),
    ("blkio.throttle.write_iops_device", "0"),
];

/// Saved settings.
pub struct Settings(Vec<Setting>);

struct Setting {
    file: PathBuf,
    text: String,
}

impl Cgroup {
    /// What [`Cgroup::limit`] with these resources may change, as it is now.
    pub fn settings(&self, resources: &LinuxResources) -> Settings {
        let directories = match self.driver {
            Driver::Legacy => hierarchies().map(|root| root.join(&self.path)).collect(),
            Driver::Unified | Driver::Systemd => vec![self.directory()],
        };
        let named = resources.unified().iter().flatten().map(|(file, _)| file.as_str());
        let named = named.filter(|file| !file.contains('/'));
        Settings::read(&directories, named)
    }
}

impl Settings {
    /// Reads the files that are there; `named` are further ones.
    fn read<'a>(directories: &[PathBuf], named: impl Iterator<Item = &'a str>) -> Self {
        let of_devices = OF_DEVICES.map(|(file, _)| file);
        let names: Vec<&str> = FILES.into_iter().chain(of_devices).chain(named).collect();
        let files = directories.iter().flat_map(|directory| names.iter().map(|name| directory.join(name)));
        let read = |file: PathBuf| fs::read_to_string(&file).ok().map(|text| Setting { file, text });
        Settings(files.filter_map(read).collect())
    }

    /// Restores settings that have changed. Errors are ignored, because the error of the update is reported.
    pub fn restore(&self) {
        // A file that bounds another may have to change after it: memory, and memory with swap.
        for _ in 0..2 {
            self.0.iter().for_each(Setting::restore);
        }
    }
}

impl Setting {
    fn restore(&self) {
        let now = fs::read_to_string(&self.file).unwrap_or_default();
        if now == self.text {
            return;
        }
        let name = self.file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        for line in lines(name, &self.text, &now) {
            // The line's end is there for a value that is empty.
            let _ = fs::write(&self.file, format!("{line}\n"));
        }
    }
}

/// The values to write, in order, so that a file with the content `now` has the content `before` again.
fn lines(name: &str, before: &str, now: &str) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some((_, unlimited)) = OF_DEVICES.iter().find(|(file, _)| *file == name) {
        let device = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
        let limited: Vec<String> = before.lines().map(device).collect();
        let new = now.lines().map(device).filter(|device| !limited.contains(device));
        lines.extend(new.map(|device| format!("{device} {unlimited}")));
    }
    // Some weight files contain this word when read, but do not accept it.
    let plain = |line: &str| line.strip_prefix("default ").unwrap_or(line).to_owned();
    lines.extend(before.lines().map(plain));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path();
        let file = |name: &str| directory.join(name);
        let read = |name: &str| fs::read_to_string(file(name)).unwrap();
        for (name, text) in [
            ("cpu.max", "max 100000\n"),
            ("cpuset.cpus", "\n"),
            ("memory.current", "5\n"),
            ("memory.high", "max\n"),
            ("io.weight", "default 100\n"),
        ] {
            fs::write(file(name), text).unwrap();
        }
        let settings = Settings::read(&[directory.to_owned()], ["memory.high"].into_iter());
        for name in ["cpu.max", "cpuset.cpus", "memory.current", "memory.high", "io.weight"] {
            fs::write(file(name), "7\n").unwrap();
        }
        settings.restore();
        assert_eq!(read("cpu.max"), "max 100000\n");
        assert_eq!(read("cpuset.cpus"), "\n");
        assert_eq!(read("memory.high"), "max\n");
        assert_eq!(read("io.weight"), "100\n");
        assert_eq!(read("memory.current"), "7\n", "no setting");
        assert!(!file("cpu.weight").exists(), "no file is made");
    }

    #[test]
    fn devices_that_had_no_limit_have_none_again() {
        let before = "8:0 rbps=100 wbps=max riops=max wiops=max\n";
        let now = "8:0 rbps=5 wbps=max riops=max wiops=max\n8:16 rbps=5 wbps=max riops=max wiops=max\n";
        let expected =
            ["8:16 rbps=max wbps=max riops=max wiops=max", "8:0 rbps=100 wbps=max riops=max wiops=max"];
        assert_eq!(lines("io.max", before, now), expected);
        assert_eq!(lines("blkio.throttle.read_bps_device", "", "8:0 9\n"), ["8:0 0"]);
    }
}
