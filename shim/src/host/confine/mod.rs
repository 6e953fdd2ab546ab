//! Takes from a sandbox host process what creating a container needed and running one does not.
//!
//! The process parses what the guest says. An error in a parser must not be worth more to the guest than its own
//! container. docs/security.md lists what the process has afterwards.
//!
//! 1. [`capabilities`]: all threads but the first start without capabilities, except for the network's.
//! 2. [`root`]: an almost empty root directory.
//! 3. [`calls`]: a seccomp filter for all threads.

mod calls;
pub mod capabilities;
mod root;

use std::io;
use std::path::PathBuf;

pub use root::Root;

/// The process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A part of the new root.
    #[error("{path} could not be {action} for the sandbox host process")]
    Root {
        /// The file or directory.
        path: PathBuf,
        /// The operation.
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// Capabilities.
    #[error("the sandbox host process could not drop its capabilities")]
    Capabilities(#[from] caps::errors::CapsError),
    /// The filter.
    #[error("the system calls of the sandbox host process could not be restricted")]
    Calls(#[from] seccompiler::Error),
}

/// Confines this process with all its threads, irreversibly. The calling thread is the one that has capabilities left.
///
/// # Errors
/// [`ConfineError`] names the step. The process must not run a container then.
pub fn enter(root: &Root) -> Result<(), ConfineError> {
    root.enter()?;
    capabilities::drop_all_but_network()?;
    Ok(calls::restrict()?)
}
