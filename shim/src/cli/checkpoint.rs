//! `checkpoint` and `restore`: accepted by the parser, but not supported.

use clap::Args;

use super::{CliError, Outcome};

#[derive(Args)]
pub struct Unavailable {
    /// Options and ID as for runc and crun; ignored.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Unavailable {
    /// Always fails.
    pub fn run(&self, operation: &str) -> Outcome {
        let name = self.arguments.last().map(|name| format!(" of {name:?}")).unwrap_or_default();
        Err(CliError::Other(format!(
            "{operation}{name}: not supported yet; keep the container's data in a volume, and create the \
             container again"
        )))
    }
}
