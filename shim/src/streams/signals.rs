//! The signals that a host process forwards to its process in the guest.

use nix::sys::signal::{SigSet, Signal};

/// The signals to forward: all except those that the kernel generates, such as SIGSEGV, which concern this process, and
/// those that cannot be caught.
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

/// Blocks the signals in this thread and in threads that it starts; [`next`] receives them.
pub fn block() {
    // Fails only for a wrong argument.
    let _ = forwarded().thread_block();
}

/// Waits for the next of the signals.
pub fn next() -> Option<Signal> {
    forwarded().wait().ok()
}
