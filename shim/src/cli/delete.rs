//! `delete`: removes a container and everything that it left on the host.

use clap::Args;

use super::{CliError, Global, Outcome, other};
use crate::host::delete;

#[derive(Args)]
pub struct Delete {
    /// Remove the container in any state; a container that does not exist is not an error.
    #[arg(short, long)]
    force: bool,
    /// The container's ID.
    id: String,
}

impl Delete {
    pub fn run(&self, global: &Global) -> Outcome {
        delete(global, &self.id, self.force)?;
        Ok(0)
    }
}

/// Removes the container; with `force` whatever its state.
pub fn delete(global: &Global, id: &str, force: bool) -> Result<(), CliError> {
    delete::delete(&global.own_dir(id)?, &global.log(), force).map_err(other)
}
