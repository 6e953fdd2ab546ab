//! The connections of standard streams, matched to processes by their tokens.

pub mod listen;
pub mod pump;
pub mod stdio;
pub mod terminal;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{Semaphore, oneshot};
use ttrpc::proto::Code;

use crate::error::Coded;
use pouch_protocol::STREAM_TOKEN_LENGTH;

/// How long a new connection may take to name its token.
const TOKEN_TIME: Duration = Duration::from_secs(5);
/// How long a connection waits for the request that names its token: the two race when the
/// host sends them at once.
const CLAIM_TIME: Duration = Duration::from_secs(5);
/// How many connections may be between accept and claim.
const PENDING_MAX: usize = 64;
/// How many tokens may wait for their connection.
const EXPECTED_MAX: usize = 4096;

/// Both directions of one stream connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection whatever its transport.
pub type Connection = Box<dyn Duplex>;

/// Why a token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Another process has it already.
    #[error("{0}: the token is in use already")]
    InUse(&'static str),
    /// The table is full.
    #[error("{0}: {EXPECTED_MAX} streams already wait for a connection")]
    TooMany(&'static str),
}

impl Coded for TokenError {
    fn code(&self) -> Code {
        match self {
            Self::InUse(_) => Code::INVALID_ARGUMENT,
            Self::TooMany(_) => Code::RESOURCE_EXHAUSTED,
        }
    }
}

#[derive(Default)]
struct Tokens {
    /// Named by a request, with no connection yet.
    expected: HashMap<u64, oneshot::Sender<Connection>>,
    /// Named by a connection, with no request yet.
    arrived: HashMap<u64, Connection>,
}

/// Which tokens are expected and which connections have arrived.
#[derive(Clone)]
pub struct StreamTable {
    tokens: Arc<Mutex<Tokens>>,
    pending: Arc<Semaphore>,
}

impl Default for StreamTable {
    fn default() -> Self {
        Self { tokens: Arc::default(), pending: Arc::new(Semaphore::new(PENDING_MAX)) }
    }
}

impl StreamTable {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Announces a connection with `token` for `field`. Dropping the result withdraws the announcement.
    pub fn claim(&self, field: &'static str, token: u64) -> Result<Claim, TokenError> {
        let (sender, receiver) = oneshot::channel();
        let mut tokens = self.lock();
        if tokens.expected.contains_key(&token) {
            return Err(TokenError::InUse(field));
        }
        if let Some(connection) = tokens.arrived.remove(&token) {
            // The receiver stands right here.
            let _ = sender.send(connection);
        } else if tokens.expected.len() >= EXPECTED_MAX {
            return Err(TokenError::TooMany(field));
        } else {
            tokens.expected.insert(token, sender);
        }
        Ok(Claim { table: self.clone(), token, receiver })
    }

    /// Passes a connection to the request that expects `token`, now or within a short time.
    async fn arrive(&self, token: u64, connection: Connection) {
        {
            let mut tokens = self.lock();
            if let Some(sender) = tokens.expected.remove(&token) {
                // Fails only if the process has ended; then the connection is closed.
                let _ = sender.send(connection);
                return;
            }
            if tokens.arrived.contains_key(&token) {
                log::warn!("refused a stream: its token has a connection already");
                return;
            }
            tokens.arrived.insert(token, connection);
        }
        tokio::time::sleep(CLAIM_TIME).await;
        if self.lock().arrived.remove(&token).is_some() {
            log::warn!("refused a stream: nobody claimed its token");
        }
    }

    /// Takes a new connection: reads its token and hands it on. It is dropped, and thereby
    /// refused, if it sends no token in time or there are too many others.
    pub async fn take(&self, mut connection: Connection) {
        let Ok(_permit) = self.pending.clone().try_acquire_owned() else {
            log::warn!("refused a stream: {PENDING_MAX} others are pending");
            return;
        };
        let mut token = [0; STREAM_TOKEN_LENGTH];
        match tokio::time::timeout(TOKEN_TIME, connection.read_exact(&mut token)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return log::debug!("a stream ended before its token: {error}"),
            Err(_) => return log::warn!("refused a stream: no token within {TOKEN_TIME:?}"),
        }
        match u64::from_le_bytes(token) {
            0 => log::warn!("refused a stream: its token is 0"),
            token => self.arrive(token, connection).await,
        }
    }
}

/// The right to the connection with one token.
pub struct Claim {
    table: StreamTable,
    token: u64,
    receiver: oneshot::Receiver<Connection>,
}

impl Claim {
    /// Waits for the connection; `None` if it can no longer arrive.
    pub async fn connection(&mut self) -> Option<Connection> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // A token that has its connection is no longer in the table, and may be in use again.
        self.receiver.close();
        let mut tokens = self.table.lock();
        if tokens.expected.get(&self.token).is_some_and(oneshot::Sender::is_closed) {
            tokens.expected.remove(&self.token);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncWriteExt, duplex};

    fn start(table: &StreamTable) -> tokio::io::DuplexStream {
        let (ours, theirs) = duplex(64);
        let table = table.clone();
        tokio::spawn(async move { table.take(Box::new(theirs)).await });
        ours
    }

    #[tokio::test]
    async fn a_connection_meets_its_request_in_either_order() {
        let table = StreamTable::new();
        let mut claim = table.claim("stdout_token", 7).unwrap();
        let mut client = start(&table);
        client.write_all(&7_u64.to_le_bytes()).await.unwrap();
        assert!(claim.connection().await.is_some());

        let mut early = start(&table);
        early.write_all(&8_u64.to_le_bytes()).await.unwrap();
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut claim = table.claim("stdout_token", 8).unwrap();
        assert!(claim.connection().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn unclaimed_silent_and_zero_tokens_are_refused() {
        let table = StreamTable::new();
        for token in [None, Some(0_u64), Some(99)] {
            let mut client = start(&table);
            if let Some(token) = token {
                client.write_all(&token.to_le_bytes()).await.unwrap();
            }
            let mut byte = [0];
            let read = tokio::time::timeout(Duration::from_secs(11), client.read(&mut byte)).await;
            assert_eq!(read.unwrap().unwrap(), 0, "the agent closes it");
        }
        assert!(table.lock().arrived.is_empty());
        assert_eq!(table.pending.available_permits(), PENDING_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn pending_connections_are_bounded() {
        let table = StreamTable::new();
        let clients: Vec<_> = (0..PENDING_MAX).map(|_| start(&table)).collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut one_more = start(&table);
        let mut byte = [0];
        assert_eq!(one_more.read(&mut byte).await.unwrap(), 0);
        drop(clients);
    }

    #[tokio::test]
    async fn a_dropped_claim_frees_its_token() {
        let table = StreamTable::new();
        let claim = table.claim("stdin_token", 5).unwrap();
        assert!(matches!(table.claim("stdin_token", 5), Err(TokenError::InUse("stdin_token"))));
        drop(claim);
        assert!(table.claim("stdin_token", 5).is_ok());
    }
}
