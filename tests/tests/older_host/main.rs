//! The tests of a host with an older kernel, that of Debian bookworm, and with cgroup v1. The file's name
//! sends them to such a testbed (tests/nextest-runner).
#![allow(missing_docs, reason = "a test's name says what it is about")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is test code, which fails by panicking")]

mod cgroup_v1;
mod containers;
mod engines;
