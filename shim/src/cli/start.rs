//! `start`: starts the process of a created container.

use clap::Args;

use super::{Global, Outcome};
use crate::sandbox::protocol::Request;

#[derive(Args)]
pub struct Start {
    /// The container's name.
    id: String,
}

impl Start {
    pub fn run(&self, global: &Global) -> Outcome {
        global.host(&self.id)?.ask(&Request::Start)?;
        Ok(0)
    }
}
