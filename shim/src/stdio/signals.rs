//! The signals that a host process forwards to its process in the guest.

use nix::sys::signal::{SigSet, Signal};

/// The signals, less those of the kernel's own making such as SIGSEGV, which mean the process
/// itself, and those that nobody can catch.
const FORWARDED: [Signal; 8] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

fn forwarded() -> SigSet {
    FORWARDED.iter().copied().collect()
}

/// Keeps the signals from this thread and those that it starts: they wait for [`next`].
pub fn block() {
    // Fails only for a wrong argument.
    let _ = forwarded().thread_block();
}

/// Waits for the next of the signals.
pub fn next() -> Option<Signal> {
    forwarded().wait().ok()
}
