//! `ps`: a container's processes.
//!
//! The table lists the processes in the guest. The JSON is for engines, which look the PIDs up on the host:
//! it has the PIDs of the host processes that represent the container's processes.

use clap::{Args, ValueEnum};

use super::list::align_rows;
use super::{CliError, Global, Outcome, other, print};
use crate::host::protocol::{Answer, Process, Request};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table of the processes in the guest.
    Table,
    /// PIDs of the container's processes on the host, for engines.
    Json,
}

#[derive(Args)]
pub struct Ps {
    /// Output format.
    #[arg(short, long, default_value = "table")]
    format: Format,
    /// The container's ID, then options of ps(1) for the table: -e, -f, -A, aux and the like show all columns; -o
    /// selects columns: pid, ppid, uid, user, tty, time, comm, args.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_names = ["ID", "PS-OPTIONS"])]
    words: Vec<String>,
}

impl Ps {
    pub fn run(&self, global: &Global) -> Outcome {
        let (id, options) =
            self.words.split_first().ok_or_else(|| CliError::Other("the container ID is missing".into()))?;
        let (format, options) = format_after_id(self.format, options)?;
        let text = if format == Format::Json {
            let (answer, _) = global.host(id)?.ask(&Request::HostProcesses)?;
            let Answer::HostProcesses(pids) = answer else { return Err(wrong_answer()) };
            format!("{}\n", serde_json::to_string(&pids).map_err(other)?)
        } else {
            let columns = columns(options)?;
            let (answer, _) = global.host(id)?.ask(&Request::Processes)?;
            let Answer::Processes(processes) = answer else { return Err(wrong_answer()) };
            table(&columns, &processes)
        };
        print(&text);
        Ok(0)
    }
}

fn wrong_answer() -> CliError {
    CliError::Other("unexpected response from the sandbox host process".to_owned())
}

/// `--format` may come after the id too.
fn format_after_id(format: Format, options: &[String]) -> Result<(Format, &[String]), CliError> {
    let (value, rest) = match options {
        [name, value, rest @ ..] if name == "--format" || (name == "-f" && is_format(value)) => {
            (value.as_str(), rest)
        }
        [first, rest @ ..] => match first.strip_prefix("--format=") {
            Some(value) => (value, rest),
            None => return Ok((format, options)),
        },
        [] => return Ok((format, options)),
    };
    let format = Format::from_str(value, false)
        .map_err(|_| CliError::Other(format!("--format {value:?} is neither table nor json")))?;
    Ok((format, rest))
}

fn is_format(text: &str) -> bool {
    Format::from_str(text, false).is_ok()
}

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Uid,
    Pid,
    Parent,
    Terminal,
    Time,
    Name,
    Arguments,
    Command,
}

const ALL: [Column; 6] =
    [Column::Uid, Column::Pid, Column::Parent, Column::Terminal, Column::Time, Column::Command];

impl Column {
    /// By the names of ps(1).
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "uid" | "user" | "euser" | "euid" | "ruser" | "ruid" => Column::Uid,
            "pid" | "tgid" => Column::Pid,
            "ppid" => Column::Parent,
            "tty" | "tt" | "tname" => Column::Terminal,
            "time" | "cputime" => Column::Time,
            "comm" | "ucmd" | "ucomm" => Column::Name,
            "args" | "command" => Column::Arguments,
            "cmd" => Column::Command,
            _ => return None,
        })
    }

    fn title(self) -> &'static str {
        match self {
            Column::Uid => "UID",
            Column::Pid => "PID",
            Column::Parent => "PPID",
            Column::Terminal => "TTY",
            Column::Time => "TIME",
            Column::Name | Column::Arguments => "COMMAND",
            Column::Command => "CMD",
        }
    }

    fn of(self, process: &Process) -> String {
        let seconds = process.cpu_milliseconds / 1000;
        match self {
            Column::Uid => process.uid.to_string(),
            Column::Pid => process.pid.to_string(),
            Column::Parent => process.parent.to_string(),
            Column::Terminal => process.terminal.clone(),
            Column::Time => {
                format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
            }
            Column::Name => {
                let program = process.command.split(' ').next().unwrap_or_default();
                program.rsplit('/').next().unwrap_or_default().to_owned()
            }
            Column::Arguments | Column::Command => process.command.clone(),
        }
    }
}

/// The columns that options of ps(1) ask for.
fn columns(options: &[String]) -> Result<Vec<Column>, CliError> {
    let mut chosen = Vec::new();
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let letters = option.trim_start_matches('-');
        let (selection, list) = letters.split_once('o').unwrap_or((letters, ""));
        if option.starts_with("--") || !selection.chars().all(|letter| "AaefFglux".contains(letter)) {
            return Err(refused(option));
        }
        if !letters.contains('o') {
            continue;
        }
        let list = if list.is_empty() { options.next().map_or("", String::as_str) } else { list };
        for name in list.split([',', ' ']).filter(|name| !name.is_empty()) {
            // A title of one's own: pid=PID.
            let name = name.split('=').next().unwrap_or_default();
            chosen.push(Column::parse(name).ok_or_else(|| refused(&format!("{option} {name}")))?);
        }
    }
    Ok(if chosen.is_empty() { ALL.to_vec() } else { chosen })
}

fn refused(option: &str) -> CliError {
    CliError::Other(format!(
        "the option {option:?} of ps is not supported for processes of the guest; use `exec ID ps`"
    ))
}

fn table(columns: &[Column], processes: &[Process]) -> String {
    let mut rows = vec![columns.iter().map(|column| column.title().to_owned()).collect::<Vec<_>>()];
    rows.extend(processes.iter().map(|process| columns.iter().map(|column| column.of(process)).collect()));
    align_rows(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &[&str]) -> Option<Vec<Column>> {
        columns(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>()).ok()
    }

    #[test]
    fn options_of_ps_choose_the_columns() {
        for all in [&[][..], &["-ef"], &["aux"], &["-e", "-f"], &["-A"]] {
            assert_eq!(parsed(all).as_deref(), Some(&ALL[..]), "{all:?}");
        }
        let some = Some(vec![Column::Pid, Column::Name]);
        for two in [&["-o", "pid,comm"][..], &["-eo", "pid,comm"], &["-opid,comm"], &["o", "pid=,comm=NAME"]]
        {
            assert_eq!(parsed(two), some, "{two:?}");
        }
        for unknown in [&["--forest"][..], &["-o", "pcpu"], &["-Z"], &["-p", "1"]] {
            assert_eq!(parsed(unknown), None, "{unknown:?}");
        }
    }

    #[test]
    fn the_format_may_come_after_the_id() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let of =
            |text: &str| format_after_id(Format::Table, &words(text)).map(|(f, rest)| (f, rest.len())).ok();
        assert!(of("--format json") == Some((Format::Json, 0)));
        assert!(of("-f json") == Some((Format::Json, 0)));
        assert!(of("--format=json") == Some((Format::Json, 0)));
        assert!(of("-f") == Some((Format::Table, 1)));
        assert!(of("--format xml").is_none());
    }
}
