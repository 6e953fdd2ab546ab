//! A vsock connection between a socket of the host and the guest.
//!
//! Flow control is by credit (section 5.10.6.3): each side announces the size of its buffer and how much it
//! has processed, and the other never sends more than fits.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vm_memory::VolatileSlice;

use super::packet::{Header, Operation, SHUTDOWN_BOTH, SHUTDOWN_READ, SHUTDOWN_WRITE};

/// Bytes from the guest that are kept while the host's side does not take them.
pub const BUFFER_SIZE: u32 = 256 * 1024;
/// The guest gets a credit update if it could otherwise assume less room than this.
const CREDIT_LOW: u32 = BUFFER_SIZE / 2;

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A request was sent to the guest.
    Connecting,
    /// Open.
    Open,
    /// Closed by the guest; remaining bytes are being sent to the host.
    Draining,
    /// Closed: to be removed.
    Closed,
}

/// One connection.
pub struct Connection {
    /// The host's socket; none once it is closed.
    stream: Option<UnixStream>,
    /// How far it has come.
    pub phase: Phase,
    /// Packets without payload that wait to be sent.
    pending: VecDeque<(Operation, u32)>,
    /// Bytes from the guest that the host has not taken yet.
    buffer: VecDeque<u8>,
    /// Bytes that the host took.
    fwd_cnt: Wrapping<u32>,
    /// The value last sent to the guest.
    told_fwd_cnt: Wrapping<u32>,
    /// The guest's buffer size, and how much it has processed.
    peer_buf_alloc: u32,
    peer_fwd_cnt: Wrapping<u32>,
    /// Bytes sent to the guest.
    sent: Wrapping<u32>,
    /// The host's socket may have bytes.
    readable: bool,
    /// The host closed its end: it reads no more.
    hung_up: bool,
    /// The host writes no more: its end was reached.
    host_ended: bool,
    /// The guest's shutdowns.
    guest_shutdown: u32,
}

/// The guest violated the protocol on this connection.
#[derive(Debug, PartialEq, Eq)]
pub struct ProtocolError;

impl Connection {
    /// A connection that will be requested from the guest. `stream` must not block.
    pub fn new(stream: UnixStream) -> Self {
        Connection {
            stream: Some(stream),
            phase: Phase::Connecting,
            pending: VecDeque::from([(Operation::Request, 0)]),
            buffer: VecDeque::new(),
            fwd_cnt: Wrapping(0),
            told_fwd_cnt: Wrapping(0),
            peer_buf_alloc: 0,
            peer_fwd_cnt: Wrapping(0),
            sent: Wrapping(0),
            readable: false,
            hung_up: false,
            host_ended: false,
            guest_shutdown: 0,
        }
    }

    /// The host's socket.
    pub fn stream(&self) -> Option<&UnixStream> {
        self.stream.as_ref()
    }

    /// Sends the request again.
    pub fn request_again(&mut self) {
        // The previous request may still be pending.
        if self.pending.is_empty() {
            self.pending.push_back((Operation::Request, 0));
        }
    }

    /// Whether the host's end of the socket is closed: what is left to read can be read, and there will be no
    /// more to hear of it.
    pub fn hung_up(&self) -> bool {
        self.hung_up
    }

    /// Bytes that the guest has room for.
    fn credit(&self) -> u32 {
        let under_way = (self.sent - self.peer_fwd_cnt).0;
        self.peer_buf_alloc.saturating_sub(under_way)
    }

    /// Whether there is a packet to send now.
    pub fn has_packet(&self) -> bool {
        !self.pending.is_empty() || self.can_read()
    }

    fn can_read(&self) -> bool {
        self.readable && self.wants_read()
    }

    /// Whether bytes from the host's socket could be sent on.
    pub fn wants_read(&self) -> bool {
        let peer_reads = self.guest_shutdown & SHUTDOWN_READ == 0;
        self.phase == Phase::Open && !self.host_ended && peer_reads && self.credit() > 0
    }

