//! The engine's DNS resolver in the container's network namespace (Docker's, on 127.0.0.11): forwards queries
//! of the guest to it, and lets the resolver receive the answers to its own queries.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pouch_protocol::{RESOLVER_QUERIES_MAX, RESOLVER_TCP, RESOLVER_UDP};

use super::{Guest, GuestError, WireError};

/// Where Docker's resolver is.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// The port of DNS.
const DOMAIN: u16 = 53;
/// Ports from here on are reserved for the resolver's own queries: see [`super::redirect::share_dns`].
pub const OWN_PORTS: u16 = 0xfc00;
/// Timeout of the resolver, which queries other servers in turn.
const PATIENCE: Duration = Duration::from_secs(20);
/// Stack size of a thread: enough for a socket and a query.
const STACK: usize = 128 * 1024;

/// Queries cannot be forwarded.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// The agent refuses, or there is no stream to it.
    #[error("the agent cannot forward DNS queries for {ADDRESS}")]
    Guest(#[source] GuestError),
    /// An error on the host.
    #[error("{0}")]
    Host(&'static str, #[source] io::Error),
}

/// Whether the engine listens for queries in the namespace of the calling thread.
pub fn is_there() -> bool {
    // The address as the kernel prints it: one number, in the host's byte order.
    let address = format!(" {:08X}:", u32::from_ne_bytes(ADDRESS.octets()));
    fs::read_to_string("/proc/thread-self/net/udp").is_ok_and(|sockets| sockets.contains(&address))
}

/// Reserves ports for the resolver's own queries.
///
/// # Errors
/// [`WireError::Resolver`] if the kernel refuses.
pub fn reserve_ports() -> Result<(), WireError> {
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("{OWN_PORTS} {}", u16::MAX))
        .map_err(|error| ResolverError::Host("ports could not be reserved for the resolver", error).into())
}

/// Forwards the guest's queries to the resolver, until the VM ends.
///
/// # Errors
/// [`ResolverError`] if forwarding cannot be started.
pub fn forward(guest: &dyn Guest) -> Result<(), ResolverError> {
    let stream = guest.forward_resolver(ADDRESS).map_err(ResolverError::Guest)?;
    let host = |error| ResolverError::Host("the stream for DNS queries could not be used", error);
    let writer = stream.try_clone().map_err(host)?;
    let spawned = thread::Builder::new()
        .name("resolver".to_owned())
        .stack_size(STACK)
        // The stream ends with the VM.
        .spawn(move || drop(carry(stream, writer)));
    spawned.map(drop).map_err(|error| ResolverError::Host("a thread could not be started", error))
}

/// Reads queries and has each answered by a thread of its own, up to a limit.
fn carry(mut reader: UnixStream, writer: UnixStream) -> io::Result<()> {
    let writer = Arc::new(Mutex::new(writer));
    let running = Arc::new(AtomicUsize::new(0));
    loop {
        // Number, transport, length: see agent.proto.
        let mut head = [0; 7];
        reader.read_exact(&mut head)?;
        let [a, b, c, d, transport, low, high] = head;
        let mut query = vec![0; u16::from_le_bytes([low, high]).into()];
        reader.read_exact(&mut query)?;
        let number = [a, b, c, d];
        if running.fetch_add(1, Ordering::Relaxed) >= RESOLVER_QUERIES_MAX {
            running.fetch_sub(1, Ordering::Relaxed);
            answer(&writer, number, &[])?;
            continue;
        }
        let (own_writer, own_running) = (writer.clone(), running.clone());
        let spawned = thread::Builder::new().name("query".to_owned()).stack_size(STACK).spawn(move || {
            // The client gets no answer, as from a resolver that does not respond.
            let found = ask(transport, &query).unwrap_or_default();
            // The stream may have ended.
            let _ = answer(&own_writer, number, &found);
            own_running.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            running.fetch_sub(1, Ordering::Relaxed);
            answer(&writer, number, &[])?;
        }
    }
}

fn answer(writer: &Mutex<UnixStream>, number: [u8; 4], found: &[u8]) -> io::Result<()> {
    let found = if found.len() > usize::from(u16::MAX) { &[] } else { found };
    let mut message = Vec::with_capacity(6 + found.len());
    message.extend(number);
    // At most 65,535, as was just seen to.
    message.extend((found.len() as u16).to_le_bytes());
    message.extend(found);
    writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(&message)
}

fn ask(transport: u8, query: &[u8]) -> io::Result<Vec<u8>> {
    let resolver = SocketAddrV4::new(ADDRESS, DOMAIN);
    match transport {
        RESOLVER_UDP => {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(resolver)?;
            socket.send(query)?;
            let mut found = vec![0; u16::MAX.into()];
            let length = socket.recv(&mut found)?;
            found.truncate(length);
            Ok(found)
        }
        RESOLVER_TCP => {
            let mut stream = TcpStream::connect_timeout(&resolver.into(), PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let length = u16::try_from(query.len()).map_err(io::Error::other)?;
            // In one write, because some resolvers require both in one segment.
            stream.write_all(&[&length.to_be_bytes(), query].concat())?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut found = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut found)?;
            Ok(found)
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_speaks_nonsense_gets_empty_answers() {
        let (mut guest, host) = UnixStream::pair().unwrap();
        let writer = host.try_clone().unwrap();
        let carrier = thread::spawn(move || carry(host, writer));
        guest.write_all(&[1, 2, 3, 4, 99, 3, 0, b'a', b'b', b'c']).unwrap();
        let mut head = [0; 6];
        guest.read_exact(&mut head).unwrap();
        assert_eq!(head, [1, 2, 3, 4, 0, 0]);
        // Half a message, and then the end.
        guest.write_all(&[1, 2, 3, 4, 0, 0xff, 0xff, 0]).unwrap();
        drop(guest);
        assert!(carrier.join().unwrap().is_err());
    }
}
