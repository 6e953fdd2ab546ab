//! `features`: prints what this runtime supports.

use clap::Args;

use super::{Outcome, other, print};
use crate::container::features;

#[derive(Args)]
pub struct Features {}

impl Features {
    /// Prints the document.
    pub fn run(&self) -> Outcome {
        let text = serde_json::to_string_pretty(&features::document()).map_err(other)?;
        print(&format!("{text}\n"));
        Ok(0)
    }
}
