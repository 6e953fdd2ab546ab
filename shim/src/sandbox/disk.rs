//! How long a guest may take to write to its disk when its VM ends.
//!
//! The container's last writes are in guest memory. Writing them may take long, with a slow disk or under a
//! limit. So the guest may continue as long as something is written.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;

/// Poll interval.
pub const LOOK: Duration = Duration::from_millis(500);
/// How long a guest without a disk may take for its end, and one with a disk may write nothing when it is
/// ended by force. The agent gives up what is not about disks within 12 s.
pub const SHUTDOWN: Duration = Duration::from_secs(15);
/// How long a guest with a disk may write nothing.
pub const DISK_STALL: Duration = Duration::from_secs(60);
/// The most that an end by force takes, whatever the guest writes.
pub const FORCED_MAX: Duration = Duration::from_secs(300);

/// Bytes of the longest of the kernel's lists of counters that are read.
const COUNTERS_MAX: usize = 16 * 1024;

/// The kernel's counters of what a VM writes. They are opened early, because later this process has no paths to them.
pub struct WriteCounters {
    /// What is in the host's page cache already.
    process: Option<File>,
    /// What goes from there to the disk.
    cgroup: Option<File>,
}

impl WriteCounters {
    /// Those of the VMM with this PID, in this cgroup.
    pub fn open(vmm: i32, cgroup: Option<&Cgroup>) -> Self {
        WriteCounters {
            process: File::open(format!("/proc/{vmm}/io")).ok(),
            cgroup: cgroup.and_then(Cgroup::open_disk_statistics),
        }
    }

    /// Those of an unknown VMM, in the cgroup that has these statistics.
    pub fn of_cgroup(statistics: Option<File>) -> Self {
        WriteCounters { process: None, cgroup: statistics }
    }

    fn read(&self) -> (Option<String>, Option<String>) {
        let process = self.process.as_ref().and_then(text);
        let line =
            process.as_ref().and_then(|text| text.lines().find(|line| line.starts_with("write_bytes")));
        (line.map(str::to_owned), self.cgroup.as_ref().and_then(text))
    }
}

/// What the kernel writes into a file at this moment.
fn text(file: &File) -> Option<String> {
    let mut text = vec![0; COUNTERS_MAX];
    let length = file.read_at(&mut text, 0).ok()?;
    text.truncate(length);
    String::from_utf8(text).ok()
}

/// Detects whether a VM writes to its disks.
pub struct Patience<'a> {
    counters: &'a WriteCounters,
    begun: Instant,
    last: (Option<String>, Option<String>),
    since: Instant,
}

impl<'a> Patience<'a> {
    /// For the VM with these counters.
    pub fn new(counters: &'a WriteCounters) -> Self {
        let now = Instant::now();
        Patience { counters, begun: now, last: (None, None), since: now }
    }

    /// Whether something was written in the last `stall`; with `forced` only up to [`FORCED_MAX`] altogether.
    pub fn lasts(&mut self, stall: Duration, forced: bool) -> bool {
        let now = self.counters.read();
        if now != self.last {
            (self.last, self.since) = (now, Instant::now());
        }
        self.since.elapsed() < stall && !(forced && self.begun.elapsed() >= FORCED_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn who_writes_is_waited_for() {
        let mut file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let counters = WriteCounters::open(std::process::id() as i32, None);
        let mut patience = Patience::new(&counters);
        assert!(patience.lasts(Duration::from_secs(60), true));
        std::thread::sleep(Duration::from_millis(5));
        file.write_all(&[1; 8192]).unwrap();
        assert!(patience.lasts(Duration::from_millis(4), false));
    }

    #[test]
    fn who_writes_nothing_is_given_up() {
        // No process has this number.
        let counters = WriteCounters::open(-1, None);
        let mut patience = Patience::new(&counters);
        assert!(patience.lasts(Duration::from_secs(60), false));
        std::thread::sleep(Duration::from_millis(5));
        assert!(!patience.lasts(Duration::from_millis(4), false));
    }
}
