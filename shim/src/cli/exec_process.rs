//! What `exec` starts: the OCI `process` object, from a file or from flags.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{CliError, other};
use crate::container::bundle::drop_unknown_capabilities;
use crate::container::{Bundle, State, limits};
use crate::logging::Log;

/// Labels of the host's security modules, which confine a process of the host.
const LABELS: [&str; 2] = ["apparmorProfile", "selinuxLabel"];

#[derive(Args)]
pub struct ProcessOptions {
    /// Read an OCI `process` object from this file, instead of using the other flags.
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// The working directory.
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Set an environment variable; can be repeated.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Allocate a terminal.
    #[arg(short, long)]
    tty: bool,
    /// The user, as UID or UID:GID.
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Add a supplementary group; can be repeated.
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Add a capability to those of the container; can be repeated.
    #[arg(short = 'c', long, value_name = "CAP")]
    cap: Vec<String>,
    /// Set no_new_privs: the process cannot gain privileges.
    #[arg(long)]
    no_new_privs: bool,
    /// Ignored: the VM confines the process, not AppArmor.
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Ignored: the VM confines the process, not SELinux.
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
}

impl ProcessOptions {
    /// The object, and whether it asks for a terminal.
    pub fn build(&self, command: &[String], state: &State, log: &Log) -> Result<(Value, bool), CliError> {
        let mut process = match &self.process {
            Some(path) => {
                let mut process = read(path)?;
                drop_unknown_capabilities(&mut process).iter().for_each(|warning| log.warning(warning));
                process
            }
            None => self.of_flags(command, state)?,
        };
        limits::inherit_in(&mut process);
        if let Some(members) = process.as_object_mut() {
            for label in LABELS {
                // The container's own was told of when it was created.
                let asked =
                    members.remove(label).and_then(|value| value.as_str().map(|text| !text.is_empty()));
                if asked == Some(true) && self.process.is_some() {
                    log.warning(&format!("process.{label} has no effect: the VM confines the container"));
                }
            }
        }
        for (option, value) in [("--apparmor", &self.apparmor), ("--process-label", &self.process_label)] {
            if value.is_some() {
                log.warning(&format!("{option} has no effect: the VM confines the container"));
            }
        }
        let terminal = match &process["terminal"] {
            Value::Null => false,
            Value::Bool(terminal) => *terminal,
            other => return Err(CliError::Other(format!("process.terminal is {other}, not true or false"))),
        };
        Ok((process, terminal))
    }

    fn of_flags(&self, command: &[String], state: &State) -> Result<Value, CliError> {
        if command.is_empty() {
            return Err(CliError::Other("no command is given".to_owned()));
        }
        let bundle = Bundle::load(&state.bundle).map_err(other)?;
        let mut process = serde_json::to_value(bundle.process()).map_err(other)?;
        process["args"] = json!(command);
        process["terminal"] = json!(self.tty);
        // That of the container's own terminal.
        process.as_object_mut().map(|members| members.remove("consoleSize"));
        if let Some(cwd) = &self.cwd {
            process["cwd"] = json!(cwd);
        }
        let mut env = process["env"].as_array().cloned().unwrap_or_default();
        env.extend(self.env.iter().map(|variable| json!(variable)));
        process["env"] = Value::Array(env);
        if let Some(user) = &self.user {
            // What it does not name stays as the container has it.
            let (uid, gid) = parse_user(user)?;
            process["user"]["uid"] = json!(uid);
            if let Some(gid) = gid {
                process["user"]["gid"] = json!(gid);
            }
        }
        if !self.additional_gids.is_empty() {
            let mut groups = process["user"]["additionalGids"].as_array().cloned().unwrap_or_default();
            groups.extend(self.additional_gids.iter().map(|gid| json!(gid)));
            process["user"]["additionalGids"] = Value::Array(groups);
        }
        if self.no_new_privs {
            process["noNewPrivileges"] = json!(true);
        }
        self.add_capabilities(&mut process);
        Ok(process)
    }

    fn add_capabilities(&self, process: &mut Value) {
        for set in ["bounding", "effective", "permitted"] {
            for capability in &self.cap {
                let name = capability.to_ascii_uppercase();
                let name = if name.starts_with("CAP_") { name } else { format!("CAP_{name}") };
                let list = &mut process["capabilities"][set];
                if !list.is_array() {
                    *list = json!([]);
                }
                if let Some(list) = list.as_array_mut() {
                    list.push(json!(name));
                }
            }
        }
    }
}

/// The object in a file.
fn read(path: &PathBuf) -> Result<Value, CliError> {
    let error = |text: String| CliError::Other(format!("--process {} {text}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|why| error(format!("cannot be read: {why}")))?;
    let value: Value = serde_json::from_str(&text).map_err(|why| error(format!("is not valid: {why}")))?;
    if !value.is_object() {
        return Err(error("is not valid: it is not a JSON object".to_owned()));
    }
    Ok(value)
}

/// "1000" or "1000:1000".
fn parse_user(text: &str) -> Result<(u32, Option<u32>), CliError> {
    let number = |text: &str| text.parse().ok();
    let parsed = match text.split_once(':') {
        Some((uid, gid)) => number(uid).zip(number(gid)).map(|(uid, gid)| (uid, Some(gid))),
        None => number(text).map(|uid| (uid, None)),
    };
    parsed.ok_or_else(|| CliError::Other(format!("--user {text:?} is not UID or UID:GID in numbers")))
}
