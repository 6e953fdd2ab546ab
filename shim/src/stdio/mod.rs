//! Standard streams and terminals.

pub mod relay;
pub mod signals;
pub mod terminal;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub use relay::{OutputRelay, STALL, start_relays};

/// Lets go of this process's standard streams, which the relays hold now if they need them: whoever
/// reads or writes their other ends must not wait for this process. What it has to say itself goes to
/// the file `log`.
///
/// # Errors
/// What opening the log or `/dev/null` says.
pub fn let_go(log: &Path) -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let log = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&log)?;
    Ok(())
}
