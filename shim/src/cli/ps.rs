//! `ps` and `events`: what happens in a container.

use std::thread;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::list::align;
use super::{CliError, Global, Outcome, other, print};
use crate::sandbox::protocol::{Answer, Process, Request};

#[derive(Clone, Copy, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// The numbers alone.
    Json,
}

#[derive(Args)]
pub struct Ps {
    /// How it looks.
    #[arg(short, long, default_value = "table")]
    format: Format,
    /// The container's name.
    id: String,
    /// Options of ps(1), which the host cannot ask of the guest: accepted and not used.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

impl Ps {
    pub fn run(&self, global: &Global) -> Outcome {
        let (answer, _) = global.host(&self.id)?.ask(&Request::Processes)?;
        let Answer::Processes(processes) = answer else {
            return Err(CliError::Other("the host process gave a wrong answer".to_owned()));
        };
        let text = match self.format {
            Format::Json => {
                let pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
                format!("{}\n", serde_json::to_string(&pids).map_err(other)?)
            }
            Format::Table => table(&processes),
        };
        print(&text);
        Ok(0)
    }
}

fn table(processes: &[Process]) -> String {
    let mut rows = vec![["UID", "PID", "PPID", "TTY", "TIME", "CMD"].map(str::to_owned)];
    for process in processes {
        let seconds = process.cpu_milliseconds / 1000;
        rows.push([
            process.uid.to_string(),
            process.pid.to_string(),
            process.parent.to_string(),
            process.terminal.clone(),
            format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
            process.command.clone(),
        ]);
    }
    align(&rows)
}

#[derive(Args)]
pub struct Events {
    /// Print the counters once.
    #[arg(long)]
    stats: bool,
    /// How long to wait between two prints, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    interval: u64,
    /// The container's name.
    id: String,
}

/// "5" or, as runc writes it, "5s".
fn parse_seconds(text: &str) -> Result<u64, String> {
    text.trim_end_matches('s')
        .parse()
        .ok()
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| format!("{text:?} is no number of seconds"))
}

impl Events {
    pub fn run(&self, global: &Global) -> Outcome {
        loop {
            let (answer, _) = global.host(&self.id)?.ask(&Request::Stats)?;
            let Answer::Stats(stats) = answer else {
                return Err(CliError::Other("the host process gave a wrong answer".to_owned()));
            };
            print(&format!("{stats}\n"));
            if self.stats {
                return Ok(0);
            }
            thread::sleep(Duration::from_secs(self.interval));
        }
    }
}