    /// Whether the host's socket should say when it takes bytes again.
    pub fn wants_write(&self) -> bool {
        !self.buffer.is_empty()
    }

    /// The host's socket has something to say: bytes, an end, or room.
    pub fn on_event(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        if hung_up {
            self.hung_up = true;
            // There is no reader left.
            self.fwd_cnt += std::mem::take(&mut self.buffer).len() as u32;
            self.tell_credit();
        } else if writable {
            self.flush();
        }
        // Only the end is left to see of a socket that the guest does not read from.
        if hung_up && (self.host_ended || self.guest_shutdown & SHUTDOWN_READ != 0) {
            self.close_host();
        }
    }

    /// The host's end is closed.
    fn close_host(&mut self) {
        if self.stream.take().is_none() {
            return;
        }
        self.buffer.clear();
        match self.phase {
            Phase::Open => self.pending.push_back((Operation::Shutdown, SHUTDOWN_BOTH)),
            Phase::Connecting | Phase::Draining => self.phase = Phase::Closed,
            Phase::Closed => {}
        }
    }

    /// The guest's packet for this connection.
    ///
    /// # Errors
    /// [`ProtocolError`] if it sends what it must not; the connection is to be reset.
    pub fn receive(
        &mut self,
        header: &Header,
        data: Option<&VolatileSlice<'_>>,
    ) -> Result<(), ProtocolError> {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = Wrapping(header.fwd_cnt);
        match (header.operation, self.phase) {
            (Operation::Response, Phase::Connecting) => self.phase = Phase::Open,
            (Operation::ReadWrite, Phase::Open) => self.take(data)?,
            (Operation::Shutdown, Phase::Open) => self.on_guest_shutdown(header.flags),
            (Operation::CreditRequest, Phase::Open) => self.push_credit_update(),
            (Operation::CreditUpdate, _) => {}
            (Operation::Reset, _) => self.drain(),
            // Late packets of a connection that is over on this side.
            (_, Phase::Draining | Phase::Closed) => {}
            _ => return Err(ProtocolError),
        }
        Ok(())
    }

    /// Takes the guest's bytes: straight to the host if it takes them, else into the buffer.
    fn take(&mut self, data: Option<&VolatileSlice<'_>>) -> Result<(), ProtocolError> {
        let Some(data) = data else { return Ok(()) };
        if self.guest_shutdown & SHUTDOWN_WRITE != 0 || self.buffer.len() + data.len() > BUFFER_SIZE as usize
        {
            return Err(ProtocolError);
        }
        let Some(stream) = self.stream.as_ref().filter(|_| !self.hung_up) else {
            // The guest has been notified, or will be when it has read what the host wrote.
            self.fwd_cnt += data.len() as u32;
            return Ok(());
        };
        let mut sent = 0;
        if self.buffer.is_empty() {
            // SAFETY: pointer and length are those of a slice of guest memory, which stays mapped
            // while it is borrowed; the kernel only reads it.
            let result = unsafe {
                libc::send(
                    stream.as_raw_fd(),
                    data.ptr_guard().as_ptr().cast(),
                    data.len(),
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            };
            match usize::try_from(result) {
                Ok(count) => sent = count,
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.close_host();
                    return Ok(());
                }
            }
        }
        self.fwd_cnt += sent as u32;
        if sent < data.len() {
            let mut rest = vec![0u8; data.len() - sent];
            // The offset is inside the slice.
            if let Ok(tail) = data.offset(sent) {
                tail.copy_to(&mut rest);
            }
            self.buffer.extend(rest);
        }
        self.tell_credit();
        Ok(())
    }

