//! The VMM's log: lines on standard error, limited in number so that a guest cannot fill the host's disk.

use std::fmt::Arguments;
use std::io::Write;
use std::sync::Mutex;
use std::time::Instant;

use crate::bus::lock;

/// Lines that may be written at once.
const BURST: u32 = 50;
/// Lines that may be written each second after that.
const PER_SECOND: u32 = 1;
/// Lines that may be written in all: what a guest provokes for months is no news.
const IN_ALL: u32 = 100_000;

struct Budget {
    left: u32,
    in_all: u32,
    filled: Option<Instant>,
    dropped: u64,
}

static BUDGET: Mutex<Budget> = Mutex::new(Budget { left: BURST, in_all: IN_ALL, filled: None, dropped: 0 });

impl Budget {
    /// Whether one more line may be written at `now`.
    fn take(&mut self, now: Instant) -> bool {
        let filled = *self.filled.get_or_insert(now);
        let seconds = u32::try_from(now.duration_since(filled).as_secs()).unwrap_or(u32::MAX);
        if seconds > 0 {
            self.left = self.left.saturating_add(seconds.saturating_mul(PER_SECOND)).min(BURST);
            self.filled = Some(now);
        }
        if self.left == 0 || self.in_all == 0 {
            self.dropped += 1;
            return false;
        }
        self.left -= 1;
        self.in_all -= 1;
        true
    }
}

/// Writes one line, unless too many were written lately.
pub fn line(text: Arguments<'_>) {
    let mut budget = lock(&BUDGET);
    if budget.take(Instant::now()) {
        let dropped = std::mem::take(&mut budget.dropped);
        // A log that cannot be written must not end the VM.
        let _ = if dropped == 0 {
            writeln!(std::io::stderr(), "pouch-vmm: {text}")
        } else {
            writeln!(std::io::stderr(), "pouch-vmm: {text} ({dropped} lines before this one were dropped)")
        };
    }
}

/// Writes a formatted line to the VMM's log.
#[macro_export]
macro_rules! log_line {
    ($($argument:tt)*) => { $crate::log::line(format_args!($($argument)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let mut budget = Budget { left: BURST, in_all: IN_ALL, filled: None, dropped: 0 };
        let start = Instant::now();
        let written = (0..1000).filter(|_| budget.take(start)).count();
        assert_eq!(written, BURST as usize);
        assert_eq!(budget.dropped, 1000 - u64::from(BURST));
        assert!(budget.take(start + Duration::from_secs(1)));
        assert!(!budget.take(start + Duration::from_secs(1)));
    }

    #[test]
    fn a_drizzle_ends_some_day() {
        let mut budget = Budget { left: BURST, in_all: IN_ALL, filled: None, dropped: 0 };
        let start = Instant::now();
        let written =
            (0..2 * u64::from(IN_ALL)).filter(|&s| budget.take(start + Duration::from_secs(s))).count();
        assert_eq!(written, IN_ALL as usize);
    }
}
