//! Why a request failed, as the user is told.

use pouch_errors::chain;
use serde::{Deserialize, Serialize};

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
