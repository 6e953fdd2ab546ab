//! The container's wall clock is the host's.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pouch_tests::{Bundle, Container, Invocation, eventually};

/// How far the clocks may be apart.
const TOLERANCE: f64 = 0.1;

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Whether the container's clock may be right: between two looks at the host's.
fn is_right(container: &Container) -> bool {
    let before = now();
    let time: f64 = container.sh("date +%s.%N").trim().parse().unwrap();
    (before - TOLERANCE..=now() + TOLERANCE).contains(&time)
}

/// A host's clock that is an hour ahead until this is dropped.
struct Ahead;

impl Ahead {
    fn set(difference: &str) {
        Invocation::of("date", ["--set", difference]).run().ok();
    }

    fn new() -> Self {
        Ahead::set("+1 hour");
        Ahead
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        Ahead::set("-1 hour");
    }
}

#[test]
fn the_clock_follows_the_hosts() {
    let container = Bundle::debian().args(["sleep", "100000"]).start();
    assert!(is_right(&container), "at the start");
    let ahead = Ahead::new();
    eventually("it is an hour ahead too", || is_right(&container));
    container.operation(&["pause"]).ok();
    std::thread::sleep(Duration::from_secs(1));
    drop(ahead);
    container.operation(&["resume"]).ok();
    eventually("it is back", || is_right(&container));
}
