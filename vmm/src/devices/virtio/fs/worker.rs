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

/// Serves one request; returns the bytes written into its buffers.
fn serve(server: &FuseServer, memory: &Memory, chain: Chain) -> u32 {
    let reader = Reader::from_descriptor_chain(memory, chain.clone());
    let writer = VirtioFsWriter::new(memory, chain);
    let (Ok(reader), Ok(writer)) = (reader, writer) else {
        crate::log_line!("a file system request lies outside guest memory");
        return 0;
    };
    match server.handle_message(reader, Writer::VirtioFs(writer), None, None) {
        Ok(written) => u32::try_from(written).unwrap_or(u32::MAX),
        Err(error) => {
            crate::log_line!("a file system request makes no sense: {error}");
            0
        }
    }
}
