//! Forwards signals and terminal sizes from a host proxy process to its process in the guest.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::thread;

use nix::sys::signal::Signal;

use crate::host::client::HostAddress;
use crate::host::protocol::Request;
use crate::streams::signals;
use crate::streams::terminal;

/// Passes signals, which must be blocked, and changes of the size of the terminal `console` on to the process
/// `exec_id`, or to the container's own, through the host process at `address`. Both end with this
/// process.
///
/// # Errors
/// If a thread cannot be started.
pub fn signals(address: HostAddress, exec_id: Option<String>, console: Option<File>) -> io::Result<()> {
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Some(signal) = signals::next() {
            let exec_id = exec_id.clone();
            let request = if signal == Signal::SIGWINCH {
                match console.as_ref().and_then(|console| terminal::size(console.as_fd())) {
                    Some((rows, columns)) => Request::Resize { exec_id, rows, columns },
                    None => continue,
                }
            } else {
                Request::Signal { exec_id, signal: signal as u32, all: false }
            };
            // The process may be ending.
            if let Ok(host) = address.connect() {
                let _ = host.ask(&request);
            }
        }
    })?;
    Ok(())
}
