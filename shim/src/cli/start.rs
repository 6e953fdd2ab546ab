//! `start`: starts the process of a created container.

use clap::Args;

use super::{CliError, Global, Outcome};
use crate::host::lifecycle;

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

/// Starts the container's process, then runs the hooks for that.
pub fn start(global: &Global, id: &str) -> Result<(), CliError> {
    global.own_dir(id)?;
    let dir = global.live(id)?;
    Ok(lifecycle::start(&dir, &global.log())?)
}
