//! The descriptors that a process was started with.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_setfd};

/// The inherited descriptors above the standard streams that have not been claimed yet.
#[derive(Debug, Default)]
pub struct Inherited(BTreeMap<RawFd, OwnedFd>);

impl Inherited {
    /// Takes over every open descriptor from 3 on, and lets no program that this process executes inherit it.
    ///
    /// # Safety
    /// Nothing in the process may own a descriptor from 3 on: call it once, first in `main`.
    ///
    /// # Errors
    /// If `/proc/self/fd` cannot be read.
    pub unsafe fn take() -> io::Result<Self> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir("/proc/self/fd")? {
            let number = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
            numbers.extend(number.filter(|number| *number > 2));
        }
        let mut all = BTreeMap::new();
        for number in numbers {
            // SAFETY: the number is used for one call only, which fails if no such descriptor is open.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            // The directory that was read is closed by now.
            if fcntl_setfd(fd, FdFlags::CLOEXEC).is_ok() {
                // SAFETY: it is open, and by this function's contract nothing owns it.
                all.insert(number, unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
        Ok(Inherited(all))
    }

    /// The descriptor of this number, which can be claimed once.
    ///
    /// # Errors
    /// `EBADF` if it was not inherited, or is claimed already.
    pub fn claim(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        self.0.remove(&number).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// The unclaimed descriptors.
    pub fn iter(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.values().map(AsFd::as_fd)
    }
}

/// Descriptors that stand for inherited ones, such as those that another process is to inherit.
impl FromIterator<OwnedFd> for Inherited {
    fn from_iter<I: IntoIterator<Item = OwnedFd>>(fds: I) -> Self {
        use std::os::fd::AsRawFd;
        Inherited(fds.into_iter().map(|fd| (fd.as_raw_fd(), fd)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_descriptor_is_claimed_once() {
        let fd = OwnedFd::from(fs::File::open("/dev/null").unwrap());
        let number = fd.as_raw_fd();
        let mut inherited: Inherited = [fd].into_iter().collect();
        assert_eq!(inherited.iter().count(), 1);
        assert_eq!(inherited.claim(number).unwrap().as_raw_fd(), number);
        for wrong in [number, -1, 0, 9999] {
            assert_eq!(inherited.claim(wrong).unwrap_err().raw_os_error(), Some(libc::EBADF), "{wrong}");
        }
    }
}
