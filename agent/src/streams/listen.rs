//! The agent's two vsock ports. Only the host may connect: without that check a container
//! could reach the agent through the guest's own vsock loopback.

use std::io;
use std::time::Duration;

use futures_util::stream;
use pouch_protocol::{AGENT_PORT, STREAM_PORT};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use ttrpc::r#async::transport::Listener;

use super::StreamTable;

/// How long to wait after an accept that failed, so that a lasting fault does not spin.
const RETRY_TIME: Duration = Duration::from_millis(50);

/// Listens for the protocol's connections.
pub fn rpc_listener() -> io::Result<Listener> {
    let listener = VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, AGENT_PORT))?;
    let accept = |listener: VsockListener| async move {
        let connection = accept_host(&listener).await;
        Some((io::Result::Ok(connection), listener))
    };
    Ok(Listener::new(stream::unfold(listener, accept)))
}

/// Listens for the connections of standard streams.
pub fn stream_listener() -> io::Result<VsockListener> {
    VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, STREAM_PORT))
}

/// Signals to the host that the ports are open. The connection is refused, but makes the VMM retry its pending
/// connections at once.
pub async fn knock() {
    // Without it the VMM retries a few milliseconds later.
    let _ = VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, AGENT_PORT)).await;
}

/// Accepts stream connections, forever.
pub async fn accept_streams(listener: VsockListener, table: StreamTable) {
    loop {
        let connection = accept_host(&listener).await;
        let table = table.clone();
        tokio::spawn(async move { table.take(Box::new(connection)).await });
    }
}

/// The next connection that comes from the host.
async fn accept_host(listener: &VsockListener) -> VsockStream {
    loop {
        match listener.accept().await {
            Ok((connection, peer)) if peer.cid() == VMADDR_CID_HOST => return connection,
            Ok((_, peer)) => {
                log::warn!("refused a connection from CID {}: only the host may connect", peer.cid())
            }
            Err(error) => {
                log::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(RETRY_TIME).await;
            }
        }
    }
}
