//! Queues that are given to a disk's thread and taken away.

use std::sync::Arc;
use std::thread;

use proptest::prelude::*;

use crate::devices::virtio::block::Block;
use crate::devices::virtio::hostile::{self, Guest};
use crate::devices::virtio::{VirtioDevice, block};

fn disk() -> (Block, thread::JoinHandle<()>) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let (block, worker) = Block::without_thread(file, 4096, "disk", false);
    (block, thread::spawn(|| worker.run()))
}

#[test]
fn a_queue_is_given_back_and_another_one_is_served() {
    let (mut block, thread) = disk();
    assert!(block.reset(), "there is no queue yet");
    for _ in 0..3 {
        let guest = Guest::new(1);
        let memory = guest.queues()[0].memory().clone();
        block.activate(guest.queues(), 0).unwrap();
        assert!(block.activate(guest.queues(), 0).is_err(), "it has one");
        assert!(block.reset());
        // Those of this function, of the guest, and of the thread, for its guests to come.
        assert_eq!(Arc::strong_count(&memory), 3, "nothing uses its memory any more");
    }
    drop(block);
    thread.join().unwrap();
}

#[test]
fn a_disk_that_goes_takes_its_thread_along() {
    // A driver that never came, and one that did not let go.
    for active in [false, true] {
        let (mut block, thread) = disk();
        if active {
            block.activate(Guest::new(1).queues(), 0).unwrap();
        }
        drop(block);
        thread.join().unwrap();
    }
}

#[test]
fn the_size_is_in_whole_sectors() {
    for (size, sectors) in [(0, 0_u64), (511, 0), (513, 1), (4096, 8)] {
        let (block, _worker) = Block::without_thread(tempfile::tempfile().unwrap(), size, "d", true);
        let mut capacity = [0; 8];
        block.read_config(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), sectors);
    }
    assert_eq!(block::thread_name("disk-1"), "blk-disk-1");
}

proptest! {
    // Each has a thread.
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_driver_may_take_its_queue_away_at_any_time(rounds in hostile::rounds(1, hostile::noise())) {
        let (mut block, thread) = disk();
        let mut guest = Guest::new(1);
        for round in &rounds {
            guest.play(round);
            block.activate(guest.queues(), 0).unwrap();
            guest.play(round);
            prop_assert!(block.reset());
        }
        drop(block);
        thread.join().unwrap();
    }
}
