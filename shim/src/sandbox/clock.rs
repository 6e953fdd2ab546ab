//! Synchronises the guest's wall clock with the host's.
//!
//! The guest's clock follows the host's oscillator. It does not follow corrections by NTP or changes of the
//! host's clock. So the two are compared once a minute and whenever the host's clock is set, which includes a
//! resume from suspend.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::Sandbox;
use super::agent::{Agent, AgentError};

/// Interval between two comparisons. A clock that is off by 500 ppm, the most that NTP corrects, is off by 30 ms then.
const PERIOD: Duration = Duration::from_secs(60);
/// Delay of the first comparison, and of the next one if the guest answered too slowly for the last.
const SOON: Duration = Duration::from_secs(5);
/// Requests for each comparison; the fastest response is used.
const TRIES: usize = 4;
/// Half the round-trip time: the maximum error of a comparison.
const GOOD_ERROR: i64 = 2_000_000;
const BEARABLE_ERROR: i64 = 40_000_000;

/// Corrects the guest's clock until the process ends.
///
/// # Errors
/// If a timer or a thread cannot be created.
pub fn follow(sandbox: Arc<Sandbox>) -> io::Result<()> {
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC)?;
    let run = move || {
        // The clock was set a moment ago.
        let mut wait = SOON;
        loop {
            if let Err(error) = sleep(&timer, wait) {
                eprintln!(
                    "pouch-vm: warning: the guest's clock is no longer synchronised with the host's: {error}"
                );
                return;
            }
            // An agent that does not answer may be busy, or about to end.
            let error = correct(&sandbox.agent).unwrap_or(i64::MAX);
            wait = if error <= BEARABLE_ERROR { PERIOD } else { SOON };
        }
    };
    thread::Builder::new().name("clock".to_owned()).stack_size(256 * 1024).spawn(run)?;
    Ok(())
}
/// Waits for so long, or until the host's clock is set.
fn sleep(timer: &TimerFd, wait: Duration) -> Result<(), Errno> {
    let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + wait;
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    match timer.set(Expiration::OneShot(TimeSpec::from(until)), flags) {
        // The clock was set since the last wait.
        Err(Errno::ECANCELED) => Ok(()),
        Err(error) => Err(error),
        Ok(()) => timer.wait(),
    }
}

/// What the guest's clock shows, compared with the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Comparison {
    /// By how much the guest's is behind, in nanoseconds.
    behind: i64,
    /// The maximum error: half the round-trip time.
    error: i64,
}

impl Comparison {
    /// Of times in nanoseconds: the host's before and after, and the guest's between them.
    fn of(before: i64, guest: i64, after: i64) -> Self {
        let error = after.saturating_sub(before).max(0) / 2;
        Comparison { behind: before.saturating_add(error).saturating_sub(guest), error }
    }

    /// The offset by which to correct the guest's clock; none if it is within the error.
    fn offset(self) -> Option<i64> {
        (self.behind.saturating_abs() > self.error.saturating_add(GOOD_ERROR)).then_some(self.behind)
    }
}

/// Compares the clocks and corrects the guest's; returns the maximum error of the comparison.
fn correct(agent: &Agent) -> Result<i64, AgentError> {
    let mut best = compare(agent)?;
    for _ in 1..TRIES {
        if best.error <= GOOD_ERROR {
            break;
        }
        let next = compare(agent)?;
        if next.error < best.error {
            best = next;
        }
    }
    if let Some(offset) = best.offset() {
        agent.adjust_time(offset)?;
    }
    Ok(best.error)
}

fn compare(agent: &Agent) -> Result<Comparison, AgentError> {
    let before = now();
    let guest = agent.adjust_time(0)?;
    Ok(Comparison::of(before, guest, now()))
}

/// Nanoseconds since 1970.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    #[test]
    fn the_guest_is_taken_to_have_looked_halfway() {
        assert_eq!(Comparison::of(100, 90, 120), Comparison { behind: 20, error: 10 });
        let offset = |guest| Comparison::of(0, guest, 20 * MS).offset();
        assert_eq!(offset(-3_600_000 * MS), Some(3_600_010 * MS));
        assert_eq!(offset(100 * MS), Some(-90 * MS));
        for maybe_right in [0, 10 * MS, 20 * MS] {
            assert_eq!(offset(maybe_right), None);
        }
    }

    #[test]
    fn a_small_offset_is_corrected_as_far_as_it_is_certain() {
        // The guest answered within a tenth of a millisecond.
        let offset = |behind: i64| Comparison::of(0, MS / 20 - behind, MS / 10).offset();
        for behind in [3 * MS, 30 * MS, -30 * MS, 2_000 * MS, -2_000 * MS] {
            assert_eq!(offset(behind), Some(behind));
        }
        assert_eq!([offset(MS), offset(-2 * MS), offset(0)], [None; 3]);
    }

    #[test]
    fn no_answer_of_a_guest_overflows() {
        for guest in [i64::MIN, i64::MAX] {
            assert!(Comparison::of(now(), guest, now()).offset().is_some());
        }
        assert_eq!(Comparison::of(5, 5, 0).error, 0, "the host's clock was set back meanwhile");
    }

    #[test]
    fn a_wait_ends_in_time() {
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_CLOEXEC).unwrap();
        let begun = std::time::Instant::now();
        sleep(&timer, Duration::from_millis(20)).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(19));
    }
}
