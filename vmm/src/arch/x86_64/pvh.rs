//! What a kernel entered through PVH is told: where its memory, its command line and its root are.
//!
//! The structures are those of Xen's public/arch-x86/hvm/start_info.h, version 1.

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryRegion};

use super::kernel::LoadedRoot;
use super::layout::{
    COMMAND_LINE, COMMAND_LINE_SIZE, HIGH_RAM_START, LOW_MEMORY_END, PVH_MEMORY_MAP, PVH_MODULES,
    PVH_START_INFO,
};
use crate::memory::Memory;

const START_MAGIC: u32 = 0x336e_c578;
const START_VERSION: u32 = 1;
const MEMORY_RAM: u32 = 1;
const MEMORY_RESERVED: u32 = 2;

/// The structures as they lie in guest memory.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Raw<T>(T);

// SAFETY: the three structures hold integers only and have no padding (checked below).
unsafe impl ByteValued for Raw<hvm_start_info> {}
// SAFETY: as above.
unsafe impl ByteValued for Raw<hvm_modlist_entry> {}
// SAFETY: as above.
unsafe impl ByteValued for Raw<hvm_memmap_table_entry> {}

const _: () = {
    assert!(size_of::<hvm_start_info>() == 56);
    assert!(size_of::<hvm_modlist_entry>() == 32);
    assert!(size_of::<hvm_memmap_table_entry>() == 24);
    assert!(PVH_START_INFO + 56 <= PVH_MODULES);
};

/// The boot information could not be written.
#[derive(Debug, thiserror::Error)]
pub enum BootInfoError {
    /// The command line is too long.
    #[error("the kernel command line has {0} bytes, and the kernel takes {max}", max = COMMAND_LINE_SIZE - 1)]
    CommandLineTooLong(usize),
    /// Guest memory refused a write.
    #[error("the boot information could not be written to guest memory")]
    Write(#[from] GuestMemoryError),
}

/// Writes the start info and all that it points to.
///
/// # Errors
/// [`BootInfoError`] if the command line is too long.
pub fn write_boot_info(memory: &Memory, command_line: &str, root: LoadedRoot) -> Result<(), BootInfoError> {
    if command_line.len() >= COMMAND_LINE_SIZE {
        return Err(BootInfoError::CommandLineTooLong(command_line.len()));
    }
    memory.write_slice(command_line.as_bytes(), GuestAddress(COMMAND_LINE))?;
    memory.write_obj(0u8, GuestAddress(COMMAND_LINE + command_line.len() as u64))?;

    let module = hvm_modlist_entry { paddr: root.start.0, size: root.length, ..Default::default() };
    memory.write_obj(Raw(module), GuestAddress(PVH_MODULES))?;

    let map = memory_map(memory);
    for (address, entry) in (PVH_MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>()).zip(&map) {
        memory.write_obj(Raw(*entry), GuestAddress(address))?;
    }

    let info = hvm_start_info {
        magic: START_MAGIC,
        version: START_VERSION,
        cmdline_paddr: COMMAND_LINE,
        nr_modules: 1,
        modlist_paddr: PVH_MODULES,
        memmap_paddr: PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory.write_obj(Raw(info), GuestAddress(PVH_START_INFO))?;
    Ok(())
}

fn memory_map(memory: &Memory) -> Vec<hvm_memmap_table_entry> {
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
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;

    const ROOT: LoadedRoot = LoadedRoot { start: GuestAddress(0x300_0000), length: 123 };

    #[test]
    fn the_kernel_finds_command_line_root_and_memory() {
        let memory = memory::create(64).unwrap();
        write_boot_info(&memory, "quiet", ROOT).unwrap();
        let Raw(info): Raw<hvm_start_info> = memory.read_obj(GuestAddress(PVH_START_INFO)).unwrap();
        assert_eq!((info.magic, info.nr_modules, info.memmap_entries), (START_MAGIC, 1, 3));
        let mut line = [1; 6];
        memory.read_slice(&mut line, GuestAddress(info.cmdline_paddr)).unwrap();
        assert_eq!(&line, b"quiet\0");
        let Raw(module): Raw<hvm_modlist_entry> = memory.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x300_0000, 123));
        let last = GuestAddress(info.memmap_paddr + 2 * 24);
        let Raw(ram): Raw<hvm_memmap_table_entry> = memory.read_obj(last).unwrap();
        assert_eq!((ram.addr, ram.size, ram.type_), (1 << 20, 63 << 20, MEMORY_RAM));
    }

    #[test]
    fn a_command_line_that_the_kernel_would_cut_is_refused() {
        let memory = memory::create(64).unwrap();
        assert!(write_boot_info(&memory, &"x".repeat(2047), ROOT).is_ok());
        let refused = write_boot_info(&memory, &"x".repeat(2048), ROOT);
        assert!(matches!(refused, Err(BootInfoError::CommandLineTooLong(2048))));
    }
}
