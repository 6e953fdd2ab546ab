//! Requests to the kernel's routing socket (rtnetlink(7)), one after the other.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A request failed.
#[derive(Debug, thiserror::Error)]
#[error("the kernel could not {step}")]
pub struct NetlinkError {
    step: String,
    source: io::Error,
}

impl NetlinkError {
    /// An error outside of requests.
    pub fn other(step: &str, source: io::Error) -> Self {
        NetlinkError { step: step.to_owned(), source }
    }

    /// Whether the kernel gave this error.
    pub fn is(&self, errno: i32) -> bool {
        self.source.raw_os_error() == Some(errno)
    }
}

/// The multicast groups: RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR and _IPV6_ROUTE of
/// linux/rtnetlink.h.
const GROUPS: [u32; 6] = [1, 3, 5, 7, 9, 11];

/// Notifications of network changes.
pub struct Changes(Socket);

impl Changes {
    /// Waits for a change, and then until there was no further change for the time `settle`.
    ///
    /// # Errors
    /// The kernel's error, for example if there were more changes than the socket buffer can hold.
    pub fn wait(&mut self, settle: Duration) -> io::Result<()> {
        let mut timeout = PollTimeout::NONE;
        loop {
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Ok(()),
                Ok(_) => match self.0.recv_from_full() {
                    Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => return Err(error),
                    Ok((news, _)) if !matters(&news) => {}
                    _ => timeout = PollTimeout::try_from(settle).unwrap_or(PollTimeout::ZERO),
                },
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether a notification concerns more than neighbours that the kernel discovers and drops by itself.
fn matters(news: &[u8]) -> bool {
    const PASSING: [NeighbourState; 6] = [
        NeighbourState::Incomplete,
        NeighbourState::Reachable,
        NeighbourState::Stale,
        NeighbourState::Delay,
        NeighbourState::Probe,
        NeighbourState::Noarp,
    ];
    // The kernel sends one message in a datagram.
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(news).map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(neighbour))) => {
            !PASSING.contains(&neighbour.header.state)
        }
        _ => true,
    }
}

/// A routing socket in the network namespace of the thread that opened it.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens one.
    ///
    /// # Errors
    /// [`NetlinkError`] if the kernel gives none.
    pub fn open() -> Result<Self, NetlinkError> {
        let error = |source| NetlinkError { step: "open a routing socket".to_owned(), source };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(error)?;
        socket.bind_auto().map_err(error)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// A socket that receives notifications of changes: interfaces, addresses and routes.
    ///
    /// # Errors
    /// [`NetlinkError`] from the kernel.
    pub fn changes() -> Result<Changes, NetlinkError> {
        let netlink = Netlink::open()?;
        for group in GROUPS {
            let joined = netlink.socket.add_membership(group);
            joined.map_err(|error| NetlinkError::other("follow changes of the network", error))?;
        }
        Ok(Changes(netlink.socket))
    }

    /// Lists what the message asks for.
    ///
    /// # Errors
    /// [`NetlinkError`], with `step` for what could not be done.
    pub fn list(
        &mut self,
        step: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.request(message, NLM_F_DUMP).map_err(|source| NetlinkError { step: step.to_owned(), source })
    }

    /// Creates what the message describes, which must not exist yet.
    ///
    /// # Errors
    /// [`NetlinkError`], with `step` for what could not be done.
    pub fn create(&mut self, step: &str, message: RouteNetlinkMessage) -> Result<(), NetlinkError> {
        self.request(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)
            .map(drop)
            .map_err(|source| NetlinkError { step: step.to_owned(), source })
    }

    /// Applies the message to something that exists.
    ///
    /// # Errors
    /// [`NetlinkError`], with `step` for what could not be done.
    pub fn change(&mut self, step: &str, message: RouteNetlinkMessage) -> Result<(), NetlinkError> {
        self.request(message, NLM_F_ACK)
            .map(drop)
            .map_err(|source| NetlinkError { step: step.to_owned(), source })
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut found = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            if self.take(&datagram, &mut found)? {
                return Ok(found);
            }
        }
    }

    /// Takes the messages of one datagram; true after the last one of the answer.
    fn take(&self, datagram: &[u8], found: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let message =
                NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
            if message.header.sequence_number != self.sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => found.push(inner),
                NetlinkPayload::Error(error) => {
                    return if error.code.is_none() { Ok(true) } else { Err(error.to_io()) };
                }
                NetlinkPayload::Done(_) => return Ok(true),
                _ => {}
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::neighbour::NeighbourMessage;

    #[test]
    fn what_the_kernel_learns_of_neighbours_is_no_news() {
        let of = |state| {
            let mut message = NeighbourMessage::default();
            message.header.state = state;
            let payload = NetlinkPayload::from(RouteNetlinkMessage::NewNeighbour(message));
            let mut packet = NetlinkMessage::new(NetlinkHeader::default(), payload);
            packet.finalize();
            let mut bytes = vec![0; packet.buffer_len()];
            packet.serialize(&mut bytes);
            matters(&bytes)
        };
        assert!(!of(NeighbourState::Reachable) && !of(NeighbourState::Stale));
        // The latter is the error if it was removed by hand.
        assert!(of(NeighbourState::Permanent) && of(NeighbourState::Failed));
        assert!(matters(b"?"));
    }
}
