//! Loads the guest kernel into memory.

use std::fs::File;
use std::io;
use std::ops::Range;

use elf::abi::{EM_X86_64, PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::note::Note;
use elf::segment::ProgramHeader;
use elf::{ElfStream, ParseError};
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
    /// It is for another machine, or has nothing to load.
    #[error("the guest kernel {0} is not an x86-64 kernel")]
    NotX86(String),
    /// It cannot be read.
    #[error("the guest kernel {name} could not be read")]
    Read {
        /// The file.
        name: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A part of it is not in the file.
    #[error("the guest kernel {0} is truncated")]
    Short(String),
    /// It does not fit.
    #[error(
        "the guest kernel {name} does not fit at {address:#x}; check whether the VM's memory is large enough"
    )]
    Place {
        /// The file.
        name: String,
        /// Where it is linked to be.
        address: u64,
        /// The error.
        source: io::Error,
    },
    /// The kernel cannot be entered.
    #[error("the guest kernel {0} has no PVH entry (CONFIG_PVH)")]
    NoPvhEntry(String),
}

/// Bytes of a `struct page`, of which Linux makes one for each page of 4096 bytes
/// (include/linux/mm_types.h).
const STRUCT_PAGE_SIZE: u64 = 64;
/// Bytes at the end of memory from which Linux takes page tables before it makes those structures. It uses a third of
/// them, which costs less in small pages; measured.
const EARLY_ALLOCATIONS: u64 = 2 << 20;
/// What else a guest has touched most of when its agent answers: memory below 1 MiB and the first tables,
/// and where its allocator begins; measured.
const FIRST_USED: [Range<u64>; 2] = [0..2 << 20, 8 << 20..12 << 20];
/// The name and type of the note with the 32-bit entry (xen/include/public/elfnote.h).
const ENTRY_NOTE: (&[u8], u64) = (b"Xen\0", 18);

/// Loads the kernel, which errors call `name`, to the address that it is linked for. What it touches
/// most of while it boots gets huge pages as far as they can be had; all other memory has small ones.
/// Returns its 32-bit PVH entry.
///
/// # Errors
/// [`LoadError`] if it is not an ELF image with a PVH entry, or does not fit.
pub fn load(memory: &Memory, kernel: &File, name: &str) -> Result<GuestAddress, LoadError> {
    let parse = |source| LoadError::Parse { name: name.to_owned(), source };
    let mut image = ElfStream::<LittleEndian, _>::open_stream(kernel).map_err(parse)?;
    let segments: Vec<ProgramHeader> =
        image.segments().iter().filter(|segment| segment.p_type == PT_LOAD).copied().collect();
    if image.ehdr.e_machine != EM_X86_64 || segments.is_empty() {
        return Err(LoadError::NotX86(name.to_owned()));
    }
    let entry = pvh_entry(&mut image).map_err(parse)?;
    let extent = extent(&segments);
    let entry = entry.filter(|entry| extent.contains(entry));
    let entry = entry.ok_or_else(|| LoadError::NoPvhEntry(name.to_owned()))?;
    let place = |source| LoadError::Place { name: name.to_owned(), address: extent.start, source };
    if extent.start < HIGH_RAM_START || memory.find_region(GuestAddress(extent.end - 1)).is_none() {
        return Err(place(io::Error::from_raw_os_error(libc::EFAULT)));
    }
    copy(memory, kernel, &segments, name)?;
    for range in FIRST_USED.into_iter().chain([extent.clone(), page_structures(memory)]) {
        memory::make_huge(memory, range);
    }
    memory::only_small_pages(memory).map_err(place)?;
    Ok(GuestAddress(entry))
}

/// Copies what of the segments is in the file to where they belong. All else is zeros already.
fn copy(memory: &Memory, kernel: &File, segments: &[ProgramHeader], name: &str) -> Result<(), LoadError> {
    for segment in segments.iter().filter(|segment| segment.p_filesz > 0) {
        let address = segment.p_paddr;
        let copied =
            memory::copy_file(memory, GuestAddress(address), kernel, segment.p_offset, segment.p_filesz);
        copied.map_err(|source| match source.raw_os_error() {
            Some(libc::EFAULT) => LoadError::Place { name: name.to_owned(), address, source },
            _ if source.kind() == io::ErrorKind::UnexpectedEof => LoadError::Short(name.to_owned()),
            _ => LoadError::Read { name: name.to_owned(), source },
        })?;
    }
    Ok(())
}

/// The guest-physical addresses that the kernel takes, with what it zeroes itself.
fn extent(segments: &[ProgramHeader]) -> Range<u64> {
    let start = segments.iter().map(|segment| segment.p_paddr).min().unwrap_or(0);
    let end = segments.iter().map(|segment| segment.p_paddr.saturating_add(segment.p_memsz)).max();
    start..end.unwrap_or(0)
}

