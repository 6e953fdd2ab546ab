//! How the errors of the agent's parts become statuses for the host.

use std::error::Error as StdError;

use ttrpc::proto::Code;

/// An error that knows which status it is to the host.
pub trait Coded: StdError {
    /// The status code; the message is the error's text with those of its sources.
    fn code(&self) -> Code;
}

/// An error with all its sources, as one sentence.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

/// The status that answers a request which failed with `error`.
pub fn status<E: Coded>(error: E) -> ttrpc::Error {
    let text = chain(&error);
    log::info!("refused: {text}");
    ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), text))
}

/// A request that is wrong in itself.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A field's value cannot be used.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field's name as the .proto file or the OCI specification has it.
        field: String,
        /// What is wrong with it.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_chain_names_every_source_once() {
        let inner = std::io::Error::other("inner");
        assert_eq!(chain(&Outer(inner)), "outer: inner");
        assert_eq!(chain(&RequestError::new("spec", "is empty")), "spec: is empty");
    }
}
