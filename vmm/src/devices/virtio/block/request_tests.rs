//! Valid and invalid disk requests through a queue in guest memory.

use std::io::Write;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use virtio_queue::QueueT;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::GuestAddress;

use super::*;
use crate::devices::virtio::hostile::{self, Guest};
use crate::memory;

const HEADER: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const STATUS: u64 = 0x3_0000;
const WRITE: u16 = 2;

/// Serves one request made of these buffers; returns (bytes written, status byte).
fn serve(disk: &Disk, memory: &Memory, kind: u32, sector: u64, data: &[(u32, u16)]) -> (u32, u8) {
    let mut header = [0; HEADER_LENGTH];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    memory.write_slice(&header, GuestAddress(HEADER)).unwrap();
    memory.write_obj(0xeeu8, GuestAddress(STATUS)).unwrap();
    let mut buffers = vec![(HEADER, 16, 0)];
    buffers.extend(data.iter().map(|&(length, flags)| (DATA, length, flags)));
    buffers.push((STATUS, 1, WRITE));
    let written = serve_buffers(disk, memory, &buffers);
    (written, memory.read_obj(GuestAddress(STATUS)).unwrap())
}

fn serve_buffers(disk: &Disk, memory: &Memory, buffers: &[(u64, u32, u16)]) -> u32 {
    let queue = MockSplitQueue::new(memory, 16);
    let descriptors: Vec<RawDescriptor> = buffers
        .iter()
        .map(|&(address, length, flags)| RawDescriptor::from(Descriptor::new(address, length, flags, 0)))
        .collect();
    queue.build_desc_chain(&descriptors).unwrap();
    let mut queue: virtio_queue::Queue = queue.create_queue().unwrap();
    disk.serve(memory, queue.pop_descriptor_chain(std::sync::Arc::new(memory.clone())).unwrap())
}

fn disk(read_only: bool) -> (Disk, Memory, File) {
    let (disk, file) = disk_alone(read_only);
    (disk, memory::tests::create(64), file)
}

fn disk_alone(read_only: bool) -> (Disk, File) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[b'd'; 4096]).unwrap();
    (Disk::new(file.try_clone().unwrap(), 8, "root", read_only), file)
}

#[test]
fn reads_and_writes_reach_the_file() {
    let (disk, memory, file) = disk(false);
    assert_eq!(serve(&disk, &memory, VIRTIO_BLK_T_IN, 7, &[(512, WRITE)]), (513, 0));
    assert_eq!(memory.read_obj::<u8>(GuestAddress(DATA + 511)).unwrap(), b'd');
    memory.write_slice(&[b'w'; 512], GuestAddress(DATA)).unwrap();
    assert_eq!(serve(&disk, &memory, VIRTIO_BLK_T_OUT, 1, &[(512, 0)]), (1, 0));
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 512).unwrap();
    assert_eq!(sector, [b'w'; 512]);
    assert_eq!(serve(&disk, &memory, VIRTIO_BLK_T_FLUSH, 0, &[]), (1, 0));
}

#[test]
fn the_serial_is_told_and_cut_to_the_buffer() {
    let (disk, memory, _file) = disk(true);
    assert_eq!(serve(&disk, &memory, VIRTIO_BLK_T_GET_ID, 0, &[(20, WRITE)]), (21, 0));
    assert_eq!(memory.read_obj::<[u8; 5]>(GuestAddress(DATA)).unwrap(), *b"root\0");
    assert_eq!(serve(&disk, &memory, VIRTIO_BLK_T_GET_ID, 0, &[(2, WRITE)]), (3, 0));
}

#[test]
fn discards_and_zeros_clear_the_range() {
    let (disk, memory, file) = disk(false);
    for (kind, sector) in [(VIRTIO_BLK_T_DISCARD, 0u64), (VIRTIO_BLK_T_WRITE_ZEROES, 4)] {
        let mut segment = [0; 16];
        segment[..8].copy_from_slice(&sector.to_le_bytes());
        segment[8] = 1;
        memory.write_slice(&segment, GuestAddress(DATA)).unwrap();
        let (_, status) = serve(&disk, &memory, kind, 0, &[(16, 0)]);
        assert!(status == 0 || u32::from(status) == VIRTIO_BLK_S_UNSUPP);
        let mut bytes = [1; 512];
        file.read_exact_at(&mut bytes, sector * 512).unwrap();
        assert!(status != 0 || bytes == [0; 512]);
    }
}

