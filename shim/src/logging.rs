//! Error and warning messages: on standard error, and in the file that `--log` names.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use clap::ValueEnum;
use jiff::Timestamp;
use serde_json::json;

/// How lines in the log file look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// The text format of runc.
    #[default]
    Text,
    /// A JSON object on each line, as engines read it.
    Json,
}

/// Where errors go.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The file that `--log` names.
    pub file: Option<PathBuf>,
    /// Its format.
    pub format: LogFormat,
    /// The file, if it was opened in advance.
    opened: Option<Arc<File>>,
}

impl Log {
    /// A log in this file, if there is one.
    pub fn new(file: Option<PathBuf>, format: LogFormat) -> Self {
        Log { file, format, opened: None }
    }

    /// The same log, with its file open from now on: for a process that gives up the host's files.
    pub fn open(self) -> Self {
        // Errors are on standard error too.
        let opened = self.file.as_deref().and_then(|file| append(file).ok()).map(Arc::new);
        Log { opened, ..self }
    }

    /// Reports an error on standard error and in the file.
    pub fn error(&self, message: &str) {
        eprintln!("pouch-vm: error: {message}");
        self.write("error", message);
    }

    /// Writes a warning to the file only.
    pub fn warning(&self, message: &str) {
        self.write("warning", message);
    }

    fn write(&self, level: &str, message: &str) {
        let Some(path) = &self.file else { return };
        let time = rfc3339(SystemTime::now());
        let line = match self.format {
            LogFormat::Json => json!({"level": level, "msg": message, "time": time}).to_string(),
            LogFormat::Text => format!("time=\"{time}\" level={level} msg={message:?}"),
        };
        // The error is on standard error already, so failing to write the log is ignored.
        let _ = match &self.opened {
            Some(file) => writeln!(file.as_ref(), "{line}"),
            None => append(path).and_then(|mut file| writeln!(file, "{line}")),
        };
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// The time as RFC 3339 in UTC with nanoseconds, as OCI state files and engines write it.
pub fn rfc3339(time: SystemTime) -> String {
    // This cannot fail before the year 9999.
    format!("{:.9}", Timestamp::try_from(time).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn times_are_those_of_the_calendar() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::new(seconds, 5));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59.000000005Z");
        assert_eq!(at(951_868_799), "2000-02-29T23:59:59.000000005Z");
        assert_eq!(at(4_102_444_800), "2100-01-01T00:00:00.000000005Z");
    }

    #[test]
    fn the_log_is_one_json_object_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log.json");
        let log = Log::new(Some(file.clone()), LogFormat::Json);
        log.warning("say \"hi\"");
        let log = log.open();
        log.warning("again");
        let text = std::fs::read_to_string(file).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines[0]["msg"], "say \"hi\"");
        assert_eq!(lines[1]["level"], "warning");
    }
}
