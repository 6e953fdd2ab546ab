//! Common code of the integration tests.
//!
//! The tests use an OCI runtime only through its command line, as root, in the testbed. The runtime is
//! `pouch-vm`, or the one that `POUCH_RUNTIME` names. What a test asks of `pouch-vm` must be true of `runc`
//! too, unless it concerns the VM. So running the tests with `runc` shows whether they are right.
//!
//! Everything here fails by panicking. No test depends on the speed of the machine: the only time limits are
//! [`HANG`] and nextest's own, which detect hangs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is test code, which fails by panicking")]

pub mod bundle;
pub mod container;
pub mod containerd;
pub mod cri;
pub mod differences;
pub mod engine;
pub mod installation;
pub mod invocation;
pub mod leftovers;
pub mod own_mount;
pub mod processes;
pub mod terminal;

use std::time::{Duration, Instant};

pub use bundle::Bundle;
pub use container::Container;
pub use differences::Difference;
pub use engine::{Engine, EngineContainer};
pub use invocation::{Invocation, Output};
pub use leftovers::Leftovers;

/// No single command takes that long, even in an emulator on a busy machine.
pub const HANG: Duration = Duration::from_secs(300);

/// How long a loop waits before it looks again.
const TICK: Duration = Duration::from_millis(20);

/// The runtime's program.
pub fn runtime() -> String {
    std::env::var("POUCH_RUNTIME").unwrap_or_else(|_| "pouch-vm".to_owned())
}

/// Whether the runtime is pouch-vm, and so has a VM.
pub fn has_vm() -> bool {
    runtime().ends_with("pouch-vm")
}

/// Whether numbers are those of the issue, where others do in an emulator: nextest's profile `long`.
pub fn long() -> bool {
    std::env::var("NEXTEST_PROFILE").is_ok_and(|profile| profile == "long")
}

/// Waits until `condition` holds.
///
/// # Panics
/// After [`HANG`], with `what` was awaited.
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_every(TICK, what, condition);
}

/// As [`eventually`], with a longer pause: for a condition that takes the processor's time to look at.
///
/// # Panics
/// After [`HANG`], with `what` was awaited.
pub fn eventually_every(pause: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(pause);
    }
}

/// Ends a test that only a runtime with a VM can pass.
#[macro_export]
macro_rules! vm_only {
    () => {
        if !$crate::has_vm() {
            eprintln!("not for {}: it has no VM", $crate::runtime());
            return;
        }
    };
}
