//! Loads the guest kernel into memory.

use std::fs::File;
use std::io::Seek;
use std::ops::Range;

use elf::abi::PT_LOAD;
use elf::endian::LittleEndian;
use elf::{ElfStream, ParseError};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{GuestAddress, GuestMemory as _, GuestMemoryRegion as _};

use super::layout::HIGH_RAM_START;
use crate::memory::{self, Memory};

/// The kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is no ELF image.
    #[error("the guest kernel {name} is not an ELF image")]
    Parse {
        /// The file.
        name: String,
        /// What is wrong.
        source: ParseError,
    },
    /// The kernel cannot be used, or does not fit.
    #[error("the guest kernel {name} is not a usable ELF image, or needs more memory than the VM has")]
    Kernel {
        /// The file.
        name: String,
        /// What is wrong.
        source: linux_loader::loader::Error,
    },
    /// The kernel cannot be entered.
    #[error("the guest kernel {0} has no PVH entry (CONFIG_PVH)")]
    NoPvhEntry(String),
}

/// Bytes of a `struct page`, of which Linux makes one for each page of 4096 bytes
/// (include/linux/mm_types.h).
const STRUCT_PAGE_SIZE: u64 = 64;
/// Bytes at the end of memory that Linux takes for page tables and the areas of CPUs before it
/// makes those structures; measured.
const EARLY_ALLOCATIONS: u64 = 4 << 20;

/// Loads the kernel, which errors call `name`, to the address that it is linked for. It and the
/// structures that it makes first get huge pages as far as they can be had, as it touches all of
/// them while it boots. Returns its 32-bit PVH entry.
///
/// # Errors
/// [`LoadError`] if it is not an ELF image with a PVH entry, or does not fit.
pub fn load(memory: &Memory, mut kernel: &File, name: &str) -> Result<GuestAddress, LoadError> {
    let name = || name.to_owned();
    let parse = |source| LoadError::Parse { name: name(), source };
    memory::make_huge(memory, extent(kernel).map_err(parse)?);
    memory::make_huge(memory, page_structures(memory));
    kernel.rewind().map_err(|error| parse(error.into()))?;
    let loaded = Elf::load(memory, None, &mut kernel, Some(GuestAddress(HIGH_RAM_START)))
        .map_err(|source| LoadError::Kernel { name: name(), source })?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok(entry),
        _ => Err(LoadError::NoPvhEntry(name())),
    }
}

/// The guest-physical addresses that the kernel takes, with what it zeroes itself.
fn extent(kernel: &File) -> Result<Range<u64>, ParseError> {
    let image = ElfStream::<LittleEndian, _>::open_stream(kernel)?;
    let loaded = || image.segments().iter().filter(|segment| segment.p_type == PT_LOAD);
    let start = loaded().map(|segment| segment.p_paddr).min().unwrap_or(0);
    let end = loaded().map(|segment| segment.p_paddr.saturating_add(segment.p_memsz)).max().unwrap_or(0);
    Ok(start..end)
}

/// The guest-physical addresses where the kernel makes its page structures while it boots: it
/// takes early memory from the top (mm/memblock.c).
fn page_structures(memory: &Memory) -> Range<u64> {
    let size: u64 = memory.iter().map(|region| region.len()).sum();
    let end = memory.last_addr().0 + 1;
    let length = size / 4096 * STRUCT_PAGE_SIZE + EARLY_ALLOCATIONS;
    end.saturating_sub(length)..end
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn page_structures_lie_at_the_end_of_memory() {
        const MIB: u64 = 1 << 20;
        let range = |mib| page_structures(&memory::create(mib).unwrap());
        assert_eq!(range(1024), 1004 * MIB..1024 * MIB);
        assert_eq!(range(4096), 5052 * MIB..5120 * MIB);
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        let memory = memory::create(64).unwrap();
        for bytes in [&b""[..], b"MZ", &[0; 4096], b"\x7fELF\x02\x01\x01"] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            assert!(matches!(load(&memory, &file, "k"), Err(LoadError::Parse { .. })));
        }
    }
}
