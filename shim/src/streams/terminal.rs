//! Terminals on the host.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::pty::{OpenptyResult, openpty};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::termios::{self, SetArg, Termios};

mod requests {
    //! tty_ioctl(4).
    #![allow(missing_docs)]
    nix::ioctl_read_bad!(get_window_size, libc::TIOCGWINSZ, libc::winsize);
    nix::ioctl_write_int_bad!(set_controlling_terminal, libc::TIOCSCTTY);
}
use requests::{get_window_size, set_controlling_terminal};

/// A terminal could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// The engine's socket cannot be reached.
    #[error("the console socket {path} cannot be used")]
    Socket {
        /// The socket.
        path: std::path::PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// No pseudo-terminal.
    #[error("a pseudo-terminal could not be created")]
    Open(#[source] nix::Error),
    /// A terminal could not be changed.
    #[error("the terminal could not be {0}")]
    Change(&'static str, #[source] nix::Error),
    /// Standard input is no terminal.
    #[error(
        "process.terminal asks for a terminal, but there is no --console-socket and standard input is not a terminal"
    )]
    NoTerminal,
}

/// The size of a terminal as (rows, columns), if it has one.
pub fn size(terminal: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is to a live structure of the type that the request fills.
    unsafe { get_window_size(terminal.as_raw_fd(), &raw mut size) }.ok()?;
    (size.ws_row > 0).then_some((size.ws_row.into(), size.ws_col.into()))
}

/// Creates a pseudo-terminal, sends its master to the engine through the socket `path`, and makes the slave, which is
/// returned, the controlling terminal of this process, so that it is notified of size changes. The process must be a
/// session leader.
///
/// # Errors
/// [`TerminalError`] names the step.
pub fn send_console(path: &Path) -> Result<File, TerminalError> {
    let error = |source| TerminalError::Socket { path: path.to_owned(), source };
    let socket = UnixStream::connect(path).map_err(error)?;
    let OpenptyResult { master, slave } = openpty(None, None).map_err(TerminalError::Open)?;
    raw_mode(slave.as_fd())?;
    // SAFETY: the request takes a number.
    unsafe { set_controlling_terminal(slave.as_raw_fd(), 0) }
        .map_err(|error| TerminalError::Change("made the controlling terminal", error))?;
    let fds = [master.as_raw_fd()];
    let name = IoSlice::new(b"/dev/ptmx");
    sendmsg::<()>(socket.as_raw_fd(), &[name], &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None)
        .map_err(|errno| error(errno.into()))?;
    Ok(File::from(slave))
}

/// Passes every byte on unchanged: echo, line editing and signals are handled by the guest's terminal.
fn raw_mode(terminal: BorrowedFd<'_>) -> Result<Termios, TerminalError> {
    let before = termios::tcgetattr(terminal).map_err(|e| TerminalError::Change("read", e))?;
    let mut raw = before.clone();
    termios::cfmakeraw(&mut raw);
    termios::tcsetattr(terminal, SetArg::TCSANOW, &raw).map_err(|e| TerminalError::Change("set", e))?;
    Ok(before)
}

/// A terminal in raw mode, which gets its old mode back when this is dropped.
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Puts `terminal` into raw mode.
    ///
    /// # Errors
    /// [`TerminalError::NoTerminal`] if it is none.
    pub fn enter(terminal: BorrowedFd<'_>) -> Result<Self, TerminalError> {
        let terminal = terminal.try_clone_to_owned().map_err(|_| TerminalError::NoTerminal)?;
        let before = raw_mode(terminal.as_fd()).map_err(|_| TerminalError::NoTerminal)?;
        Ok(RawTerminal { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSADRAIN, &self.before);
    }
}
