//! How errors are shown.

pub use pouch_protocol::chain;
