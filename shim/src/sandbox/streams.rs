//! Connects the standard streams of a process in the guest.
//!
//! Each stream is a vsock connection of its own. A random token identifies it (agent.proto).

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use pouch_protocol::STREAM_PORT;
use pouch_protocol::agent::Stdio;

use super::agent::{AgentError, random_bytes};
use super::vm::{Connecting, Vm, VmError};
use crate::failure::Failure;
use crate::streams::NullStreams;

/// How long the agent may take to accept a stream.
const STREAM_TIMEOUT: Duration = Duration::from_secs(60);

/// A stream could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The VM does not connect it.
    #[error("a standard stream could not be connected to the guest")]
    Connect(#[source] VmError),
    /// It broke at once.
    #[error("a standard stream was closed while it was connected")]
    Token(#[source] std::io::Error),
    /// The host has no random numbers.
    #[error("the host's random number generator failed")]
    Random,
    /// The agent refuses.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl StreamError {
    /// The failure for the user.
    pub fn failure(&self) -> Failure {
        match self {
            StreamError::Agent(error) => error.failure(),
            other => Failure::new(pouch_errors::chain(other)),
        }
    }
}

/// The guest's ends of a process's streams: of stdin, stdout and stderr, without those that are `/dev/null`, or of a
/// terminal.
pub type GuestStreams = Vec<UnixStream>;

/// Random names for the streams of a process.
pub struct Tokens(Stdio);

impl Tokens {
    /// Names for a terminal of the given size, or for those of the three streams that are not /dev/null.
    ///
    /// # Errors
    /// [`StreamError::Random`] if the host has no random numbers.
    pub fn new(terminal: bool, size: (u32, u32), null: NullStreams) -> Result<Self, StreamError> {
        let mut stdio = Stdio::new();
        stdio.terminal = terminal;
        (stdio.rows, stdio.columns) = size;
        if terminal {
            stdio.terminal_token = token()?;
        } else {
            let token = |null: bool| if null { Ok(0) } else { token() };
            stdio.stdin_token = token(null.stdin)?;
            stdio.stdout_token = token(null.stdout)?;
            stdio.stderr_token = token(null.stderr)?;
        }
        Ok(Tokens(stdio))
    }

    /// What the agent is told.
    pub fn stdio(&self) -> Stdio {
        self.0.clone()
    }

    /// Connects the streams, after the agent was told.
    ///
    /// # Errors
    /// [`StreamError`] if one cannot be connected.
    pub fn connect(&self, vm: &Vm) -> Result<GuestStreams, StreamError> {
        let tokens: &[u64] = if self.0.terminal {
            &[self.0.terminal_token]
        } else {
            &[self.0.stdin_token, self.0.stdout_token, self.0.stderr_token]
        };
        // All are requested at once; the tokens identify them.
        let tokens: Vec<u64> = tokens.iter().copied().filter(|token| *token != 0).collect();
        let asked: Vec<_> =
            tokens.iter().map(|_| vm.ask_for_connection(STREAM_PORT, STREAM_TIMEOUT)).collect();
        let connect = |(asked, token): (Result<Connecting, VmError>, u64)| {
            let mut stream = asked.and_then(|asked| vm.connected(asked)).map_err(StreamError::Connect)?;
            stream.write_all(&token.to_le_bytes()).map_err(StreamError::Token)?;
            Ok(stream)
        };
        asked.into_iter().zip(tokens).map(connect).collect()
    }
}

/// A random number other than 0; 0 means no stream.
fn token() -> Result<u64, StreamError> {
    random_bytes().map(|bytes| u64::from_le_bytes(bytes).max(1)).ok_or(StreamError::Random)
}
