//! `update`: new limits for a running container, inside its VM.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{CliError, Global, Outcome, other};
use crate::sandbox::protocol::Request;

#[derive(Args)]
pub struct Update {
    /// A file with an OCI `linux.resources` object; - is standard input.
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// CPU time in each period, in microseconds.
    #[arg(long, value_name = "USEC", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// The period, in microseconds.
    #[arg(long, value_name = "USEC")]
    cpu_period: Option<u64>,
    /// CPU weight against other containers.
    #[arg(long, value_name = "N")]
    cpu_share: Option<u64>,
    /// Memory, in bytes.
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    memory: Option<i64>,
    /// Memory with swap, in bytes.
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true)]
    memory_swap: Option<i64>,
    /// Processes.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// The container's name.
    id: String,
}

impl Update {
    pub fn run(&self, global: &Global) -> Outcome {
        let resources = match &self.resources {
            Some(path) => read(path)?,
            None => self.flag_resources(),
        };
        global.host(&self.id)?.ask(&Request::Update { resources })?;
        Ok(0)
    }

    fn flag_resources(&self) -> Value {
        let mut resources = json!({});
        let mut set = |section: &str, key: &str, value: Option<Value>| {
            if let Some(value) = value {
                resources[section][key] = value;
            }
        };
        set("cpu", "quota", self.cpu_quota.map(Value::from));
        set("cpu", "period", self.cpu_period.map(Value::from));
        set("cpu", "shares", self.cpu_share.map(Value::from));
        set("memory", "limit", self.memory.map(Value::from));
        set("memory", "swap", self.memory_swap.map(Value::from));
        set("pids", "limit", self.pids_limit.map(Value::from));
        resources
    }
}

fn read(path: &PathBuf) -> Result<Value, CliError> {
    let text = if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let text =
        text.map_err(|error| CliError::Other(format!("{} cannot be read: {error}", path.display())))?;
    serde_json::from_str(&text).map_err(other)
}
