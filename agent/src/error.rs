//! Converts errors of the agent's parts into statuses for the host.

use std::error::Error as StdError;

use pouch_errors::chain;
use pouch_protocol::agent::command_error::Kind;
use pouch_protocol::with_command_error;
use ttrpc::proto::Code;

/// An error that knows which status it is to the host.
pub trait Coded: StdError {
    /// The status code; the message is the error's text with those of its sources.
    fn code(&self) -> Code;

    /// Why the command cannot be executed, if that is what went wrong.
    fn command_error(&self) -> Option<Kind> {
        None
    }
}

/// The status that answers a request which failed with `error`.
pub fn status<E: Coded + 'static>(error: E) -> ttrpc::Error {
    let text = chain(&error);
    log::info!("refused: {text}");
    let status = ttrpc::get_status(error.code(), text);
    ttrpc::Error::RpcStatus(match error.command_error() {
        Some(kind) => with_command_error(status, kind),
        None => status,
    })
}

/// An invalid request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A field's value cannot be used.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field's name as the .proto file or the OCI specification has it.
        field: String,
        /// The problem.
        reason: String,
    },
}

impl RequestError {
    /// Shorthand for [`RequestError::Invalid`].
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), reason: reason.into() }
    }
}

impl Coded for RequestError {
    fn code(&self) -> Code {
        Code::INVALID_ARGUMENT
    }
}