    /// Sends buffered bytes on to the host.
    fn flush(&mut self) {
        while !self.buffer.is_empty() {
            let Some(stream) = &mut self.stream else { return };
            let (front, _) = self.buffer.as_slices();
            match stream.write(front) {
                Ok(count) if count > 0 => {
                    self.buffer.drain(..count);
                    // At most BUFFER_SIZE.
                    self.fwd_cnt += count as u32;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return self.close_host(),
            }
        }
        if self.buffer.is_empty() {
            // Free the buffer, which may not be needed again.
            self.buffer = VecDeque::new();
            self.pass_shutdown_on();
        }
        self.tell_credit();
    }

    /// Sends a credit update before the guest can assume that there is no room.
    fn tell_credit(&mut self) {
        let unknown = (self.fwd_cnt - self.told_fwd_cnt).0;
        if self.phase == Phase::Open && unknown >= CREDIT_LOW {
            self.push_credit_update();
        }
    }

    fn push_credit_update(&mut self) {
        if !self.pending.iter().any(|(operation, _)| *operation == Operation::CreditUpdate) {
            self.pending.push_back((Operation::CreditUpdate, 0));
        }
    }

    fn on_guest_shutdown(&mut self, flags: u32) {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown == SHUTDOWN_BOTH {
            // The guest waits for this before it forgets the connection.
            self.pending.push_back((Operation::Reset, 0));
            return self.drain();
        }
        if self.hung_up && self.guest_shutdown & SHUTDOWN_READ != 0 {
            return self.close_host();
        }
        if self.buffer.is_empty() {
            self.pass_shutdown_on();
        }
    }

    /// The guest has closed the connection: remaining data is sent to the host, then the host's socket is closed.
    fn drain(&mut self) {
        self.phase = Phase::Draining;
        self.guest_shutdown = SHUTDOWN_BOTH;
        if self.buffer.is_empty() {
            self.pass_shutdown_on();
        }
    }

    /// Shuts down the host's socket as far as the guest has shut down its own.
    fn pass_shutdown_on(&mut self) {
        if self.phase == Phase::Draining {
            self.stream = None;
            self.phase = Phase::Closed;
        } else if let Some(stream) =
            self.stream.as_ref().filter(|_| self.guest_shutdown & SHUTDOWN_WRITE != 0)
        {
            // Fails only if the host has closed it already.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// The next packet for the guest, its payload written into `data`.
    pub fn next_packet(
        &mut self,
        data: Option<&VolatileSlice<'_>>,
        host_port: u32,
        guest_port: u32,
    ) -> Option<Header> {
        let (operation, flags, length) = match self.pending.pop_front() {
            Some((operation, flags)) => (operation, flags, 0),
            None => match self.read_host(data?)? {
                0 => (Operation::Shutdown, SHUTDOWN_WRITE, 0),
                length => (Operation::ReadWrite, 0, length),
            },
        };
        self.told_fwd_cnt = self.fwd_cnt;
        Some(Header {
            host_port,
            guest_port,
            operation,
            flags,
            length,
            buf_alloc: BUFFER_SIZE,
            fwd_cnt: self.fwd_cnt.0,
        })
    }

    /// Reads from the host's socket into guest memory: 0 is its end.
    fn read_host(&mut self, data: &VolatileSlice<'_>) -> Option<u32> {
        if !self.can_read() {
            return None;
        }
        let stream = self.stream.as_ref()?;
        let length = data.len().min(self.credit() as usize);
        // SAFETY: pointer and length lie inside a slice of guest memory, which stays mapped while
        // it is borrowed, and which nothing else here holds a reference to.
        let result = unsafe {
            let pointer = data.ptr_guard_mut().as_ptr().cast();
            libc::recv(stream.as_raw_fd(), pointer, length, libc::MSG_DONTWAIT)
        };
        match u32::try_from(result) {
            Ok(0) => {
                self.readable = false;
                self.host_ended = true;
                if self.hung_up {
                    self.close_host();
                }
                Some(0)
            }
            Ok(count) => {
                self.sent += count;
                Some(count)
            }
            Err(_) => {
                self.readable = false;
                if io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock {
                    self.close_host();
                }
                None
            }
        }
    }

    /// Whether nothing is left to do: no packet to send, and no side left.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Closed && self.pending.is_empty()
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
