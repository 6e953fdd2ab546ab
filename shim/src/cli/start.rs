//! `start`: starts the process of a created container.

use clap::Args;

use super::{CliError, Global, Outcome, other};
use crate::container::hooks::{self, Point};
use crate::host::protocol::Request;

#[derive(Args)]
pub struct Start {
    /// The container's ID.
    id: String,
}

impl Start {
    pub fn run(&self, global: &Global) -> Outcome {
        start(global, &self.id)?;
        Ok(0)
    }
}

/// Starts the container's process, then runs the hooks for that. If one fails, the container is
/// stopped and removed (runtime.md, "Lifecycle", since version 1.3).
pub fn start(global: &Global, id: &str) -> Result<(), CliError> {
    global.host(id)?.ask(&Request::Start)?;
    // A container that has ended and been deleted already has none.
    let Ok((_, state)) = global.load(id) else { return Ok(()) };
    hooks::run(Point::Poststart, &state).map_err(|error| {
        let failed = other(error);
        match super::delete::delete(global, id, true) {
            Ok(()) => failed,
            Err(error) => CliError::Other(format!("{failed}; {error}")),
        }
    })
}
