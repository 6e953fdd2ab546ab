//! Standard streams and terminals.

pub mod relay;
pub mod signals;
pub mod terminal;

pub use relay::{OutputRelay, start_relays};
