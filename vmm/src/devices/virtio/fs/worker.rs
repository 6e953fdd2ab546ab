//! The thread that serves the file system.

use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};

use super::FuseServer;
use crate::devices::virtio::VirtQueue;
use crate::devices::virtio::queue::Chain;
use crate::devices::virtio::worker::wait_for_kick;
use crate::memory::Memory;

/// Serves the queues until the process ends.
pub fn run(server: &FuseServer, mut queues: Vec<VirtQueue>) {
    loop {
        for queue in &mut queues {
            queue.for_each(|memory, chain| serve(server, memory, chain));
        }
        if let Err(error) = wait_for_kick(&queues.iter().collect::<Vec<_>>()) {
            crate::log_line!("the file system's notifications cannot be waited for: {error}");
            return;
        }
    }
}

/// Bytes of a request or an answer: those that are read or written, of which the server takes 1 MiB, and what
/// stands before them. The server makes buffers as large as the guest's before it looks what it is asked, and
/// buffers that overlap can be far more than the guest's memory.
const MAX_MESSAGE: usize = (1 << 20) + (64 << 10);

/// Serves one request; returns the bytes written into its buffers.
fn serve(server: &FuseServer, memory: &Memory, chain: Chain) -> u32 {
    let reader = Reader::from_descriptor_chain(memory, chain.clone());
    let writer = VirtioFsWriter::new(memory, chain);
    let (Ok(reader), Ok(writer)) = (reader, writer) else {
        crate::log_line!("a file system request lies outside guest memory");
        return 0;
    };
    if reader.available_bytes() > MAX_MESSAGE || writer.available_bytes() > MAX_MESSAGE {
        crate::log_line!("a file system request is larger than any can be");
        return 0;
    }
    match server.handle_message(reader, Writer::VirtioFs(writer), None, None) {
        Ok(written) => u32::try_from(written).unwrap_or(u32::MAX),
        Err(error) => {
            crate::log_line!("a file system request makes no sense: {error}");
            0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::fs::share::Share;
    use crate::devices::virtio::hostile::{Guest, rounds};
    use fuse_backend_rs::api::server::Server;
    use fuse_backend_rs::passthrough::{Config, PassthroughFs};
    use proptest::prelude::*;
    use std::fs;

    /// FUSE_FALLOCATE of linux/fuse.h: left out, because it would fill the disk of whoever tests.
    const FALLOCATE: u32 = 43;

    /// Requests (linux/fuse.h) that make sense, or nearly.
    fn requests() -> impl Strategy<Value = Vec<u8>> + Clone {
        let length = prop_oneof![40..200_u32, any::<u32>()];
        let operation = prop_oneof![20 => 1..53_u32, 1 => any::<u32>()]
            .prop_filter("fills the disk", |&operation| operation != FALLOCATE);
        let node = prop_oneof![4 => 1..4_u64, 1 => any::<u64>()];
        let word = prop_oneof![4 => 0..4_u64, 1 => any::<u64>()];
        let name =
            prop::sample::select(vec!["file", "directory", "..", ".", "", "../secret", "/etc", "new", "n/w"]);
        let body = (prop::collection::vec(word, 0..10), name).prop_map(|(words, name)| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.extend(name.as_bytes());
            bytes.extend([0; 1]);
            bytes
        });
        (length, operation, node, body).prop_map(|(length, operation, node, body)| {
            let mut bytes = Vec::new();
            bytes.extend(length.to_le_bytes());
            bytes.extend(operation.to_le_bytes());
            bytes.extend(1_u64.to_le_bytes());
            bytes.extend(node.to_le_bytes());
            // User, group, process and padding.
            bytes.extend([0; 16]);
            bytes.extend(body);
            bytes.resize(0x1000, 0);
            bytes
        })
    }

    proptest! {
        #[test]
        fn a_share_stands_any_queue(rounds in rounds(2, requests())) {
            let folder = tempfile::tempdir().unwrap();
            let share = folder.path().join("share");
            fs::create_dir_all(share.join("directory")).unwrap();
            fs::write(share.join("file"), "shared").unwrap();
            fs::write(folder.path().join("secret"), "not shared").unwrap();
            let root_dir = share.to_str().unwrap().to_owned();
            let config = Config { root_dir, xattr: true, use_host_ino: true, ..Config::default() };
            let files = PassthroughFs::new(config).unwrap();
            files.import().unwrap();
            let server = Server::new(Share::new(files, 2).unwrap());
            let mut guest = Guest::new(2);
            let mut queues = guest.queues();
            for round in &rounds {
                let queue = guest.play(round);
                queues[queue].for_each(|memory, chain| serve(&server, memory, chain));
            }
            let outside: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            prop_assert_eq!(outside.len(), 2);
            prop_assert_eq!(fs::read_to_string(folder.path().join("secret")).unwrap(), "not shared");
        }
    }
}
