//! `state`: the container's state as the OCI runtime specification has it (runtime.md, "State").

use clap::Args;
use serde_json::{Value, json};

use super::{Global, Outcome, other, print};
use crate::container::state::OCI_VERSION;
use crate::container::{State, Status};

#[derive(Args)]
pub struct PrintState {
    /// The container's name.
    id: String,
}

impl PrintState {
    pub fn run(&self, global: &Global) -> Outcome {
        let (_, state) = global.load(&self.id)?;
        let text = serde_json::to_string_pretty(&to_json(&state)).map_err(other)?;
        print(&format!("{text}\n"));
        Ok(0)
    }
}

/// The state with the members that runc adds.
pub fn to_json(state: &State) -> Value {
    let pid = match state.status {
        Status::Stopped => 0,
        _ => state.host.map_or(0, |host| host.pid),
    };
    json!({
        "ociVersion": OCI_VERSION,
        "id": state.id,
        "pid": pid,
        "status": state.status,
        "bundle": state.bundle,
        "rootfs": state.rootfs,
        "created": state.created,
        "annotations": state.annotations,
        "owner": state.owner,
    })
}
