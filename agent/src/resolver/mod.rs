//! The engine's DNS resolver, as the guest sees it.
//!
//! An engine may listen for DNS queries on a loopback address in the container's network namespace on the
//! host (Docker: 127.0.0.11). The guest has a different loopback interface, so the agent listens there, on
//! its own port, and [`relay`] forwards queries and answers. [`detour`] redirects port 53 to the agent's
//! port, so that a server in the container can use port 53.

mod detour;
mod relay;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use pouch_protocol::agent::ForwardResolverRequest;
use tokio::net::{TcpListener, UdpSocket};
use ttrpc::proto::Code;

use crate::error::{Coded, RequestError};
use crate::streams::{StreamTable, TokenError};

/// A port that is free for UDP may be taken for TCP; then another is tried.
const PORT_TRIES: usize = 16;

/// Why queries cannot be forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The stream's token cannot be used.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The address cannot be listened on.
    #[error("resolver.address: cannot listen on {0}")]
    Listen(Ipv4Addr, #[source] io::Error),
    /// Port 53 cannot be redirected.
    #[error("resolver: cannot {0} the BPF program that redirects port 53")]
    Detour(&'static str, #[source] io::Error),
}

impl Coded for ResolverError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Token(error) => error.code(),
            Self::Listen(..) | Self::Detour(..) => Code::INTERNAL,
        }
    }
}

/// Listens where the request says, and relays for as long as the host keeps the stream.
pub async fn forward(streams: StreamTable, request: ForwardResolverRequest) -> Result<(), ResolverError> {
    let address: Ipv4Addr = request.address.parse().ok().filter(Ipv4Addr::is_loopback).ok_or_else(|| {
        let problem = format!("{:?} is not an IPv4 loopback address", request.address);
        RequestError::new("resolver.address", problem)
    })?;
    let mut claim = streams.claim("token", request.token)?;
    let (udp, tcp) = listen(address).await.map_err(|error| ResolverError::Listen(address, error))?;
    let port = udp.local_addr().map_err(|error| ResolverError::Listen(address, error))?.port();
    detour::lay(address, port)?;
    tokio::spawn(async move {
        if let Some(connection) = claim.connection().await {
            relay::run(connection, udp, tcp).await;
        }
    });
    Ok(())
}

/// Takes a port that is free for both.
async fn listen(address: Ipv4Addr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut tried = 0;
    loop {
        let udp = UdpSocket::bind(SocketAddrV4::new(address, 0)).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error) if tried == PORT_TRIES => return Err(error),
            Err(_) => tried += 1,
        }
    }
}