#[test]
fn requests_that_make_no_sense_fail_and_harm_nothing() {
    let (disk, memory, file) = disk(false);
    let failures = [
        serve(&disk, &memory, VIRTIO_BLK_T_IN, 8, &[(512, WRITE)]),
        serve(&disk, &memory, VIRTIO_BLK_T_IN, u64::MAX, &[(512, WRITE)]),
        serve(&disk, &memory, VIRTIO_BLK_T_IN, 0, &[(511, WRITE)]),
        serve(&disk, &memory, VIRTIO_BLK_T_IN, 0, &[(512, 0)]),
        serve(&disk, &memory, VIRTIO_BLK_T_OUT, 0, &[(512, WRITE)]),
        serve(&disk, &memory, VIRTIO_BLK_T_OUT, 7, &[(1024, 0)]),
        serve(&disk, &memory, VIRTIO_BLK_T_IN, 0, &[(!511, WRITE)]),
        serve(&disk, &memory, VIRTIO_BLK_T_DISCARD, 0, &[(15, 0)]),
        serve(&disk, &memory, VIRTIO_BLK_T_GET_ID, 0, &[]),
    ];
    assert_eq!(failures, [(1, VIRTIO_BLK_S_IOERR as u8); 9]);
    assert_eq!(serve(&disk, &memory, 77, 0, &[]), (1, VIRTIO_BLK_S_UNSUPP as u8));
    assert_eq!(file.metadata().unwrap().len(), 4096);
}

#[test]
fn chains_without_header_or_status_are_dropped() {
    let (disk, memory, _file) = disk(false);
    assert_eq!(serve_buffers(&disk, &memory, &[(STATUS, 1, WRITE)]), 0);
    assert_eq!(serve_buffers(&disk, &memory, &[(HEADER, 16, 0), (DATA, 512, 0)]), 0);
    assert_eq!(serve_buffers(&disk, &memory, &[(HEADER, 16, 0), (u64::MAX, 1, WRITE)]), 0);
}

#[test]
fn a_read_only_disk_is_not_written() {
    let (disk, memory, file) = disk(true);
    assert_eq!(serve(&disk, &memory, VIRTIO_BLK_T_OUT, 0, &[(512, 0)]).1, VIRTIO_BLK_S_IOERR as u8);
    assert_eq!(serve(&disk, &memory, VIRTIO_BLK_T_DISCARD, 0, &[(16, 0)]).1, VIRTIO_BLK_S_IOERR as u8);
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [b'd']);
}

/// Requests (section 5.2.6), with a segment for those that discard, that make sense or nearly.
fn requests() -> impl Strategy<Value = Vec<u8>> + Clone {
    let kind = prop_oneof![0..16_u32, any::<u32>()];
    let sector = || prop_oneof![0..10_u64, any::<u64>()];
    let count = prop_oneof![0..10_u32, any::<u32>()];
    (kind, sector(), sector(), count).prop_map(|(kind, sector, segment, count)| {
        let mut bytes = Vec::new();
        bytes.extend(kind.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(sector.to_le_bytes());
        // The second buffer of most chains lies a page further.
        bytes.resize(0x1000, 1);
        bytes.extend(segment.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.resize(0x2000, 0);
        bytes
    })
}

proptest! {
    #[test]
    fn a_disk_stands_any_queue(rounds in hostile::rounds(1, requests()), read_only: bool) {
        let (disk, file) = disk_alone(read_only);
        let mut guest = Guest::new(1);
        let mut queue = guest.queues().remove(0);
        for round in &rounds {
            guest.play(round);
            queue.for_each(|memory, chain| disk.serve(memory, chain));
        }
        prop_assert_eq!(file.metadata().unwrap().len(), 4096);
        let mut content = [0; 4096];
        file.read_exact_at(&mut content, 0).unwrap();
        prop_assert!(!read_only || content == [b'd'; 4096]);
    }
}
