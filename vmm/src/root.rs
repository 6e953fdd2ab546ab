//! The guest root: an image in read-only memory.
//!
//! All VMs of a host map the same file, so they share its pages in the host's page cache. Nothing is copied,
//! and no guest can write to it. The guest sees persistent memory and uses the pages directly (DAX).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;

use crate::arch::layout::ROOT_MAX_SIZE;

/// The unit in which the guest describes persistent memory (2 MiB, a subsection of Linux's sparse
/// memory map).
const UNIT: u64 = 2 << 20;
/// The magic number of an EROFS super block, and where it is (linux/magic.h, fs/erofs/erofs_fs.h).
const EROFS_MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();
const EROFS_SUPER_BLOCK: u64 = 1024;

/// The guest root cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// It cannot be read.
    #[error("the guest root {name} could not be read")]
    Read {
        /// The file.
        name: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// It is something else.
    #[error("the guest root {0} is not an EROFS image")]
    NotErofs(String),
    /// It has a wrong size.
    #[error("the guest root {name} has {size} bytes, but must have a multiple of 2 MiB, at most 512 MiB")]
    Size {
        /// The file.
        name: String,
        /// Its size.
        size: u64,
    },
    /// It cannot be mapped.
    #[error("the guest root {name} could not be mapped")]
    Map {
        /// The file.
        name: String,
        /// The kernel's error.
        source: io::Error,
    },
}

/// A mapped guest root. The mapping stays until the process ends.
#[derive(Clone, Copy, Debug)]
pub struct MappedRoot {
    /// Where it is in this process.
    pub address: *const u8,
    /// Its length in bytes.
    pub size: u64,
}

/// Maps the guest root in `file`, which errors call `name`.
///
/// # Errors
/// [`RootError`] if it is no image, or of a size that the guest cannot take.
pub fn map(file: &File, name: &str) -> Result<MappedRoot, RootError> {
    let read = |source| RootError::Read { name: name.to_owned(), source };
    let size = file.metadata().map_err(read)?.len();
    let mut magic = [0; EROFS_MAGIC.len()];
    match file.read_exact_at(&mut magic, EROFS_SUPER_BLOCK) {
        Ok(()) if magic == EROFS_MAGIC => {}
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(read(error)),
        _ => return Err(RootError::NotErofs(name.to_owned())),
    }
    if size > ROOT_MAX_SIZE || !size.is_multiple_of(UNIT) {
        return Err(RootError::Size { name: name.to_owned(), size });
    }
    // SAFETY: the kernel chooses the address, so no other mapping is touched; only the guest reads
    // this one.
    let address = unsafe {
        libc::mmap(ptr::null_mut(), size as usize, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    if address == libc::MAP_FAILED {
        return Err(RootError::Map { name: name.to_owned(), source: io::Error::last_os_error() });
    }
    Ok(MappedRoot { address: address.cast_const().cast(), size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&EROFS_MAGIC, EROFS_SUPER_BLOCK).unwrap();
        file
    }

    #[test]
    fn an_image_is_mapped_as_a_whole() {
        let root = map(&image(2 * UNIT), "r").unwrap();
        assert_eq!(root.size, 4 << 20);
        // SAFETY: the mapping is there until the process ends.
        let magic = unsafe { root.address.add(EROFS_SUPER_BLOCK as usize).cast::<[u8; 4]>().read() };
        assert_eq!(magic, EROFS_MAGIC);
    }

    #[test]
    fn what_is_no_image_or_of_a_wrong_size_is_refused_by_name() {
        let other = tempfile::tempfile().unwrap();
        assert_eq!(map(&other, "r").unwrap_err().to_string(), "the guest root r is not an EROFS image");
        other.set_len(UNIT).unwrap();
        assert!(matches!(map(&other, "r"), Err(RootError::NotErofs(_))));
        for size in [UNIT - 1, UNIT + 4096, ROOT_MAX_SIZE + UNIT] {
            assert!(matches!(map(&image(size), "r"), Err(RootError::Size { .. })), "{size}");
        }
    }
}
