//! The command line's side of the socket of a sandbox host process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect, getsockopt, listen, socket,
    sockopt,
};
use pouch_vmm_api::control::ControlSocket;
use serde::{Deserialize, Serialize};

use super::protocol::{Answer, Request};
use crate::container::ContainerDir;
use crate::failure::{Failure, printable};

/// The host process cannot be reached, or refuses the request.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// It cannot be reached.
    #[error("the host process of the container cannot be reached at {path}")]
    Connect {
        /// Its socket.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// It ended during the request.
    #[error("the host process of the container ended before it responded")]
    Gone(#[source] Option<io::Error>),
    /// It is of another build.
    #[error("unknown response from the host process of the container, which is of another build of pouch-vm")]
    Answer(#[source] io::Error),
    /// It refuses.
    #[error("{}", .0.message)]
    Refused(Failure),
}

impl ClientError {
    /// The exit status that tells this error.
    pub fn status(&self) -> u8 {
        match self {
            ClientError::Refused(failure) => failure.status,
            _ => 1,
        }
    }
}

/// How the host process of a container is reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostAddress {
    /// The socket of the process.
    pub socket: PathBuf,
    /// The container, if it is one of a pod.
    pub member: Option<String>,
}

impl HostAddress {
    /// That of the container with this directory.
    pub fn of(dir: &ContainerDir) -> Self {
        HostAddress { socket: dir.socket(), member: dir.pod().map(|_| dir.id().to_string()) }
    }

    /// Connects, for requests that concern the container.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if no process listens; [`ClientError::Refused`] if the pod has no such container.
    pub fn connect(&self) -> Result<HostClient, ClientError> {
        let host = HostClient::connect(&self.socket)?;
        if let Some(id) = &self.member {
            host.ask(&Request::Container(id.clone()))?;
        }
        Ok(host)
    }
}

/// A connection to a sandbox host process.
pub struct HostClient(ControlSocket);

impl HostClient {
    /// Connects to the process that listens at `path`.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if none does.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let error = |source: io::Error| ClientError::Connect { path: path.to_owned(), source };
        let fd = seqpacket().map_err(error)?;
        let (short, _directory) = short(path)?;
        let address = UnixAddr::new(&short).map_err(|errno| error(errno.into()))?;
        connect(fd.as_raw_fd(), &address).map_err(|errno| error(errno.into()))?;
        Ok(HostClient(ControlSocket::from_fd(fd)))
    }

    /// The process that listens.
    pub fn peer(&self) -> Option<i32> {
        getsockopt(&self.0.as_fd(), sockopt::PeerCredentials).ok().map(|credentials| credentials.pid())
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError`] if there is none.
    pub fn ask(&self, request: &Request) -> Result<(Answer, Vec<OwnedFd>), ClientError> {
        self.ask_with(request, &[])
    }

    /// As [`ask`](Self::ask), with descriptors for the request.
    ///
    /// # Errors
    /// [`ClientError`] if there is no answer.
    pub fn ask_with(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Answer, Vec<OwnedFd>), ClientError> {
        self.0.send(request, fds).map_err(|error| ClientError::Gone(Some(error)))?;
        match self.0.receive::<Answer>() {
            // What it says may be its guest's word, and is shown on terminals.
            Ok(Some((Answer::Failed(Failure { message, status }), _))) => {
                Err(ClientError::Refused(Failure { message: printable(&message), status }))
            }
            Ok(Some((Answer::Processes(mut list), fds))) => {
                for process in &mut list {
                    process.terminal = printable(&process.terminal);
                    process.command = printable(&process.command);
                }
                Ok((Answer::Processes(list), fds))
            }
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(ClientError::Gone(None)),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(ClientError::Answer(error)),
            Err(error) => Err(ClientError::Gone(Some(error))),
        }
    }
}

/// A socket's address has room for 107 bytes only (unix(7)); through a descriptor of its
/// directory any path fits.
///
/// The file must stay open while the address is used, because the address refers to it.
fn short(path: &Path) -> Result<(PathBuf, Option<fs::File>), ClientError> {
    if path.as_os_str().len() < 100 {
        return Ok((path.to_owned(), None));
    }
    let error = |source| ClientError::Connect { path: path.to_owned(), source };
    let directory = fs::File::open(path.parent().unwrap_or(Path::new("/"))).map_err(error)?;
    let name = path.file_name().unwrap_or_default();
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((short, Some(directory)))
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?)
}

/// The listening side of the socket.
pub struct HostListener(OwnedFd);

impl HostListener {
    /// Listens at `path`, which must not exist.
    ///
    /// # Errors
    /// [`ClientError::Connect`] if the socket cannot be made.
    pub fn bind(path: &Path) -> Result<Self, ClientError> {
        let error = |source: io::Error| ClientError::Connect { path: path.to_owned(), source };
        let fd = seqpacket().map_err(error)?;
        let (short, _directory) = short(path)?;
        let address = UnixAddr::new(&short).map_err(|errno| error(errno.into()))?;
        bind(fd.as_raw_fd(), &address).map_err(|errno| error(errno.into()))?;
        listen(&fd, Backlog::MAXCONN).map_err(|errno| error(errno.into()))?;
        Ok(HostListener(fd))
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// The error of `accept(2)`.
    pub fn accept(&self) -> io::Result<ControlSocket> {
        use std::os::fd::FromRawFd;
        let fd = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        // SAFETY: the descriptor is new and nothing else owns it.
        Ok(ControlSocket::from_fd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}
