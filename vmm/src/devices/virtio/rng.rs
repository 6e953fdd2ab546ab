//! Entropy from the host (section 5.4).

use std::io;

use vm_memory::Bytes;

use super::queue::Chain;
use super::queue_events::LoopDevice;
use super::{VirtQueue, VirtioDevice, id};
use crate::memory::Memory;

const QUEUE_SIZES: [u16; 1] = [64];
/// Bytes given for one request, however large its buffers are.
const MAX_REQUEST: usize = 4096;

/// The entropy device.
#[derive(Default)]
pub struct Rng {
    queue: Option<VirtQueue>,
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        id::RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, queues: Vec<VirtQueue>, _features: u64) -> io::Result<()> {
        self.queue = queues.into_iter().next();
        Ok(())
    }
}

impl LoopDevice for Rng {
    fn process_queue(&mut self, _index: usize) {
        if let Some(queue) = &mut self.queue {
            queue.for_each(fill);
        }
    }
}

/// Fills the chain's buffers; returns the bytes written.
fn fill(memory: &Memory, chain: Chain) -> u32 {
    let mut written = 0;
    let mut bytes = [0u8; MAX_REQUEST];
    for buffer in chain.writable() {
        let count = (buffer.len() as usize).min(MAX_REQUEST - written);
        let bytes = &mut bytes[..count];
        if count == 0 || random(bytes).is_err() || memory.write_slice(bytes, buffer.addr()).is_err() {
            break;
        }
        written += count;
    }
    // At most MAX_REQUEST.
    written as u32
}

fn random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of a live slice.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(got) {
        Ok(got) if got == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
