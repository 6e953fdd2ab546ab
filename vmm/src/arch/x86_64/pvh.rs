//! The start info of a kernel that is entered through PVH: its command line, memory and root.
//!
//! The structures are those of Xen's public/arch-x86/hvm/start_info.h, version 1.

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryRegion};

use super::layout::{
    COMMAND_LINE, COMMAND_LINE_SIZE, HIGH_RAM_START, LOW_MEMORY_END, PVH_MEMORY_MAP, PVH_START_INFO,
    ROOT_START,
};
use crate::memory::Memory;

const START_MAGIC: u32 = 0x336e_c578;
const START_VERSION: u32 = 1;
const MEMORY_RAM: u32 = 1;
const MEMORY_RESERVED: u32 = 2;
/// Persistent memory without a description of its own (E820_TYPE_PRAM of Linux; types above 5 are
/// beyond what the start info's header names, and Linux takes them as they are).
const MEMORY_PERSISTENT: u32 = 12;

/// The structures as they lie in guest memory.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Raw<T>(T);

// SAFETY: both structures hold integers only and have no padding (checked below).
unsafe impl ByteValued for Raw<hvm_start_info> {}
// SAFETY: as above.
unsafe impl ByteValued for Raw<hvm_memmap_table_entry> {}

const _: () = {
    assert!(size_of::<hvm_start_info>() == 56);
    assert!(size_of::<hvm_memmap_table_entry>() == 24);
    assert!(PVH_START_INFO + 56 <= PVH_MEMORY_MAP);
};

/// The boot information could not be written.
#[derive(Debug, thiserror::Error)]
pub enum BootInfoError {
    /// The command line is too long.
    #[error("the kernel command line has {0} bytes; the kernel supports {max}", max = COMMAND_LINE_SIZE - 1)]
    CommandLineTooLong(usize),
    /// Guest memory refused a write.
    #[error("the boot information could not be written to guest memory")]
    Write(#[from] GuestMemoryError),
}

/// Writes the start info and all that it points to; the guest root has `root_size` bytes.
///
/// # Errors
/// [`BootInfoError`] if the command line is too long.
pub fn write_boot_info(memory: &Memory, command_line: &str, root_size: u64) -> Result<(), BootInfoError> {
    if command_line.len() >= COMMAND_LINE_SIZE {
        return Err(BootInfoError::CommandLineTooLong(command_line.len()));
    }
    memory.write_slice(command_line.as_bytes(), GuestAddress(COMMAND_LINE))?;
    memory.write_obj(0u8, GuestAddress(COMMAND_LINE + command_line.len() as u64))?;

    let map = memory_map(memory, root_size);
    for (address, entry) in (PVH_MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>()).zip(&map) {
        memory.write_obj(Raw(*entry), GuestAddress(address))?;
    }

    let info = hvm_start_info {
        magic: START_MAGIC,
        version: START_VERSION,
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory.write_obj(Raw(info), GuestAddress(PVH_START_INFO))?;
    Ok(())
}

fn memory_map(memory: &Memory, root_size: u64) -> Vec<hvm_memmap_table_entry> {
    let entry = |addr, size, type_| hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
    let mut map = vec![
        entry(0, LOW_MEMORY_END, MEMORY_RAM),
        entry(LOW_MEMORY_END, HIGH_RAM_START - LOW_MEMORY_END, MEMORY_RESERVED),
    ];
    for region in memory.iter() {
        let start = region.start_addr().0.max(HIGH_RAM_START);
        let end = region.start_addr().0 + region.len();
        map.push(entry(start, end.saturating_sub(start), MEMORY_RAM));
    }
    map.push(entry(ROOT_START, root_size, MEMORY_PERSISTENT));
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    const ROOT: u64 = 8 << 20;

    #[test]
    fn the_kernel_finds_command_line_root_and_memory() {
        let memory = memory::tests::create(64);
        write_boot_info(&memory, "quiet", ROOT).unwrap();
        let Raw(info): Raw<hvm_start_info> = memory.read_obj(GuestAddress(PVH_START_INFO)).unwrap();
        assert_eq!((info.magic, info.nr_modules, info.memmap_entries), (START_MAGIC, 0, 4));
        let mut line = [1; 6];
        memory.read_slice(&mut line, GuestAddress(info.cmdline_paddr)).unwrap();
        assert_eq!(&line, b"quiet\0");
        let entry = |index: u64| {
            let address = GuestAddress(info.memmap_paddr + index * 24);
            let Raw(entry): Raw<hvm_memmap_table_entry> = memory.read_obj(address).unwrap();
            (entry.addr, entry.size, entry.type_)
        };
        assert_eq!(entry(2), (1 << 20, 63 << 20, MEMORY_RAM));
        assert_eq!(entry(3), (ROOT_START, ROOT, MEMORY_PERSISTENT));
    }

    #[test]
    fn a_command_line_that_the_kernel_would_cut_is_refused() {
        let memory = memory::tests::create(64);
        assert!(write_boot_info(&memory, &"x".repeat(2047), ROOT).is_ok());
        let refused = write_boot_info(&memory, &"x".repeat(2048), ROOT);
        assert!(matches!(refused, Err(BootInfoError::CommandLineTooLong(2048))));
    }
}
