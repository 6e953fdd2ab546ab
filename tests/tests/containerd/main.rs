//! The tests of the shim for containerd: a real containerd with `ctr`, one module a concern. They run in the testbed;
//! see docs/testing.md.
#![allow(missing_docs, reason = "a test's name says what it is about")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is test code, which fails by panicking")]

mod docker;
mod events;
mod exec;
mod faults;
mod lifecycle;
mod options;
mod pods_long;
mod refused;
mod shim;
mod streams;

use pouch_tests::Leftovers;

/// Runs a test; nothing of its containers may be left behind.
#[track_caller]
fn check(test: impl FnOnce()) {
    let picture = Leftovers::of_containers();
    test();
    picture.check();
}
