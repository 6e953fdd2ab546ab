//! `pause` and `resume`.

use clap::Args;

use super::{Global, Outcome};
use crate::host::protocol::Request;

#[derive(Args)]
pub struct Pause {
    /// The container's ID.
    id: String,
}

#[derive(Args)]
pub struct Resume {
    /// The container's ID.
    id: String,
}

impl Pause {
    pub fn run(&self, global: &Global) -> Outcome {
        global.host(&self.id)?.ask(&Request::Pause)?;
        Ok(0)
    }
}

impl Resume {
    pub fn run(&self, global: &Global) -> Outcome {
        global.host(&self.id)?.ask(&Request::Resume)?;
        Ok(0)
    }
}
