//! A new terminal in the container for a process of exec.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::statfs::fstatfs;

/// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
const DEVPTS: i64 = 0x1cd1;
/// What makes terminals, in the file system that has them; `/dev/ptmx` may lead to that of another.
const PTMX: &str = "/dev/pts/ptmx";

/// Connects to the socket at `path`, through a short name for its directory: a socket's path may have
/// 107 bytes only.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = File::open(parent)?;
    UnixStream::connect(Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
}

/// Makes a terminal, sends its master through `socket`, and makes it the terminal and the standard streams of this
/// process, which must lead its session.
pub fn take(socket: &UnixStream) -> io::Result<()> {
    let flags = libc::O_NOCTTY | libc::O_CLOEXEC;
    let master = File::options().read(true).write(true).custom_flags(flags).open(PTMX)?;
    // The container may have put something else there.
    let is_terminal = master.metadata()?.st_rdev() == libc::makedev(5, 2)
        && fstatfs(&master)?.filesystem_type().0 == DEVPTS;
    if !is_terminal {
        return Err(io::Error::other(format!("{PTMX} of the container is not that of a devpts")));
    }
    let unlocked: libc::c_int = 0;
    // SAFETY: TIOCSPTLCK reads one integer.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) })?;
    // SAFETY: TIOCGPTPEER takes open flags by value and returns a new descriptor or -1.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | flags) };
    check(slave)?;
    // SAFETY: the call above just made this descriptor, and nobody else has it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    let rights = [master.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&rights)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"terminal")], &message, MsgFlags::empty(), None)?;
    for stream in 0..3 {
        // SAFETY: dup2 takes two descriptors; the second is a standard stream of this process, which nothing in
        // it uses.
        check(unsafe { libc::dup2(slave.as_raw_fd(), stream) })?;
    }
    // SAFETY: TIOCSCTTY takes a number.
    check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
