//! How the host controls a VM: one socket, one message in each packet.
//!
//! The socket is a `SOCK_SEQPACKET` pair, so message boundaries are preserved. Messages are JSON; a
//! descriptor is sent with its message. The host must not trust the VMM, because the guest may have taken it
//! over: it bounds what it reads.

mod socket;

use serde::{Deserialize, Serialize};

pub use socket::{ControlSocket, MAX_DESCRIPTORS, MAX_MESSAGE};

use crate::config::{DiskConfig, NetworkConfig};
use crate::exit::ExitReason;

/// A request of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The answer carries the same number.
    pub id: u64,
    /// What is asked for.
    pub command: Command,
}

/// What the host can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Connects to a vsock port of the guest; the answer comes with a stream socket. Tried again
    /// until something listens there or the time is over.
    Connect {
        /// The guest's port.
        port: u32,
        /// How long to try, in milliseconds.
        timeout_ms: u32,
    },
    /// Counters: [`Answer::Metrics`].
    Metrics,
    /// Adds a network interface over the tap device whose descriptor comes with the request, and after it, if
    /// the host's kernel is to move the frames, that of an open `/dev/vhost-net`: [`Answer::Plugged`].
    PlugNetwork(NetworkConfig),
    /// Adds a disk over the image file or block device whose descriptor comes with the request:
    /// [`Answer::Plugged`].
    PlugDisk(DiskConfig),
    /// Takes a disk away that was added, whether the guest has let go of it or not: [`Answer::Unplugged`].
    UnplugDisk {
        /// The number of its virtio device.
        device: u32,
    },
    /// Ends the VM at once; there is no answer but the exit message.
    Stop,
}

/// A message of the VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// The answer to a request.
    Answer {
        /// The request's number.
        id: u64,
        /// The answer.
        answer: Answer,
    },
    /// A request failed.
    Failed {
        /// The request's number.
        id: u64,
        /// Why, as a sentence.
        error: String,
    },
    /// The VM ended; the last message.
    Exited(ExitReason),
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Command::Connect`]: the socket comes beside the message.
    Connected,
    /// To [`Command::PlugNetwork`] and [`Command::PlugDisk`].
    Plugged {
        /// The number of the virtio device, in the order in which the guest has them.
        device: u32,
    },
    /// To [`Command::UnplugDisk`], when the VMM has closed the disk's file.
    Unplugged,
    /// To [`Command::Metrics`].
    Metrics(Metrics),
}

/// What a VM has done so far, for monitoring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// Bytes of guest memory that the host has pages for.
    pub memory_resident_bytes: u64,
    /// Bytes of guest memory given back to the host since the start.
    pub memory_returned_bytes: u64,
    /// Open vsock connections.
    pub vsock_connections: u64,
    /// Bytes to the guest on vsock.
    pub vsock_to_guest_bytes: u64,
    /// Bytes from the guest on vsock.
    pub vsock_from_guest_bytes: u64,
    /// Frames to the guest on all interfaces, but for those that the host's kernel moves.
    pub net_received_frames: u64,
    /// Frames to the guest that were lost.
    pub net_receive_dropped_frames: u64,
    /// Frames from the guest on all interfaces, but for those that the host's kernel moves.
    pub net_transmitted_frames: u64,
    /// Frames from the guest that were lost.
    pub net_transmit_dropped_frames: u64,
}
