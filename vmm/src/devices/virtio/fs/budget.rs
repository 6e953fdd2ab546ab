//! How many descriptors the guest may make this process hold open.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Descriptors that are reserved for the VMM itself: connections, disks, network interfaces, requests in progress.
const RESERVED: u64 = 1024;

/// The descriptors that are left for the guest's files.
#[derive(Debug)]
pub struct Budget {
    left: AtomicU64,
}

/// The right to hold one descriptor, given back when it is dropped.
#[derive(Debug)]
pub struct Permit(Arc<Budget>);

impl Budget {
    /// A budget of so many descriptors.
    pub fn new(descriptors: u64) -> Self {
        Budget { left: AtomicU64::new(descriptors) }
    }

    /// The part of this process's limit of open files that the guest may use: all but [`RESERVED`], or three quarters
    /// if the limit is low.
    pub fn of_this_process() -> u64 {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        limit.saturating_sub(RESERVED).max(limit / 4 * 3)
    }

    /// Takes one.
    ///
    /// # Errors
    /// `ENFILE` if none is left.
    pub fn take(self: &Arc<Self>) -> io::Result<Permit> {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .map_err(|_| io::Error::from_raw_os_error(libc::ENFILE))?;
        Ok(Permit(self.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, Ordering::Relaxed);
    }
}
