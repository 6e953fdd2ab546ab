//! `state`: the container's state as the OCI runtime specification has it (runtime.md, "State").

use clap::Args;

use super::{Global, Outcome, other, print};

#[derive(Args)]
pub struct PrintState {
    /// The container's ID.
    id: String,
}

impl PrintState {
    pub fn run(&self, global: &Global) -> Outcome {
        let (_, state) = global.load(&self.id)?;
        let text = serde_json::to_string_pretty(&state.to_oci()).map_err(other)?;
        print(&format!("{text}\n"));
        Ok(0)
    }
}
