//! Loads the guest kernel and the guest root into memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryRegion};

use super::layout::HIGH_RAM_START;
use super::mapped_file::MappedFile;
use crate::memory::Memory;

/// The first bytes of an uncompressed cpio archive in the "newc" format.
const CPIO_MAGIC: &[u8] = b"070701";

/// The kernel or the guest root could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The kernel is no ELF image, or does not fit.
    #[error("the guest kernel is not a usable ELF image, or needs more memory than the VM has")]
    Kernel(#[source] linux_loader::loader::Error),
    /// The kernel cannot be entered.
    #[error("the guest kernel has no PVH entry (CONFIG_PVH)")]
    NoPvhEntry,
    /// The guest root could not be read.
    #[error("the guest root could not be read")]
    ReadRoot(#[source] io::Error),
    /// The guest root is not what the kernel unpacks.
    #[error("the guest root is not an uncompressed cpio archive (newc)")]
    NotCpio,
    /// It does not fit.
    #[error("the guest root of {root} bytes does not fit behind the kernel into {low} bytes of memory")]
    RootTooLarge {
        /// Bytes of the archive.
        root: u64,
        /// Bytes of low memory.
        low: u64,
    },
    /// Guest memory refused a write.
    #[error("the guest root could not be written to guest memory")]
    WriteRoot(#[source] vm_memory::GuestMemoryError),
}

/// Where the kernel is.
#[derive(Clone, Copy, Debug)]
pub struct LoadedKernel {
    /// Its 32-bit PVH entry.
    pub entry: GuestAddress,
    /// The first byte behind it.
    pub end: GuestAddress,
}

/// Where the guest root is.
#[derive(Clone, Copy, Debug)]
pub struct LoadedRoot {
    /// Its first byte.
    pub start: GuestAddress,
    /// Its length in bytes.
    pub length: u64,
}

/// Loads the kernel to the address that it is linked for.
///
/// # Errors
/// [`LoadError`] if it is not an ELF image with a PVH entry, or does not fit.
pub fn load_kernel(memory: &Memory, kernel: &File) -> Result<LoadedKernel, LoadError> {
    let loaded = Elf::load(memory, None, &mut MappedFile(kernel), Some(GuestAddress(HIGH_RAM_START)))
        .map_err(LoadError::Kernel)?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => {
            Ok(LoadedKernel { entry, end: GuestAddress(loaded.kernel_end) })
        }
        _ => Err(LoadError::NoPvhEntry),
    }
}

/// Loads the guest root to the end of low memory, as far from the kernel as can be.
///
/// # Errors
/// [`LoadError`] if it is no cpio archive, or does not fit behind the kernel.
pub fn load_root(memory: &Memory, kernel: LoadedKernel, root: &File) -> Result<LoadedRoot, LoadError> {
    let mut magic = [0; CPIO_MAGIC.len()];
    root.read_exact_at(&mut magic, 0).map_err(LoadError::ReadRoot)?;
    if magic != CPIO_MAGIC {
        return Err(LoadError::NotCpio);
    }
    let length = root.metadata().map_err(LoadError::ReadRoot)?.len();
    let low = memory.find_region(GuestAddress(0)).map_or(0, |region| region.len());
    let start = low.checked_sub(length).map(|start| start & !0xfff).filter(|&start| start >= kernel.end.0);
    let Some(start) = start.map(GuestAddress) else {
        return Err(LoadError::RootTooLarge { root: length, low });
    };
    let count = usize::try_from(length).map_err(|_| LoadError::RootTooLarge { root: length, low })?;
    memory.read_exact_volatile_from(start, &mut MappedFile(root), count).map_err(LoadError::WriteRoot)?;
    Ok(LoadedRoot { start: GuestAddress(start.raw_value()), length })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use std::io::Write;

    fn file_with(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file
    }

    const KERNEL: LoadedKernel =
        LoadedKernel { entry: GuestAddress(0x100_0000), end: GuestAddress(0x200_0000) };

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        let memory = memory::create(64).unwrap();
        for bytes in [&b""[..], b"MZ", &[0; 4096], b"\x7fELF\x02\x01\x01"] {
            assert!(matches!(load_kernel(&memory, &file_with(bytes)), Err(LoadError::Kernel(_))));
        }
    }

    #[test]
    fn the_root_goes_to_the_end_of_memory() {
        let memory = memory::create(64).unwrap();
        let archive = [CPIO_MAGIC, &[9; 5000]].concat();
        let root = load_root(&memory, KERNEL, &file_with(&archive)).unwrap();
        assert_eq!(root.start.0, (64 << 20) - 8192);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(root.start.0 + root.length - 1)).unwrap(), 9);
    }

    #[test]
    fn a_root_that_is_no_archive_or_too_large_is_refused() {
        let memory = memory::create(64).unwrap();
        assert!(matches!(load_root(&memory, KERNEL, &file_with(b"07")), Err(LoadError::ReadRoot(_))));
        assert!(matches!(load_root(&memory, KERNEL, &file_with(&[0x1f; 100])), Err(LoadError::NotCpio)));
        let file = file_with(CPIO_MAGIC);
        file.set_len(40 << 20).unwrap();
        let result = load_root(&memory, KERNEL, &file);
        assert!(matches!(result, Err(LoadError::RootTooLarge { .. })));
    }
}
