//! The integration tests: one module a concern. They run in the testbed; see docs/testing.md.
#![allow(missing_docs, reason = "a test's name says what it is about")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is test code, which fails by panicking")]

mod bad_input;
mod clock;
mod command_line;
mod events;
mod exec;
mod faults;
mod filesystem;
mod guest;
mod hooks;
mod host_faults;
mod lifecycle;
mod many;
mod metrics;
mod network;
mod operations;
mod process;
mod shared_files;
mod storage;
mod streams;
mod terminal;
mod update;
mod upgrade;
mod users;
mod workloads;
