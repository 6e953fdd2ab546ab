//! How long a guest may take to write to its disk when its VM ends.
//!
//! The container's last writes are in guest memory. Writing them may take long, with a slow disk or under a
//! limit. So the guest may continue as long as something is written.

use std::fs;
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

/// Detects whether a VM writes to its disks.
pub struct Patience {
    vmm: i32,
    cgroup: Option<Cgroup>,
    begun: Instant,
    last: (Option<String>, Option<String>),
    since: Instant,
}

impl Patience {
    /// For the VMM with this number, in this cgroup.
    pub fn new(vmm: i32, cgroup: Option<Cgroup>) -> Self {
        let now = Instant::now();
        Patience { vmm, cgroup, begun: now, last: (None, None), since: now }
    }

    /// Whether something was written in the last `stall`; with `forced` only up to [`FORCED_MAX`] altogether.
    pub fn lasts(&mut self, stall: Duration, forced: bool) -> bool {
        let written = fs::read_to_string(format!("/proc/{}/io", self.vmm)).ok();
        let line =
            written.as_ref().and_then(|text| text.lines().find(|line| line.starts_with("write_bytes")));
        // What is in the host's page cache already, and what goes from there to the disk.
        let now = (line.map(str::to_owned), self.cgroup.as_ref().and_then(Cgroup::disk_statistics));
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
        let mut patience = Patience::new(std::process::id() as i32, None);
        assert!(patience.lasts(Duration::from_secs(60), true));
        std::thread::sleep(Duration::from_millis(5));
        file.write_all(&[1; 8192]).unwrap();
        assert!(patience.lasts(Duration::from_millis(4), false));
    }

    #[test]
    fn who_writes_nothing_is_given_up() {
        // No process has this number.
        let mut patience = Patience::new(-1, None);
        assert!(patience.lasts(Duration::from_secs(60), false));
        std::thread::sleep(Duration::from_millis(5));
        assert!(!patience.lasts(Duration::from_millis(4), false));
    }
}
