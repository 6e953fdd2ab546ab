//! The guest's wall clock.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use ttrpc::proto::Code;

use crate::error::{Coded, RequestError};

/// Offsets up to this are slewed, so that the clock does not jump for programs. The kernel slews by 500 ppm, which
/// is 30 ms in each minute between two checks of the host.
const SLEW_MAX: Duration = Duration::from_millis(60);
const NANOSECONDS: i64 = 1_000_000_000;

/// Why the clock could not be set.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The kernel refused the time.
    #[error("time.nanoseconds: the kernel refused it")]
    Set(#[source] nix::Error),
    /// The kernel refused the offset.
    #[error("offset_nanoseconds: the kernel refused it")]
    Adjust(#[source] io::Error),
}

impl Coded for ClockError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Set(_) | Self::Adjust(_) => Code::INTERNAL,
        }
    }
}

/// Sets the wall clock.
///
/// # Errors
/// The time is before 1970, or the kernel refuses it.
pub fn set(nanoseconds: i64) -> Result<(), ClockError> {
    if nanoseconds <= 0 {
        return Err(RequestError::new("time.nanoseconds", "must be after 1970").into());
    }
    let time = TimeSpec::from(Duration::from_nanos(nanoseconds.unsigned_abs()));
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(ClockError::Set)
}

/// Adjusts the wall clock by an offset, at once or, if it is small, gradually; returns the time.
///
/// # Errors
/// The kernel refuses it.
pub fn adjust(offset: i64) -> Result<i64, ClockError> {
    if offset != 0 {
        // The rest of an earlier slew is dropped, because the offset was measured with it.
        let slew = if u128::from(offset.unsigned_abs()) <= SLEW_MAX.as_nanos() { offset } else { 0 };
        apply(slewing(slew)).map_err(ClockError::Adjust)?;
        if slew == 0 {
            apply(stepping(offset)).map_err(ClockError::Adjust)?;
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(i64::try_from(now.as_nanos()).unwrap_or(i64::MAX))
}

fn apply(mut change: libc::timex) -> io::Result<()> {
    // SAFETY: the kernel reads and writes the one structure.
    let result = unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut change) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn unchanged() -> libc::timex {
    // SAFETY: a timex is plain data, for which zeros are valid: they change nothing.
    unsafe { std::mem::zeroed() }
}

/// As adjtime(3) does.
fn slewing(offset: i64) -> libc::timex {
    let mut change = unchanged();
    change.modes = libc::ADJ_OFFSET_SINGLESHOT;
    change.offset = offset / 1000;
    change
}

fn stepping(offset: i64) -> libc::timex {
    let mut change = unchanged();
    change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    change.time.tv_sec = offset.div_euclid(NANOSECONDS);
    // With ADJ_NANO these are nanoseconds, and never negative.
    change.time.tv_usec = offset.rem_euclid(NANOSECONDS);
    change
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_back_has_a_positive_fraction() {
        let time = |offset| (stepping(offset).time.tv_sec, stepping(offset).time.tv_usec);
        assert_eq!(time(-1), (-1, 999_999_999));
        assert_eq!(time(3_000_000_001), (3, 1));
    }

    #[test]
    fn no_offset_only_tells_the_time() {
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
        let told = adjust(0).unwrap();
        assert!((before..before + 60 * NANOSECONDS).contains(&told));
    }

    #[test]
    fn a_bad_time_is_named() {
        let text = pouch_errors::chain(&set(-1).unwrap_err());
        assert!(text.starts_with("time.nanoseconds: "), "{text}");
    }
}
