//! Guest memory: one file, mapped into this process.

mod file;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemory as _, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

use crate::arch::layout::{HIGH_MEMORY_START, MMIO_GAP_START};

/// Guest memory as the devices use it.
pub type Memory = GuestMemoryMmap<()>;

const MIB: u64 = 1 << 20;

/// Bytes of a page that the second level of the page tables maps at once.
pub const HUGE_PAGE: u64 = 2 * MIB;

/// Guest memory could not be allocated.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The file could not be created.
    #[error("the file behind guest memory could not be created")]
    File(#[source] io::Error),
    /// It could not be given its size.
    #[error("guest memory of {mib} MiB could not be reserved")]
    Size {
        /// The size that was asked for.
        mib: u32,
        /// The kernel's error.
        source: io::Error,
    },
    /// It could not be mapped.
    #[error("guest memory could not be mapped")]
    Map(#[source] io::Error),
    /// The mapping does not fit its file.
    #[error("guest memory could not be described")]
    Region(#[from] MmapRegionError),
    /// The regions do not fit together.
    #[error("guest memory does not fit the layout: {0}")]
    Layout(String),
}

/// The guest-physical ranges of `memory_mib` MiB: below the gap for devices, and from 4 GiB on.
fn ranges(memory_mib: u32) -> Vec<(GuestAddress, u64)> {
    let size = u64::from(memory_mib) * MIB;
    let low = size.min(MMIO_GAP_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if size > low {
        ranges.push((GuestAddress(HIGH_MEMORY_START), size - low));
    }
    ranges
}

/// Makes the file behind guest memory of `memory_mib` MiB, while the process may still mount.
///
/// # Errors
/// [`MemoryError`] if the host refuses.
pub fn file(memory_mib: u32) -> Result<File, MemoryError> {
    let file = file::make(memory_mib).map_err(MemoryError::File)?;
    file.set_len(u64::from(memory_mib) * MIB)
        .map_err(|source| MemoryError::Size { mib: memory_mib, source })?;
    Ok(file)
}

/// Maps `memory_mib` MiB of guest memory from its [`file`](file()). Pages are taken from the host when they are
/// touched.
///
/// # Errors
/// [`MemoryError`] if the host refuses.
pub fn map(file: &File, memory_mib: u32) -> Result<Memory, MemoryError> {
    let mut offset = 0;
    let mut regions = Vec::new();
    for (start, size) in ranges(memory_mib) {
        let backing = file.try_clone().map_err(MemoryError::File)?;
        let length = usize::try_from(size).map_err(|e| MemoryError::Layout(e.to_string()))?;
        let address = map_aligned(file, offset, length).map_err(MemoryError::Map)?;
        // SAFETY: the mapping was just made, as long as this says, and is never taken away: guest
        // memory is there until the process ends.
        let mapping = unsafe { MmapRegionBuilder::new(length).with_raw_mmap_pointer(address) }
            .with_mmap_prot(PROTECTION)
            .with_mmap_flags(SHARED)
            .with_file_offset(FileOffset::new(backing, offset))
            .build()?;
        let region = GuestRegionMmap::new(mapping, start)
            .ok_or_else(|| MemoryError::Layout(format!("a region at {:#x} overflows", start.0)))?;
        regions.push(region);
        offset += size;
    }
    Memory::from_regions(regions).map_err(|e| MemoryError::Layout(e.to_string()))
}

const PROTECTION: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const SHARED: libc::c_int = libc::MAP_SHARED | libc::MAP_NORESERVE;

/// Maps `length` bytes of the file from `offset` at a multiple of [`HUGE_PAGE`]: host address and
/// guest address must agree modulo that size for KVM to map a huge page as one.
fn map_aligned(file: &File, offset: u64, length: usize) -> io::Result<*mut u8> {
    const ALIGNMENT: usize = HUGE_PAGE as usize;
    let room = length.checked_add(ALIGNMENT).ok_or(io::ErrorKind::OutOfMemory)?;
    let nowhere = ptr::null_mut();
    let none = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: the kernel chooses the address, so no other mapping is touched.
    let start = unsafe { libc::mmap(nowhere, room, libc::PROT_NONE, none, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let aligned = start.map_addr(|address| address.next_multiple_of(ALIGNMENT));
    // SAFETY: the range lies inside the reservation above, which nothing else uses.
    let mapped = unsafe {
        libc::mmap(aligned, length, PROTECTION, SHARED | libc::MAP_FIXED, file.as_raw_fd(), offset as i64)
    };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(mapped.cast()) }
}

/// Copies `length` bytes of `source` from `offset` on to guest memory, from file to file: no page of
/// either is mapped for it.
///
/// # Errors
/// What sendfile(2) says; `EFAULT` for what is not within one region of guest memory, `UnexpectedEof` for
/// what is not in the source.
pub fn copy_file(
    memory: &Memory,
    address: GuestAddress,
    source: &File,
    offset: u64,
    length: u64,
) -> io::Result<()> {
    let nowhere = || io::Error::from_raw_os_error(libc::EFAULT);
    let region = memory.find_region(address).ok_or_else(nowhere)?;
    let start = address.0 - region.start_addr().0;
    let backing = region.file_offset().filter(|_| region.len() - start >= length);
    let backing = backing.ok_or_else(nowhere)?;
    let mut file = backing.file();
    file.seek(SeekFrom::Start(backing.start() + start))?;
    let mut from = libc::off64_t::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
    let mut left = length;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(usize::MAX);
        // SAFETY: the pointer is to a live integer; nothing but the two files is touched.
        let copied = unsafe { libc::sendfile64(file.as_raw_fd(), source.as_raw_fd(), &raw mut from, count) };
        match copied {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            // No more than was asked for.
            1.. => left -= copied as u64,
            _ => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// Backs the aligned part of `range` with huge pages, and returns its size in bytes. This is for memory that the
/// guest mostly touches at boot: one fault for each huge page instead of 512. If the host has no free huge
/// pages, memory is unchanged, which is slower, but no error.
pub fn make_huge(memory: &Memory, range: Range<u64>) -> u64 {
    let mut made = 0;
    for region in memory.iter() {
        let first = region.start_addr().0;
        let start = range.start.max(first).next_multiple_of(HUGE_PAGE);
        let end = range.end.min(first + region.len()) & !(HUGE_PAGE - 1);
        if start < end && collapse(region, start - first, end - start) {
            made += end - start;
        }
    }
    made
}

/// Makes all further pages small, so that a guest uses only the host memory that it touches.
///
/// # Errors
/// The error of madvise(2). A kernel without huge pages does not support the advice and does not need it.
pub fn only_small_pages(memory: &Memory) -> io::Result<()> {
    for region in memory.iter() {
        // SAFETY: the range is the region's own mapping, of which nothing but the size of later pages changes.
        let result =
            unsafe { libc::madvise(region.as_ptr().cast(), region.len() as usize, libc::MADV_NOHUGEPAGE) };
        let error = io::Error::last_os_error();
        if result < 0 && error.raw_os_error() != Some(libc::EINVAL) {
            return Err(error);
        }
    }
    Ok(())
}

/// `MADV_COLLAPSE` of linux/mman.h (Linux 6.1), which the libc crate lacks for this target.
const MADV_COLLAPSE: libc::c_int = 25;

fn collapse(region: &GuestRegionMmap, offset: u64, length: u64) -> bool {
    // On a tmpfs that takes huge pages this makes them. Elsewhere the kernel passes over ranges in which there
    // is no page at all.
    let touched = (offset..offset + length)
        .step_by(HUGE_PAGE as usize)
        .all(|offset| touch(region, MemoryRegionAddress(offset)));
    let slice = usize::try_from(length)
        .ok()
        .and_then(|length| region.get_slice(MemoryRegionAddress(offset), length).ok());
    let Some(slice) = slice.filter(|_| touched) else { return false };
    // SAFETY: the range lies inside the region's mapping; which pages are behind it changes, their
    // content does not.
    unsafe { libc::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), MADV_COLLAPSE) == 0 }
}

/// Writes a page's own content to it, to allocate it.
fn touch(region: &GuestRegionMmap, address: MemoryRegionAddress) -> bool {
    region.read_obj::<u8>(address).is_ok_and(|byte| region.write_obj(byte, address).is_ok())
}

/// Releases the pages of `length` bytes from `start` to the host; they read as zeros until they are written
/// again. Partial pages, and addresses that are not guest memory, are ignored.
///
/// # Errors
/// The error of `fallocate(2)`.
pub fn discard(memory: &Memory, start: GuestAddress, length: u64) -> io::Result<u64> {
    const PAGE: u64 = 4096;
    let mut discarded = 0;
    for region in memory.iter() {
        let region_start = region.start_addr().0;
        let Some(from) = start.0.max(region_start).checked_next_multiple_of(PAGE) else { continue };
        let end = start.0.saturating_add(length).min(region_start + region.len()) & !(PAGE - 1);
        if from >= end {
            continue;
        }
        let Some(backing) = region.file_offset() else { continue };
        let offset = backing.start() + (from - region_start);
        // SAFETY: the range lies inside the region's part of the file; punching a hole changes
        // no mapping, and guest memory is only accessed through volatile reads and writes.
        let result = unsafe {
            libc::fallocate64(
                backing.file().as_raw_fd(),
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                offset as i64,
                (end - from) as i64,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        discarded += end - from;
    }
    Ok(discarded)
}

/// Bytes of guest memory that the host has pages for.
///
/// # Errors
/// The error of `fstat(2)`.
pub fn resident_bytes(memory: &Memory) -> io::Result<u64> {
    let Some(backing) = memory.iter().next().and_then(|region| region.file_offset()) else {
        return Ok(0);
    };
    // SAFETY: an all-zero stat is a valid value of that plain structure.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live structure of the right type.
    if unsafe { libc::fstat(backing.file().as_raw_fd(), ptr::from_mut(&mut stat)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // st_blocks counts 512-byte units (POSIX sys/stat.h), so this cannot overflow for a memfd.
    Ok(stat.st_blocks as u64 * 512)
}

#[cfg(test)]
#[allow(missing_docs, reason = "for the tests of other modules")]
pub mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// Guest memory of so many MiB.
    pub fn create(mib: u32) -> Memory {
        map(&file(mib).unwrap(), mib).unwrap()
    }

    #[test]
    fn memory_below_the_gap_is_one_region() {
        assert_eq!(ranges(256), [(GuestAddress(0), 256 * MIB)]);
        assert_eq!(ranges(3072), [(GuestAddress(0), 3072 * MIB)]);
    }

    #[test]
    fn memory_beyond_the_gap_goes_on_at_4_gib() {
        assert_eq!(ranges(4096), [(GuestAddress(0), 3072 * MIB), (GuestAddress(4096 * MIB), 1024 * MIB)]);
    }

    #[test]
    fn what_is_copied_from_a_file_is_in_memory() {
        let memory = create(64);
        let source = tempfile::tempfile().unwrap();
        source.write_all_at(&[9, 1, 2, 3, 4, 9], 0).unwrap();
        copy_file(&memory, GuestAddress(0x20_0fff), &source, 1, 4).unwrap();
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x20_0fff)).unwrap(), 0x0403_0201);
        for outside in [64 * MIB - 3, 64 * MIB, u64::MAX] {
            let error = copy_file(&memory, GuestAddress(outside), &source, 1, 4).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        }
        let error = copy_file(&memory, GuestAddress(0), &source, 3, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn pages_are_small_when_told_so() {
        let memory = create(64);
        memory.write_obj(1u8, GuestAddress(0)).unwrap();
        only_small_pages(&memory).unwrap();
        let before = resident_bytes(&memory).unwrap();
        memory.write_obj(1u8, GuestAddress(32 * MIB)).unwrap();
        assert_eq!(resident_bytes(&memory).unwrap() - before, 4096);
    }

    #[test]
    fn discarded_pages_read_as_zeros_and_leave_the_host() {
        let memory = create(64);
        only_small_pages(&memory).unwrap();
        memory.write_slice(&[7; 3 * 4096], GuestAddress(0x10_0000)).unwrap();
        let before = resident_bytes(&memory).unwrap();
        assert_eq!(discard(&memory, GuestAddress(0x10_0001), 2 * 4096).unwrap(), 4096);
        assert_eq!(before - resident_bytes(&memory).unwrap(), 4096);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x10_0fff)).unwrap(), 7);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x10_1000)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x10_2000)).unwrap(), 7);
    }

    #[test]
    fn a_range_outside_memory_is_left_alone() {
        let memory = create(64);
        assert_eq!(discard(&memory, GuestAddress(u64::MAX - 4095), 1 << 20).unwrap(), 0);
        assert_eq!(discard(&memory, GuestAddress(64 * MIB), 1 << 20).unwrap(), 0);
    }

    #[test]
    fn huge_pages_are_an_offer() {
        let memory = create(64);
        let made = make_huge(&memory, 3 * MIB..9 * MIB);
        // What lies at the ends is no whole huge page; the host may refuse the rest.
        assert!(made == 0 || made == 4 * MIB, "{made}");
        assert!(memory.read_obj::<u64>(GuestAddress(4 * MIB)).unwrap() == 0);
        assert_eq!(make_huge(&memory, 63 * MIB..u64::MAX), 0, "less than a huge page is left");
    }

    #[test]
    fn regions_begin_where_kvm_can_map_huge_pages() {
        for region in create(64).iter() {
            assert!(region.as_ptr().addr().is_multiple_of(HUGE_PAGE as usize));
        }
    }
}
