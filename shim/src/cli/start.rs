//! `start`: starts the process of a created container.

use clap::Args;

use super::{CliError, Global, Outcome};
use crate::container::hooks::{self, Point};
use crate::errors::chain;
use crate::sandbox::protocol::Request;

#[derive(Args)]
pub struct Start {
    /// The container's name.
    id: String,
}

impl Start {
    pub fn run(&self, global: &Global) -> Outcome {
        start(global, &self.id)?;
        Ok(0)
    }
}

/// Starts the container's process, then runs the hooks for that.
pub fn start(global: &Global, id: &str) -> Result<(), CliError> {
    global.host(id)?.ask(&Request::Start)?;
    // A container that has ended and been deleted already has none.
    if let Ok((_, state)) = global.load(id) {
        hooks::run_all(Point::Poststart, &state, |error| global.log().warning(&chain(&error)));
    }
    Ok(())
}
