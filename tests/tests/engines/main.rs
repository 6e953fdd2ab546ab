//! The tests of container engines: real dockerd and real podman with this runtime, one module a concern,
//! each test for both engines where both can do it. They run in the testbed; see docs/testing.md.
#![allow(missing_docs, reason = "a test's name says what it is about")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is test code, which fails by panicking")]

mod cases;
mod compose;
mod exec;
mod faults;
mod files;
mod kernel;
mod lifecycle;
mod many;
mod network;
mod networks;
mod refused;
mod resources;
mod rich;
mod running;
mod settings;
mod shared_files;
mod sharing;
mod storage;
mod systemd;
mod terminals;
mod upgrade;
mod users;
mod watching;
