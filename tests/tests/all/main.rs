//! The integration tests: one module a concern. They run in the testbed; see docs/testing.md.
#![allow(missing_docs, reason = "a test's name says what it is about")]

mod streams;