/// The address at which the kernel is entered in 32-bit protected mode, if it says one.
fn pvh_entry(image: &mut ElfStream<LittleEndian, &File>) -> Result<Option<u64>, ParseError> {
    let notes: Vec<ProgramHeader> =
        image.segments().iter().filter(|segment| segment.p_type == PT_NOTE).copied().collect();
    for segment in notes {
        let entry = image.segment_data_as_notes(&segment)?.find_map(|note| match note {
            Note::Unknown(note) if (note.name, note.n_type) == ENTRY_NOTE => {
                // Kernels give 4 or 8 bytes.
                let mut bytes = [0; 8];
                bytes.get_mut(..note.desc.len())?.copy_from_slice(note.desc);
                Some(u64::from_le_bytes(bytes))
            }
            _ => None,
        });
        if entry.is_some() {
            return Ok(entry);
        }
    }
    Ok(None)
}

/// The guest-physical addresses where the kernel makes its page structures while it boots: it
/// takes early memory from the top (mm/memblock.c).
fn page_structures(memory: &Memory) -> Range<u64> {
    let size: u64 = memory.iter().map(|region| region.len()).sum();
    let end = (memory.last_addr().0 + 1).saturating_sub(EARLY_ALLOCATIONS);
    let length = size / 4096 * STRUCT_PAGE_SIZE;
    // It takes the structures in units of 2 MiB.
    (end.saturating_sub(length) & !(memory::HUGE_PAGE - 1))..end
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use vm_memory::Bytes;

    const MIB: u64 = 1 << 20;

    #[test]
    fn page_structures_lie_at_the_end_of_memory() {
        let range = |mib| page_structures(&memory::tests::create(mib));
        assert_eq!(range(1024), 1006 * MIB..1022 * MIB);
        assert_eq!(range(4096), 5054 * MIB..5118 * MIB);
        assert_eq!(range(251), 244 * MIB..249 * MIB);
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        let memory = memory::tests::create(64);
        for bytes in [&b""[..], b"MZ", &[0; 4096], b"\x7fELF\x02\x01\x01"] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            assert!(matches!(load(&memory, &file, "k"), Err(LoadError::Parse { .. })));
        }
    }

    /// Where the parts of [`kernel`] are in its file.
    const MACHINE: u64 = 18;
    const NOTE: u64 = 64;
    const SEGMENT: u64 = 64 + 56;
    const OFFSET: u64 = SEGMENT + 8;
    const ADDRESS: u64 = SEGMENT + 24;
    const ENTRY: u64 = 0x200 + 16;

    /// A kernel of a few bytes, entered at 16 MiB.
    fn kernel() -> File {
        let file = tempfile::tempfile().unwrap();
        let write = |bytes: &[u8], offset| file.write_all_at(bytes, offset).unwrap();
        write(b"\x7fELF\x02\x01\x01", 0);
        write(&[2, 0, 62, 0, 1], 16);
        // The program headers: their place, their size, their number.
        write(&64_u64.to_le_bytes(), 32);
        write(&[64, 0, 56, 0, 2, 0], 52);
        for (place, kind, words) in [
            (NOTE, PT_NOTE, [0x200_u64, 0, 0, 20, 20, 4]),
            (SEGMENT, PT_LOAD, [0x1000, 0, 16 * MIB, 0x100, 0x3000, 0x1000]),
        ] {
            write(&kind.to_le_bytes(), place);
            write(&words.map(u64::to_le_bytes).concat(), place + 8);
        }
        write(&[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0, 0, 0, 0, 1], 0x200);
        write(&[0xf4; 0x100], 0x1000);
        file
    }

    #[test]
    fn a_kernel_is_put_where_it_says_and_entered_where_it_says() {
        let memory = memory::tests::create(64);
        assert_eq!(load(&memory, &kernel(), "k").unwrap(), GuestAddress(16 * MIB));
        let word = |address| memory.read_obj::<u32>(GuestAddress(address)).unwrap();
        assert_eq!([word(16 * MIB), word(16 * MIB + 0xfe), word(16 * MIB + 0x100)], [0xf4f4_f4f4, 0xf4f4, 0]);
    }

    #[test]
    fn a_kernel_that_cannot_be_is_refused_by_its_name() {
        let memory = memory::tests::create(64);
        let refused = |offset, bytes: &[u8]| {
            let file = kernel();
            file.write_all_at(bytes, offset).unwrap();
            load(&memory, &file, "the-kernel").unwrap_err().to_string()
        };
        for (offset, bytes, message) in [
            (MACHINE, &[3][..], "not an x86-64 kernel"),
            (ENTRY, &[0xff; 4], "no PVH entry"),
            (NOTE, &[9], "no PVH entry"),
            (OFFSET, &[0, 0xff], "is truncated"),
            (OFFSET, &[0xff; 8], "is truncated"),
            (ADDRESS, &[0, 0, 0, 8], "no PVH entry"),
        ] {
            let text = refused(offset, bytes);
            assert!(text.contains("the-kernel") && text.contains(message), "{text}");
        }
        // It begins in memory, and ends behind it.
        let file = kernel();
        file.write_all_at(&(64 * MIB - 0x1000).to_le_bytes(), ADDRESS).unwrap();
        file.write_all_at(&(64 * MIB as u32 - 0x1000).to_le_bytes(), ENTRY).unwrap();
        let text = load(&memory, &file, "the-kernel").unwrap_err().to_string();
        assert!(text.contains("does not fit at 0x3fff000"), "{text}");
    }
}
