//! `checkpoint` and `restore`: known, and refused.

use clap::Args;

use super::{CliError, Outcome};

#[derive(Args)]
pub struct Unavailable {
    /// Options and names as runc and crun have them; none has an effect.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

impl Unavailable {
    /// Refuses, whatever the arguments.
    pub fn run(&self, operation: &str) -> Outcome {
        let name = self.arguments.last().map(|name| format!(" of {name:?}")).unwrap_or_default();
        Err(CliError::Other(format!(
            "{operation}{name}: a container in a VM cannot be saved and restored yet; stop it, keep its data in \
             a volume, and create it again"
        )))
    }
}
