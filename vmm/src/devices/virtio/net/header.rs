//! The header before each frame (section 5.1.6).

use vm_memory::{Bytes, GuestAddress};

use crate::memory::Memory;

/// Bytes of `struct virtio_net_hdr_v1`.
pub const HEADER_LENGTH: usize = 12;
/// Offset of its `num_buffers`.
const NUM_BUFFERS: u64 = 10;

const _: () = assert!(size_of::<virtio_bindings::virtio_net::virtio_net_hdr_v1>() == HEADER_LENGTH);

/// Writes into the header at `header` that the frame takes `count` chains.
pub fn set_buffer_count(memory: &Memory, header: GuestAddress, count: usize) {
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    // The frame was just written there; a failure is the guest's loss only.
    let _ = memory.write_obj(count.to_le(), GuestAddress(header.0.wrapping_add(NUM_BUFFERS)));
}
