//! Standard streams and terminals.

pub mod relay;
pub mod terminal;

pub use relay::{OutputRelay, relay_input, relay_output};
