//! One request to a disk (section 5.2.6).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use pouch_vmm_api::config::MAX_SERIAL_LENGTH;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestMemory};

use super::SECTOR;
use crate::devices::virtio::queue::Chain;
use crate::memory::Memory;

/// Bytes of the header: type, reserved, sector.
const HEADER_LENGTH: usize = 16;
/// Bytes of a discard's segment: sector, count, flags.
const SEGMENT_LENGTH: u32 = 16;
/// Flag of a write of zeros: release the space.
const UNMAP: u32 = 1;

/// A disk's file and what is known of it.
pub struct Disk {
    file: File,
    sectors: u64,
    serial: [u8; MAX_SERIAL_LENGTH],
    read_only: bool,
}

/// Why a request fails, as its status byte tells the driver.
enum Failure {
    /// The request is malformed, or the file fails.
    Io,
    /// The type is not known, or not offered.
    Unsupported,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        crate::log_line!("a disk failed: {error}");
        Failure::Io
    }
}

impl Disk {
    /// A disk of `sectors` sectors of 512 bytes.
    pub fn new(file: File, sectors: u64, serial: &str, read_only: bool) -> Self {
        let mut padded = [0; MAX_SERIAL_LENGTH];
        let length = serial.len().min(MAX_SERIAL_LENGTH);
        padded[..length].copy_from_slice(&serial.as_bytes()[..length]);
        Disk { file, sectors, serial: padded, read_only }
    }

    /// Serves one request; returns the bytes written into its buffers.
    ///
    /// A chain without a header or a place for the status is dropped: no answer is possible.
    pub fn serve(&self, memory: &Memory, chain: Chain) -> u32 {
        let mut buffers: Vec<Descriptor> = chain.collect();
        let Some(status) = buffers.pop().filter(|last| last.is_write_only() && last.len() >= 1) else {
            return 0;
        };
        if buffers.is_empty() {
            return 0;
        }
        let header = buffers.remove(0);
        let result = self.execute(memory, header, &buffers);
        let (code, written) = match result {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Failure::Io) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Failure::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
        };
        match memory.write_obj(code as u8, status.addr()) {
            Ok(()) => written.saturating_add(1),
            Err(_) => 0,
        }
    }

    fn execute(&self, memory: &Memory, header: Descriptor, data: &[Descriptor]) -> Result<u32, Failure> {
        let mut raw = [0; HEADER_LENGTH];
        if header.is_write_only() || (header.len() as usize) < HEADER_LENGTH {
            return Err(Failure::Io);
        }
        memory.read_slice(&mut raw, header.addr()).map_err(|_| Failure::Io)?;
        let kind = u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
        let [_, _, _, _, _, _, _, _, sector @ ..] = raw;
        let sector = u64::from_le_bytes(sector);
        match kind {
            VIRTIO_BLK_T_IN => self.read(memory, sector, data),
            VIRTIO_BLK_T_GET_ID => self.tell_serial(memory, data),
            VIRTIO_BLK_T_FLUSH => self.file.sync_data().map(|()| 0).map_err(Failure::from),
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if self.read_only => {
                Err(Failure::Io)
            }
            VIRTIO_BLK_T_OUT => self.write(memory, sector, data),
            VIRTIO_BLK_T_DISCARD => self.zero(memory, data, true),
            VIRTIO_BLK_T_WRITE_ZEROES => self.zero(memory, data, false),
            _ => Err(Failure::Unsupported),
        }
    }

    /// The offset of `bytes` bytes from `sector` on, if they are whole sectors of the disk.
    fn offset(&self, sector: u64, bytes: u64) -> Result<u64, Failure> {
        let end = sector.checked_add(bytes / SECTOR).ok_or(Failure::Io)?;
        if !bytes.is_multiple_of(SECTOR) || end > self.sectors {
            return Err(Failure::Io);
        }
        Ok(sector * SECTOR)
    }

    fn read(&self, memory: &Memory, sector: u64, data: &[Descriptor]) -> Result<u32, Failure> {
        let mut iovecs = Iovecs::new(memory, data, true)?;
        let offset = self.offset(sector, iovecs.length)?;
        iovecs.transfer(|pointer, count, done| {
            // SAFETY: the vectors point into guest memory, which stays mapped while `memory` is
            // borrowed, and which is only accessed through volatile reads and writes elsewhere.
            unsafe { libc::preadv64(self.file.as_raw_fd(), pointer, count, (offset + done) as i64) }
        })?;
        u32::try_from(iovecs.length).map_err(|_| Failure::Io)
    }

    fn write(&self, memory: &Memory, sector: u64, data: &[Descriptor]) -> Result<u32, Failure> {
        let mut iovecs = Iovecs::new(memory, data, false)?;
        let offset = self.offset(sector, iovecs.length)?;
        iovecs.transfer(|pointer, count, done| {
            // SAFETY: as for reads.
            unsafe { libc::pwritev64(self.file.as_raw_fd(), pointer, count, (offset + done) as i64) }
        })?;
        Ok(0)
    }

    fn tell_serial(&self, memory: &Memory, data: &[Descriptor]) -> Result<u32, Failure> {
        let buffer = data.first().filter(|buffer| buffer.is_write_only()).ok_or(Failure::Io)?;
        let count = self.serial.len().min(buffer.len() as usize);
        memory.write_slice(&self.serial[..count], buffer.addr()).map_err(|_| Failure::Io)?;
        Ok(count as u32)
    }

    /// Discards sectors, or makes them zeros.
    fn zero(&self, memory: &Memory, data: &[Descriptor], discard: bool) -> Result<u32, Failure> {
        let [segment] = data else { return Err(Failure::Io) };
        let mut raw = [0; SEGMENT_LENGTH as usize];
        if segment.is_write_only() || segment.len() != SEGMENT_LENGTH {
            return Err(Failure::Io);
        }
        memory.read_slice(&mut raw, segment.addr()).map_err(|_| Failure::Io)?;
        let [sector @ .., _, _, _, _, _, _, _, _] = raw;
        let count = u32::from_le_bytes([raw[8], raw[9], raw[10], raw[11]]);
        let flags = u32::from_le_bytes([raw[12], raw[13], raw[14], raw[15]]);
        if flags & !UNMAP != 0 || (discard && flags != 0) {
            return Err(Failure::Unsupported);
        }
        let length = u64::from(count) * SECTOR;
        let offset = self.offset(u64::from_le_bytes(sector), length)?;
        if length == 0 {
            return Ok(0);
        }
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let keep = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let mode = if discard || flags & UNMAP != 0 { punch } else { keep };
        // SAFETY: the call touches no memory, and the range was checked against the disk's size.
        let result = unsafe { libc::fallocate64(self.file.as_raw_fd(), mode, offset as i64, length as i64) };
        if result == 0 {
            return Ok(0);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // A discard is a hint (section 5.2.6.2); the host's file system cannot follow it.
            Some(libc::EOPNOTSUPP) if discard => Ok(0),
            Some(libc::EOPNOTSUPP) => Err(Failure::Unsupported),
            _ => Err(error.into()),
        }
    }
}

