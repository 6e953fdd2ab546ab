//! The control socket: packets with descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use serde::Serialize;
use serde::de::DeserializeOwned;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Bytes of the longest message.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// Descriptors that may come with one message.
pub const MAX_DESCRIPTORS: usize = 12;

/// One end of a control socket.
#[derive(Debug)]
pub struct ControlSocket(OwnedFd);

impl ControlSocket {
    /// A connected pair.
    ///
    /// # Errors
    /// The error of `socketpair(2)`.
    pub fn pair() -> io::Result<(Self, Self)> {
        let mut fds = [0; 2];
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
        // SAFETY: the pointer is to two integers.
        if unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: both descriptors are new and nothing else owns them.
        let [one, other] = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        Ok((ControlSocket(one), ControlSocket(other)))
    }

    /// Takes a descriptor over, which must be a connected `SOCK_SEQPACKET` socket.
    pub fn from_fd(fd: OwnedFd) -> Self {
        ControlSocket(fd)
    }

    /// Makes sending and receiving return at once.
    ///
    /// # Errors
    /// The error of `fcntl(2)`.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        // SAFETY: these calls take and give numbers only.
        let result = unsafe {
            let flags = libc::fcntl(self.as_raw_fd(), libc::F_GETFL);
            libc::fcntl(self.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends one message with descriptors, at most [`MAX_DESCRIPTORS`].
    ///
    /// # Errors
    /// The error of `sendmsg(2)`, or `InvalidInput` if the message is too long.
    pub fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the control message is too long"));
        }
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        self.send_with_fds(&[bytes.as_slice()], &fds)?;
        Ok(())
    }

    /// Receives one message and the descriptors that came with it; nothing at the end.
    ///
    /// # Errors
    /// The error of `recvmsg(2)`, or `InvalidData` if the bytes are not such a message.
    pub fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = vec![0u8; MAX_MESSAGE];
        let mut fds: [RawFd; MAX_DESCRIPTORS] = [-1; MAX_DESCRIPTORS];
        let mut vectors = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
        // SAFETY: the vector points to a live buffer of its length.
        let mut received = unsafe { self.recv_with_fds(&mut vectors, &mut fds) };
        if received.as_ref().is_err_and(|error| error.errno() == libc::ECONNRESET) {
            // The other side closed before it had read everything. That is told once, and first;
            // what the other side had sent is still to come.
            // SAFETY: as above.
            received = unsafe { self.recv_with_fds(&mut vectors, &mut fds) };
        }
        let (length, count) = received?;
        // SAFETY: descriptors that were received are new and nothing else owns them.
        let fds = fds.iter().take(count).map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) }).collect();
        if length == 0 {
            return Ok(None);
        }
        let message = serde_json::from_slice(bytes.get(..length).unwrap_or_default())?;
        Ok(Some((message, fds)))
    }
}

impl AsRawFd for ControlSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ScmSocket for ControlSocket {
    fn socket_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<ControlSocket> for OwnedFd {
    fn from(socket: ControlSocket) -> OwnedFd {
        socket.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Command, Request};
    use std::io::Read;

    #[test]
    fn a_message_and_its_descriptor_arrive_together() {
        let (one, other) = ControlSocket::pair().unwrap();
        let request = Request { id: 7, command: Command::Connect { port: 1, timeout_ms: 2 } };
        let (mut reader, writer) = std::io::pipe().unwrap();
        one.send(&request, &[writer.as_fd()]).unwrap();
        drop(writer);
        let (received, fds): (Request, _) = other.receive().unwrap().unwrap();
        assert_eq!(received, request);
        assert_eq!(fds.len(), 1);
        drop(fds);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "the descriptor was the pipe's last writer");
        drop(one);
        assert!(other.receive::<Request>().unwrap().is_none());
    }

    #[test]
    fn the_last_word_of_a_side_that_did_not_listen_arrives() {
        let (one, other) = ControlSocket::pair().unwrap();
        one.send(&"unread", &[]).unwrap();
        other.send(&"last word", &[]).unwrap();
        drop(other);
        assert_eq!(one.receive::<String>().unwrap().unwrap().0, "last word");
        assert!(one.receive::<String>().unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (one, other) = ControlSocket::pair().unwrap();
        one.send(&serde_json::json!({"id": 1, "command": "explode"}), &[]).unwrap();
        assert!(other.receive::<Request>().is_err());
        assert!(one.send(&"x".repeat(MAX_MESSAGE), &[]).is_err());
    }
}
