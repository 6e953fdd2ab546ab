//! Why a request failed, as the user is told.

use pouch_errors::chain;
use serde::{Deserialize, Serialize};

/// Characters of a text that is not trusted.
const MAX_TEXT: usize = 2000;

/// A text of a guest, or of a process that its guest may have taken over, fit for terminals and logs: bounded, without
/// control characters.
pub fn printable(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

/// A failure, which is sent from process to process as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A sentence.
    pub message: String,
    /// The exit status: 127 for a command that is not found, 126 for one that cannot be executed,
    /// 1 for other errors.
    pub status: u8,
}

impl Failure {
    /// An ordinary failure.
    pub fn new(message: impl Into<String>) -> Self {
        Failure { message: message.into(), status: 1 }
    }

    /// An ordinary failure, with its sources.
    pub fn of(error: impl std::error::Error + 'static) -> Self {
        Failure::new(chain(&error))
    }
}
