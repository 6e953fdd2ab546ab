//! A file that is mapped into guest memory instead of read.
//!
//! Guest kernel and guest root are the same for every VM. Mapped privately, their pages are the
//! host's page cache until the guest writes to them: nothing is copied, and VMs share what they
//! only read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

const PAGE: usize = 4096;

/// A file whose whole pages, when they are read into guest memory, are mapped there.
pub struct MappedFile<'a>(pub &'a File);

impl Read for MappedFile<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Seek for MappedFile<'_> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.0.seek(position)
    }
}

impl ReadVolatile for MappedFile<'_> {
    /// Takes the next bytes of the file into `target`, which must be guest memory: the mapping
    /// behind its whole pages is replaced.
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        target: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let offset = self.0.stream_position().map_err(VolatileMemoryError::IOError)?;
        let left = self.0.metadata().map_err(VolatileMemoryError::IOError)?.len().saturating_sub(offset);
        let available = target.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let whole = available / PAGE * PAGE;
        let address = target.ptr_guard_mut().as_ptr();
        let aligned = address.addr().is_multiple_of(PAGE) && offset.is_multiple_of(PAGE as u64);
        if whole == 0 || !aligned {
            return (&*self.0).read_volatile(target);
        }
        // SAFETY: the range lies inside a mapping of guest memory, which is accessed only through
        // volatile reads and writes, so that its content may change at any time; the new mapping
        // has the same place, size and protection.
        let mapped = unsafe {
            libc::mmap(
                address.cast(),
                whole,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                self.0.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(VolatileMemoryError::IOError(io::Error::last_os_error()));
        }
        self.0.seek(SeekFrom::Current(whole as i64)).map_err(VolatileMemoryError::IOError)?;
        // What is left of the last page must not show what the file holds behind the segment.
        let mut tail = target.subslice(whole, available - whole)?;
        Ok(whole + (&*self.0).read_volatile(&mut tail)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use std::io::Write;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn the_guest_reads_the_file_and_writes_to_itself() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..10_000u32).map(|i| (i % 251) as u8).collect();
        file.write_all(&content).unwrap();
        file.rewind().unwrap();
        let memory = memory::create(64).unwrap();
        let start = GuestAddress(0x20_0000);
        memory.read_exact_volatile_from(start, &mut MappedFile(&file), content.len()).unwrap();
        let mut got = vec![0; content.len()];
        memory.read_slice(&mut got, start).unwrap();
        assert_eq!(got, content);
        assert_eq!(memory::resident_bytes(&memory).unwrap(), 4096, "only the last, partial page is a copy");

        memory.write_obj(0xffu8, start).unwrap();
        file.rewind().unwrap();
        let mut first = [1];
        file.read_exact(&mut first).unwrap();
        assert_eq!(first, [0], "the file stays as it is");
    }

    #[test]
    fn a_file_that_is_too_short_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5000).unwrap();
        let memory = memory::create(64).unwrap();
        let read = memory.read_exact_volatile_from(GuestAddress(0x20_0000), &mut MappedFile(&file), 9000);
        assert!(read.is_err());
    }
}
