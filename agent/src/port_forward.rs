//! Connections of the host's clients to ports of the guest's loopback addresses, as `kubectl port-forward` makes them.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use pouch_protocol::agent::ConnectPortRequest;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use ttrpc::proto::Code;

use crate::error::{Coded, RequestError};
use crate::streams::{StreamTable, TokenError};

/// How long a connection may take: a server whose queue is full does not answer.
const CONNECT_TIME: Duration = Duration::from_secs(30);

/// How long the host may take to connect the stream.
const STREAM_TIME: Duration = Duration::from_secs(30);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The stream's token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Nobody listens.
    #[error("cannot connect to port {0} of the guest")]
    Connect(u16, #[source] io::Error),
}

impl Coded for PortError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Token(error) => error.code(),
            Self::Connect(..) => Code::NOT_FOUND,
        }
    }
}

/// Connects to the port, and relays until both sides have ended.
pub async fn connect(streams: StreamTable, request: ConnectPortRequest) -> Result<(), PortError> {
    let port = u16::try_from(request.port).ok().filter(|port| *port != 0);
    let port =
        port.ok_or_else(|| RequestError::new("port", format!("{} is not from 1 to 65535", request.port)))?;
    let mut claim = streams.claim("token", request.token)?;
    let mut server = connect_to(port).await.map_err(|error| PortError::Connect(port, error))?;
    tokio::spawn(async move {
        // The host may fail after this request.
        let connection = tokio::time::timeout(STREAM_TIME, claim.connection()).await;
        if let Ok(Some(mut connection)) = connection {
            // Either side may end it at any time.
            let _ = copy_bidirectional(&mut connection, &mut server).await;
        }
    });
    Ok(())
}

/// A server may listen on one of the two addresses only. The error is that of the first.
async fn connect_to(port: u16) -> io::Result<TcpStream> {
    let connect = |address: SocketAddr| async move {
        tokio::time::timeout(CONNECT_TIME, TcpStream::connect(address)).await.map_err(io::Error::from)?
    };
    match connect((Ipv4Addr::LOCALHOST, port).into()).await {
        Ok(stream) => Ok(stream),
        Err(error) => connect((Ipv6Addr::LOCALHOST, port).into()).await.map_err(|_| error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pouch_protocol::agent::ConnectPortRequest;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::net::TcpListener;

    fn request(port: u32) -> ConnectPortRequest {
        let mut request = ConnectPortRequest::new();
        (request.port, request.token) = (port, 7);
        request
    }

    #[tokio::test]
    async fn bytes_and_ends_pass_both_ways() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let streams = StreamTable::default();
        connect(streams.clone(), request(server.local_addr().unwrap().port().into())).await.unwrap();
        let (mut host, guest) = duplex(64);
        host.write_all(&7_u64.to_le_bytes()).await.unwrap();
        streams.take(Box::new(guest)).await;
        let (mut accepted, _) = server.accept().await.unwrap();
        host.write_all(b"question").await.unwrap();
        host.shutdown().await.unwrap();
        let mut text = String::new();
        accepted.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        accepted.write_all(b"answer").await.unwrap();
        drop(accepted);
        text.clear();
        host.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
    }

    #[tokio::test]
    async fn a_port_that_nobody_listens_on_is_named() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let error = connect(StreamTable::default(), request(free.into())).await.unwrap_err();
        assert_eq!(error.code(), Code::NOT_FOUND);
        for wrong in [0, 65536] {
            let error = connect(StreamTable::default(), request(wrong)).await.unwrap_err();
            assert!(error.to_string().starts_with("port: "), "{error}");
        }
    }
}
