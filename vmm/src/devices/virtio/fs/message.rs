//! A request of the guest and the buffer for its response, in guest memory.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::{ByteValued, GuestMemory, VolatileSlice};

use super::abi::{CallerIn, EXTENSION_CALLER, ExtensionHeader, InHeader, OutHeader, WriteIn, op};
use crate::devices::virtio::queue::Chain;
use crate::memory::Memory;

/// Bytes that one read or write moves at most.
pub const MAX_WRITE: usize = 1 << 20;
/// Bytes of a request without the data of a write: names, and values of extended attributes of 64 KiB.
const MAX_BODY: usize = 128 << 10;
/// Buffers that one system call takes (`IOV_MAX`).
const MAX_BUFFERS: usize = 1024;

/// Buffers in guest memory.
#[derive(Default)]
struct Buffers<'a>(Vec<VolatileSlice<'a, ()>>);

impl<'a> Buffers<'a> {
    fn len(&self) -> usize {
        self.0.iter().fold(0, |sum, slice| sum.saturating_add(slice.len()))
    }

    /// Splits off the first `count` bytes, or all if there are fewer.
    fn take(&mut self, mut count: usize) -> Buffers<'a> {
        let mut taken = Vec::new();
        let mut rest = Vec::new();
        for slice in self.0.drain(..) {
            let here = count.min(slice.len());
            count -= here;
            // Both parts lie inside the slice.
            if let Ok(first) = slice.subslice(0, here)
                && here > 0
            {
                taken.push(first);
            }
            if let Ok(second) = slice.offset(here)
                && here < slice.len()
            {
                rest.push(second);
            }
        }
        self.0 = rest;
        Buffers(taken)
    }

    /// Copies the first `count` bytes, or all if there are fewer.
    fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count.min(self.len())];
        let mut done = 0;
        for slice in self.take(bytes.len()).0 {
            done += slice.copy_to(&mut bytes[done..]);
        }
        bytes
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut done = 0;
        for slice in self.take(bytes.len()).0 {
            let end = (done + slice.len()).min(bytes.len());
            slice.copy_from(&bytes[done..end]);
            done = end;
        }
    }

    /// The buffers for one system call, as many as it takes.
    fn vectors(&self) -> Vec<libc::iovec> {
        let vector = |slice: &VolatileSlice<'_, ()>| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        };
        self.0.iter().take(MAX_BUFFERS).map(vector).collect()
    }
}

/// The data of a write, in guest memory.
pub struct Data<'a>(Buffers<'a>);

impl Data<'_> {
    /// A copy of the data.
    pub fn copy(mut self) -> Vec<u8> {
        self.0.read(MAX_WRITE)
    }

    /// Writes the data to `file` at `offset` with these flags of pwritev2(2); returns the bytes written.
    ///
    /// # Errors
    /// What the kernel says, if nothing was written.
    pub fn write_to(mut self, file: BorrowedFd<'_>, offset: u64, flags: i32) -> io::Result<usize> {
        let mut done = 0;
        while !self.0.0.is_empty() {
            let vectors = self.0.vectors();
            let at = offset.checked_add(done as u64).and_then(|at| i64::try_from(at).ok());
            let at = at.ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))?;
            // SAFETY: each vector is a live range of guest memory, which is never unmapped.
            let result = unsafe {
                libc::pwritev2(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, at, flags)
            };
            match usize::try_from(result) {
                Ok(0) => break,
                Ok(count) => {
                    self.0.take(count);
                    done += count;
                }
                Err(_) if done > 0 => break,
                Err(_) => return Err(io::Error::last_os_error()),
            }
        }
        Ok(done)
    }
}

/// The buffer for an answer.
pub struct Reply<'a> {
    buffers: Buffers<'a>,
    unique: u64,
}

impl<'a> Reply<'a> {
    /// The buffer in a chain for the answer to the request of this number. `None` if it is outside guest
    /// memory.
    pub fn of_chain(memory: &'a Memory, chain: Chain, unique: u64) -> Option<Self> {
        let (_, buffers) = split(memory, chain)?;
        Some(Reply { buffers, unique })
    }

    /// Bytes of data that the buffer can hold.
    pub fn room(&self) -> usize {
        self.buffers.len().saturating_sub(size_of::<OutHeader>())
    }

    /// Answers with these parts, one after the other; returns the bytes written.
    pub fn parts(mut self, parts: &[&[u8]]) -> u32 {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        if length > self.room() {
            return self.error(libc::EIO);
        }
        let written = self.header(0, length);
        parts.iter().for_each(|part| self.buffers.write(part));
        written
    }

    /// Answers with a number of errno(3).
    pub fn error(mut self, error: i32) -> u32 {
        self.header(-error, 0)
    }