/// Guest buffers as the kernel takes them.
struct Iovecs {
    vectors: Vec<libc::iovec>,
    length: u64,
}

impl Iovecs {
    /// The buffers of `data`, which must all be for writing, or all for reading.
    fn new(memory: &Memory, data: &[Descriptor], write_only: bool) -> Result<Self, Failure> {
        let mut vectors = Vec::with_capacity(data.len());
        let mut length = 0u64;
        for buffer in data {
            if buffer.is_write_only() != write_only {
                return Err(Failure::Io);
            }
            let slice = memory.get_slice(buffer.addr(), buffer.len() as usize).map_err(|_| Failure::Io)?;
            length += u64::from(buffer.len());
            vectors
                .push(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() });
        }
        Ok(Iovecs { vectors, length })
    }

    /// Calls `io` until all bytes are transferred. It gets the vectors, their count, and the number of
    /// bytes already transferred, and returns the result of preadv or pwritev.
    fn transfer(
        &mut self,
        io: impl Fn(*const libc::iovec, libc::c_int, u64) -> isize,
    ) -> Result<(), Failure> {
        let mut done = 0u64;
        let mut rest: &mut [libc::iovec] = &mut self.vectors;
        while done < self.length {
            let count = rest.len().min(libc::UIO_MAXIOV as usize) as libc::c_int;
            let moved = io(rest.as_ptr(), count, done);
            let mut moved = match usize::try_from(moved) {
                // The file is shorter than it was.
                Ok(0) => return Err(Failure::Io),
                Ok(moved) => moved,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => continue,
                    error => return Err(error.into()),
                },
            };
            done += moved as u64;
            while let Some(first) = rest.first_mut() {
                if moved < first.iov_len {
                    first.iov_base = first.iov_base.wrapping_byte_add(moved);
                    first.iov_len -= moved;
                    break;
                }
                moved -= first.iov_len;
                rest = &mut rest[1..];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
