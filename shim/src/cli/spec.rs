//! `spec`: writes an example specification.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::{CliError, Outcome, other};
use crate::container::bundle::CONFIG_FILE;
use crate::container::default_spec::default_spec;

#[derive(Args)]
pub struct Spec {
    /// The bundle directory.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
}

impl Spec {
    pub fn run(&self) -> Outcome {
        let path = self.bundle.join(CONFIG_FILE);
        let mut text = serde_json::to_string_pretty(&default_spec()).map_err(other)?;
        text.push('\n');
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| CliError::Other(format!("{} could not be written: {error}", path.display())))?;
        Ok(0)
    }
}