    /// Answers with at most `size` bytes of `file` from `offset` on.
    pub fn read_from(mut self, file: BorrowedFd<'_>, size: usize, offset: u64) -> u32 {
        let size = size.min(MAX_WRITE).min(self.room());
        let mut head = self.buffers.take(size_of::<OutHeader>());
        let mut target = self.buffers.take(size);
        let mut done = 0;
        while !target.0.is_empty() {
            let vectors = target.vectors();
            let Some(at) = offset.checked_add(done as u64).and_then(|at| i64::try_from(at).ok()) else {
                break;
            };
            // SAFETY: each vector is a live range of guest memory, which is never unmapped and which the guest
            // expects to change.
            let result = unsafe {
                libc::preadv2(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, at, 0)
            };
            match usize::try_from(result) {
                Ok(0) => break,
                Ok(count) => {
                    target.take(count);
                    done += count;
                }
                Err(_) if done > 0 => break,
                Err(_) => {
                    let error = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
                    return write_header(&mut head, self.unique, -error, 0);
                }
            }
        }
        write_header(&mut head, self.unique, 0, done)
    }

    fn header(&mut self, error: i32, length: usize) -> u32 {
        write_header(&mut self.buffers, self.unique, error, length)
    }
}

fn write_header(buffers: &mut Buffers<'_>, unique: u64, error: i32, length: usize) -> u32 {
    // An answer has no more than a read's data and some headers.
    let length = (size_of::<OutHeader>() + length) as u32;
    buffers.write(OutHeader { len: length, error, unique }.as_slice());
    length
}

/// The caller of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User id for file access.
    pub uid: u32,
    /// Group id for file access.
    pub gid: u32,
    /// Groups and capabilities, if the guest kernel sends them.
    pub known: Option<Known>,
}

/// Groups and capabilities of a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Effective capabilities, a bit each; none if it is in a user namespace of its own.
    pub capabilities: Option<u64>,
}

/// One request.
pub struct Request<'a> {
    /// Its header.
    pub header: InHeader,
    /// The body, without the data of a write and without extensions.
    pub body: Vec<u8>,
    /// The data of a write.
    pub data: Data<'a>,
    /// The caller.
    pub caller: Caller,
    /// The buffer for the answer.
    pub reply: Reply<'a>,
}

impl<'a> Request<'a> {
    /// The request in a chain of buffers. `None` if it is malformed and cannot be answered.
    pub fn read(memory: &'a Memory, chain: Chain) -> Option<Self> {
        let (mut input, output) = split(memory, chain)?;
        let header: InHeader = object(&input.read(size_of::<InHeader>()))?;
        let length = (header.len as usize).checked_sub(size_of::<InHeader>())?;
        let mut input = input.take(length);
        let extensions = usize::from(header.extension_units) * 8;
        let length = input.len().checked_sub(extensions)?;
        let fixed = if header.opcode == op::WRITE { size_of::<WriteIn>().min(length) } else { length };
        if fixed > MAX_BODY || length - fixed > MAX_WRITE {
            return None;
        }
        let body = input.read(fixed);
        let data = Data(input.take(length - fixed));
        let extensions = input.read(extensions);
        let caller = Caller { uid: header.uid, gid: header.gid, known: known(&extensions) };
        let reply = Reply { buffers: output, unique: header.unique };
        Some(Request { header, body, data, caller, reply })
    }
}

/// The buffers of a chain: those to read, and those to write.
fn split(memory: &Memory, chain: Chain) -> Option<(Buffers<'_>, Buffers<'_>)> {
    let (mut input, mut output) = (Buffers::default(), Buffers::default());
    for descriptor in chain {
        let buffers = if descriptor.is_write_only() { &mut output } else { &mut input };
        for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize) {
            buffers.0.push(slice.ok()?);
        }
    }
    Some((input, output))
}

/// The credentials in a request's extensions.
fn known(mut extensions: &[u8]) -> Option<Known> {
    while let Some(header) = object::<ExtensionHeader>(extensions) {
        let (extension, rest) = extensions.split_at_checked(header.size as usize)?;
        let body = extension.get(size_of::<ExtensionHeader>()..)?;
        if header.kind == EXTENSION_CALLER {
            let caller: CallerIn = object(body)?;
            let (groups, _) = body[size_of::<CallerIn>()..].as_chunks::<4>();
            let groups = groups.get(..caller.groups as usize)?;
            return Some(Known {
                groups: groups.iter().map(|group| u32::from_le_bytes(*group)).collect(),
                capabilities: (caller.flags & super::abi::CALLER_CAPABILITIES != 0)
                    .then_some(caller.capabilities),
            });
        }
        extensions = rest;
    }
    None
}

/// The structure at the beginning of `bytes`.
pub fn object<T: ByteValued + Default>(bytes: &[u8]) -> Option<T> {
    let mut object = T::default();
    object.as_mut_slice().copy_from_slice(bytes.get(..size_of::<T>())?);
    Some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_from_the_extensions() {
        let caller = CallerIn { capabilities: 5, flags: 1, groups: 2 };
        let size = (size_of::<ExtensionHeader>() + size_of::<CallerIn>() + 8) as u32;
        let mut bytes = ExtensionHeader { size: 8, kind: 3 }.as_slice().to_vec();
        bytes.extend(ExtensionHeader { size, kind: EXTENSION_CALLER }.as_slice());
        bytes.extend(caller.as_slice());
        bytes.extend([7, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(known(&bytes), Some(Known { groups: vec![7, 256], capabilities: Some(5) }));
        // Fewer groups than announced, and invalid sizes.
        assert_eq!(known(&bytes[..bytes.len() - 1]), None);
        assert_eq!(known(ExtensionHeader { size: 0, kind: 3 }.as_slice()), None);
        assert_eq!(known(&[]), None);
    }
}
