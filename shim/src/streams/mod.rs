//! Standard streams and terminals.
//!
//! [`ends`] opens the host's ends of a process's streams, and [`relay`] copies between these and the guest.

pub mod ends;
pub mod relay;
pub mod signals;
pub mod terminal;
pub mod uri;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::sys::stat::{SFlag, fstat, makedev};
use serde::{Deserialize, Serialize};

pub use ends::{Ends, EndsError, StreamSource};
pub use relay::{OutputRelay, STALL, start_relays};

/// Which of a process's standard streams are `/dev/null`. The process in the guest gets the guest's `/dev/null` for
/// these, because programs check whether their input is a pipe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NullStreams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

fn is_null(fd: BorrowedFd<'_>) -> bool {
    fstat(fd).is_ok_and(|stat| {
        SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR
            && stat.st_rdev == makedev(1, 3)
    })
}

/// Closes this process's standard streams; the relays have copies of those that they need. A reader or writer of the
/// other ends must not wait for this process. Its own messages go to the file `log`.
///
/// # Errors
/// If the log or `/dev/null` cannot be opened.
pub fn let_go(log: &Path) -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&log)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn only_the_null_device_is_one() {
        assert!(is_null(File::open("/dev/null").unwrap().as_fd()));
        assert!(!is_null(File::open("/dev/zero").unwrap().as_fd()));
        assert!(!is_null(io::pipe().unwrap().0.as_fd()));
        assert!(!is_null(File::open("/").unwrap().as_fd()));
    }
}
