//! What distinguishes a VM from others: its hostname and its random numbers.

use std::io;
use std::os::fd::AsRawFd;

use ttrpc::proto::Code;

use crate::error::{Coded, RequestError};

/// The most that one AddEntropy request may carry.
pub const ENTROPY_MAX: usize = 4096;

/// Why the identity of the VM could not be set.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The kernel refused the host name.
    #[error("hostname: the kernel refused it")]
    Hostname(#[source] nix::Error),
    /// The generator could not be fed.
    #[error("entropy.data: /dev/random refused it")]
    Entropy(#[source] io::Error),
}

impl Coded for IdentityError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            _ => Code::INTERNAL,
        }
    }
}

/// Checks and sets the guest's host name.
pub fn set_hostname(name: &str) -> Result<(), IdentityError> {
    if name.is_empty() || name.len() > 64 || name.contains(['\0', '\n', '/']) {
        return Err(
            RequestError::new("hostname", "must have 1 to 64 bytes without NUL, newline and slash").into()
        );
    }
    nix::unistd::sethostname(name).map_err(IdentityError::Hostname)
}

/// Mixes `data` into the kernel's generator, credits it in full, and reseeds the generator,
/// so that two clones of one VM differ from here on.
pub fn add_entropy(data: &[u8]) -> Result<(), IdentityError> {
    if data.is_empty() || data.len() > ENTROPY_MAX {
        let reason = format!("must have 1 to {ENTROPY_MAX} bytes, not {}", data.len());
        return Err(RequestError::new("entropy.data", reason).into());
    }
    let random = std::fs::File::open("/dev/urandom").map_err(IdentityError::Entropy)?;
    let message = entropy_message(data);
    // SAFETY: RNDADDENTROPY reads a rand_pool_info, which `message` holds: its header
    // names the length of what follows. The descriptor is open for the call.
    let added = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, message.as_ptr()) };
    if added != 0 {
        return Err(IdentityError::Entropy(io::Error::last_os_error()));
    }
    // SAFETY: RNDRESEEDCRNG takes no argument.
    let reseeded = unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) };
    // ENODATA says that the generator is not ready yet: then it will take its seed, this
    // data included, when it is.
    if reseeded != 0 && io::Error::last_os_error().raw_os_error() != Some(libc::ENODATA) {
        return Err(IdentityError::Entropy(io::Error::last_os_error()));
    }
    Ok(())
}

const RNDADDENTROPY: libc::Ioctl = 0x4008_5203_u32 as libc::Ioctl;
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// A `struct rand_pool_info`: the credit in bits, the length in bytes, the bytes; in whole
/// words, because the kernel's structure is one of words.
fn entropy_message(data: &[u8]) -> Vec<u32> {
    let mut words = vec![data.len() as u32 * 8, data.len() as u32];
    for chunk in data.chunks(4) {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        words.push(u32::from_ne_bytes(word));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entropy_message_has_its_header() {
        assert_eq!(entropy_message(&[1, 0, 0, 0, 2]), [40, 5, 1, 2]);
    }

    #[test]
    fn bad_requests_are_named() {
        let text = |result: Result<(), IdentityError>| pouch_errors::chain(&result.unwrap_err());
        assert!(text(add_entropy(&[])).starts_with("entropy.data: "));
        assert!(text(add_entropy(&[0; ENTROPY_MAX + 1])).starts_with("entropy.data: "));
        assert!(text(set_hostname("a/b")).starts_with("hostname: "));
    }
}
