//! Logging to /dev/kmsg, at the level that the kernel command line names (`pouch.log=debug`).

use std::fs::File;
use std::io::Write;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// One message of /dev/kmsg is at most this long; the kernel refuses more with EINVAL.
const MESSAGE_MAX: usize = 900;

static KMSG: OnceLock<File> = OnceLock::new();

struct KernelLog;

impl Log for KernelLog {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        let Some(mut file) = KMSG.get() else { return };
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = format_message(record.level(), &record.args().to_string());
        // If the kernel log cannot be written, the message is lost.
        let _ = file.write_all(message.as_bytes());
    }

    fn flush(&self) {}
}

/// The kernel's priority prefix, our name, and the text in one line of bounded length.
fn format_message(level: Level, text: &str) -> String {
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let mut message = format!("<{priority}>pouch-agent: {}", text.replace('\n', " | "));
    if message.len() > MESSAGE_MAX {
        let mut end = MESSAGE_MAX;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
    }
    message.push('\n');
    message
}

/// The level that a kernel command line asks for; warnings where it says nothing.
pub fn level_of(command_line: &str) -> LevelFilter {
    command_line
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("pouch.log="))
        .next_back()
        .and_then(|level| level.parse().ok())
        .unwrap_or(LevelFilter::Warn)
}

/// Starts logging. Needs /dev/kmsg; without it nothing is logged.
pub fn start(level: LevelFilter) {
    if let Ok(file) = File::options().write(true).open("/dev/kmsg")
        && KMSG.set(file).is_ok()
        && log::set_logger(&KernelLog).is_ok()
    {
        log::set_max_level(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_level_on_the_command_line_counts() {
        assert_eq!(level_of("quiet pouch.log=info a=b pouch.log=debug"), LevelFilter::Debug);
        assert_eq!(level_of("pouch.log=nonsense"), LevelFilter::Warn);
        assert_eq!(level_of(""), LevelFilter::Warn);
    }

    #[test]
    fn messages_are_one_line_and_bounded() {
        assert_eq!(format_message(Level::Error, "a\nb"), "<3>pouch-agent: a | b\n");
        let long = format_message(Level::Info, &"ä".repeat(2000));
        assert!(long.len() <= MESSAGE_MAX + 1 && long.ends_with('\n'));
    }
}
