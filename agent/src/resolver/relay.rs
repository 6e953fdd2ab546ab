//! Forwards queries to the host and answers back, on one stream.
//!
//! To the host: the number of the query (4 bytes), 0 for UDP or 1 for TCP, the length (2 bytes), and the
//! query. From the host: the number, the length, and the answer, which is empty if there is none. All numbers
//! are little-endian.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use pouch_protocol::{RESOLVER_QUERIES_MAX, RESOLVER_TCP, RESOLVER_UDP};
use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf, split};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, oneshot};

use crate::streams::Connection;

/// Waiting clients.
enum Asker {
    Udp(SocketAddr),
    Tcp(oneshot::Sender<Vec<u8>>),
}

#[derive(Default)]
struct Queries {
    last: u32,
    waiting: HashMap<u32, Asker>,
}

/// The way to the host.
struct Upstream {
    writer: tokio::sync::Mutex<WriteHalf<Connection>>,
    queries: Mutex<Queries>,
}

impl Upstream {
    fn queries(&self) -> std::sync::MutexGuard<'_, Queries> {
        self.queries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forwards a query. Queries beyond the limit are dropped, as datagrams may be.
    async fn ask(&self, transport: u8, query: &[u8], asker: Asker) -> io::Result<()> {
        let Ok(length) = u16::try_from(query.len()) else { return Ok(()) };
        let number = {
            let mut queries = self.queries();
            if queries.waiting.len() >= RESOLVER_QUERIES_MAX {
                return Ok(());
            }
            queries.last = queries.last.wrapping_add(1);
            let number = queries.last;
            queries.waiting.insert(number, asker);
            number
        };
        let mut message = Vec::with_capacity(7 + query.len());
        message.extend(number.to_le_bytes());
        message.push(transport);
        message.extend(length.to_le_bytes());
        message.extend(query);
        // Whole messages only, as there are several writers.
        self.writer.lock().await.write_all(&message).await
    }
}

/// Relays until the host closes the stream.
pub async fn run(connection: Connection, udp: UdpSocket, tcp: TcpListener) {
    let (mut reader, writer) = split(connection);
    let upstream = Arc::new(Upstream { writer: tokio::sync::Mutex::new(writer), queries: Mutex::default() });
    let udp = Arc::new(udp);
    let datagrams = tokio::spawn(take_datagrams(udp.clone(), upstream.clone()));
    let connections = tokio::spawn(take_connections(tcp, upstream.clone()));
    loop {
        let mut head = [0; 6];
        if reader.read_exact(&mut head).await.is_err() {
            break;
        }
        let [a, b, c, d, low, high] = head;
        let mut answer = vec![0; u16::from_le_bytes([low, high]).into()];
        if reader.read_exact(&mut answer).await.is_err() {
            break;
        }
        let asker = upstream.queries().waiting.remove(&u32::from_le_bytes([a, b, c, d]));
        match asker {
            Some(Asker::Udp(peer)) if !answer.is_empty() => {
                // The client may have disconnected.
                let _ = udp.send_to(&answer, peer).await;
            }
            Some(Asker::Tcp(sender)) => drop(sender.send(answer)),
            _ => {}
        }
    }
    datagrams.abort();
    connections.abort();
}

async fn take_datagrams(udp: Arc<UdpSocket>, upstream: Arc<Upstream>) {
    let mut query = vec![0; usize::from(u16::MAX)];
    loop {
        // An error is that of an earlier answer, which could not be delivered.
        let Ok((length, peer)) = udp.recv_from(&mut query).await else { continue };
        if upstream.ask(RESOLVER_UDP, &query[..length], Asker::Udp(peer)).await.is_err() {
            return;
        }
    }
}

async fn take_connections(tcp: TcpListener, upstream: Arc<Upstream>) {
    let room = Arc::new(Semaphore::new(RESOLVER_QUERIES_MAX));
    // The semaphore is never closed.
    while let Ok(permit) = room.clone().acquire_owned().await {
        let Ok((stream, _)) = tcp.accept().await else { continue };
        let upstream = upstream.clone();
        tokio::spawn(async move {
            // The client may disconnect at any time.
            let _ = serve(stream, &upstream).await;
            drop(permit);
        });
    }
}

/// One connection: queries and answers with their length before them (RFC 1035, section 4.2.2).
async fn serve(mut stream: TcpStream, upstream: &Upstream) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut query = vec![0; length.into()];
        stream.read_exact(&mut query).await?;
        let (sender, receiver) = oneshot::channel();
        upstream.ask(RESOLVER_TCP, &query, Asker::Tcp(sender)).await?;
        let answer = receiver.await.unwrap_or_default();
        // A resolver that does not answer closes the connection.
        let length = u16::try_from(answer.len()).unwrap_or(0);
        if length == 0 {
            return Ok(());
        }
        stream.write_u16(length).await?;
        stream.write_all(&answer).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};

    /// A host that answers each query with itself reversed, and does not answer "silence".
    async fn host(mut stream: DuplexStream) {
        loop {
            let mut head = [0; 7];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let mut query = vec![0; u16::from_le_bytes([head[5], head[6]]).into()];
            stream.read_exact(&mut query).await.unwrap();
            query.reverse();
            if query == b"ecnelis" {
                query.clear();
            }
            stream.write_all(&head[..4]).await.unwrap();
            stream.write_all(&(query.len() as u16).to_le_bytes()).await.unwrap();
            stream.write_all(&query).await.unwrap();
        }
    }

    async fn start() -> (SocketAddr, SocketAddr, tokio::task::JoinHandle<()>) {
        let (ours, theirs) = duplex(1 << 20);
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
        tokio::spawn(run(Box::new(theirs), udp, tcp));
        (addresses.0, addresses.1, tokio::spawn(host(ours)))
    }

    #[tokio::test]
    async fn each_asker_gets_its_own_answer() {
        let (udp, tcp, _host) = start().await;
        let one = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let other = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        for query in ["silence", "one"] {
            one.send_to(query.as_bytes(), udp).await.unwrap();
        }
        other.send_to(b"other", udp).await.unwrap();
        let mut stream = TcpStream::connect(tcp).await.unwrap();
        stream.write_all(b"\0\x03tcp").await.unwrap();
        let mut answer = [0; 16];
        let length = one.recv(&mut answer).await.unwrap();
        assert_eq!(&answer[..length], b"eno");
        let mut answer = [0; 16];
        let length = other.recv(&mut answer).await.unwrap();
        assert_eq!(&answer[..length], b"rehto");
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"\0\x03pct");
        stream.write_all(b"\0\x07silence").await.unwrap();
        assert_eq!(stream.read(&mut answer).await.unwrap(), 0, "no answer ends the connection");
    }

    #[tokio::test]
    async fn queries_that_nobody_answers_are_bounded() {
        let (ours, theirs) = duplex(1 << 22);
        let (_, writer) = split(Box::new(theirs) as Connection);
        let upstream = Upstream { writer: tokio::sync::Mutex::new(writer), queries: Mutex::default() };
        let peer = "127.0.0.1:9".parse().unwrap();
        for _ in 0..10 * RESOLVER_QUERIES_MAX {
            upstream.ask(RESOLVER_UDP, b"query", Asker::Udp(peer)).await.unwrap();
        }
        assert_eq!(upstream.queries().waiting.len(), RESOLVER_QUERIES_MAX);
        drop(ours);
    }
}
