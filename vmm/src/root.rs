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
/// Where an EROFS image has its superblock (fs/erofs/erofs_fs.h, `struct erofs_super_block`).
const EROFS_SUPERBLOCK: u64 = 1024;
/// The magic number, at its beginning (linux/magic.h).
const EROFS_MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();
/// Where it has the size of a block, as a power of two, and the number of blocks (32 bits).
const BLOCK_BITS_OFFSET: usize = 12;
const BLOCKS_OFFSET: usize = 36;

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
    /// A part of it is missing.
    #[error(
        "the guest root {name} has {size} bytes, but its superblock says {expected}; build or install it anew"
    )]
    Truncated {
        /// The file.
        name: String,
        /// Its size.
        size: u64,
        /// The size of the file system in it.
        expected: u64,
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
    let mut superblock = [0; BLOCKS_OFFSET + 4];
    match file.read_exact_at(&mut superblock, EROFS_SUPERBLOCK) {
        Ok(()) if superblock.starts_with(&EROFS_MAGIC) => {}
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(read(error)),
        _ => return Err(RootError::NotErofs(name.to_owned())),
    }
    let expected = image_size(&superblock);
    if expected > size {
        return Err(RootError::Truncated { name: name.to_owned(), size, expected });
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

/// Bytes of the file system that has this superblock.
fn image_size(superblock: &[u8; BLOCKS_OFFSET + 4]) -> u64 {
    let [.., a, b, c, d] = *superblock;
    let blocks = u64::from(u32::from_le_bytes([a, b, c, d]));
    // No kernel takes blocks of 2 to the power of more than 16 bytes.
    blocks << superblock[BLOCK_BITS_OFFSET].min(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file.write_all_at(&EROFS_MAGIC, EROFS_SUPERBLOCK).unwrap();
        file
    }

    #[test]
    fn an_image_is_mapped_as_a_whole() {
        let root = map(&image(2 * UNIT), "r").unwrap();
        assert_eq!(root.size, 4 << 20);
        // SAFETY: the mapping is there until the process ends.
        let magic = unsafe { root.address.add(EROFS_SUPERBLOCK as usize).cast::<[u8; 4]>().read() };
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

    #[test]
    fn an_image_without_its_end_is_refused() {
        let image = image(UNIT);
        let set_blocks = |blocks: u32| {
            image.write_all_at(&[12], EROFS_SUPERBLOCK + BLOCK_BITS_OFFSET as u64).unwrap();
            image.write_all_at(&blocks.to_le_bytes(), EROFS_SUPERBLOCK + BLOCKS_OFFSET as u64).unwrap();
        };
        set_blocks(512);
        map(&image, "r").unwrap();
        for blocks in [513, u32::MAX] {
            set_blocks(blocks);
            let expected = u64::from(blocks) * 4096;
            let error = map(&image, "r").unwrap_err();
            assert!(
                matches!(error, RootError::Truncated { expected: found, .. } if found == expected),
                "{error}"
            );
        }
    }
}
