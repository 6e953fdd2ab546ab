//! Errors of libcontainer do not include their cause, which is only written to `tracing`. This subscriber
//! sends it to the agent.

use std::fmt::{Debug, Write};

use nix::errno::Errno;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::report::{Message, Reporter};

struct ToAgent(Reporter);

/// Sends errors of this process and those cloned from it from now on.
pub fn start(reporter: Reporter) {
    // Fails only if there is one already, and there is none.
    let _ = tracing::subscriber::set_global_default(ToAgent(reporter));
}

impl Subscriber for ToAgent {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() == Level::ERROR
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text::default();
        event.record(&mut text);
        self.0.send(&Message::Detail(text.message + &text.fields));
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, ", {name}: {}", described(format!("{value:?}"))),
        };
    }
}

/// libcontainer shows the name of an error number. Engines parse the error's text in lower case to detect a missing
/// file.
fn described(value: String) -> String {
    if !value.starts_with('E') {
        return value;
    }
    let mut all = (1..=libc::EHWPOISON).map(Errno::from_raw);
    let found = all.find(|errno| format!("{errno:?}") == value);
    found.map_or(value, |errno| errno.desc().to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::described;

    #[test]
    fn error_numbers_are_told_in_words() {
        assert_eq!(described("ENOENT".to_owned()), "no such file or directory");
        assert_eq!(described("ENOTDIR".to_owned()), "not a directory");
        for other in ["EUNHEARDOF", "\"ENOENT\"", "Exhausted", ""] {
            assert_eq!(described(other.to_owned()), other);
        }
    }
}
