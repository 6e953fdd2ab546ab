//! Conformance to the OCI runtime specification, versions 1.2 and 1.3: what it says that a runtime
//! MUST do, as far as it can be observed from outside.
//!
//! A test is a section of a document; its requirements are checked one after the other, each by name,
//! and all failures of a section are reported together. What a runtime is known not to meet stands
//! beside the requirement with the reason, and must then really not be met. `docs/conformance.md` is
//! made from what the tests print; it says how.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "this is test code, which fails by panicking")]

mod config;
mod config_hooks;
mod config_linux;
mod config_linux_resources;
mod config_mounts;
mod config_process;
mod features;
mod requirements;
mod runtime;
mod runtime_linux;
