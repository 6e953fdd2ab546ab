//! Pods, as the kubelet makes them: the CRI plugin of a real containerd, one module a concern. They run in the testbed;
//! see docs/testing.md.
#![allow(missing_docs, reason = "a test's name says what it is about")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is test code, which fails by panicking")]

/// Makes tests of functions that take a [`Node`]. Those after `both` run with containerd 1.7 and 2.1, the others with
/// 1.7 only; the profile `long` runs them with 2.1 too.
macro_rules! tests {
    (both: $($both:ident),* $(,)?; $($name:ident),* $(,)?) => {
        mod containerd_1_7 {
            $(#[test] fn $both() { crate::check(pouch_tests::cri::Version::V1_7, super::$both); })*
            $(#[test] fn $name() { crate::check(pouch_tests::cri::Version::V1_7, super::$name); })*
        }
        mod containerd_2_1 {
            $(#[test] fn $both() { crate::check(pouch_tests::cri::Version::V2_1, super::$both); })*
        }
        mod containerd_2_1_long {
            $(#[test] fn $name() { crate::check(pouch_tests::cri::Version::V2_1, super::$name); })*
        }
    };
}

mod command_line;
mod containers;
mod faults;
mod many;
mod pods;
mod sandbox_api;
mod snapshotters;
mod streams;
mod volumes;

use pouch_tests::Leftovers;
use pouch_tests::cri::{Node, Version};

/// Runs a test; nothing of its pods may be left behind.
#[track_caller]
fn check(version: Version, test: impl FnOnce(Node)) {
    check_on(Node::of(version), test);
}

#[track_caller]
fn check_on(node: Node, test: impl FnOnce(Node)) {
    let picture = Leftovers::of_containers();
    test(node);
    picture.check();
}
