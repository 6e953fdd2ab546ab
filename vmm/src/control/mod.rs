//! How the host steers a VM: one socket, one message a packet.
//!
//! The socket is a `SOCK_SEQPACKET` pair, so that a message is never torn and never joined with
//! another. Messages are JSON; a descriptor travels beside the message that it belongs to. The
//! host side must treat the VMM as the guest's: it bounds what it reads.

mod server;
mod socket;

use serde::{Deserialize, Serialize};

pub use server::ControlServer;
pub use socket::{ControlSocket, MAX_DESCRIPTORS, MAX_MESSAGE};

use crate::config::NetworkConfig;
use crate::exit::ExitReason;
use crate::vm::Metrics;

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
    /// Whether the VM runs: [`Answer::Status`].
    Status,
    /// Stops all vCPUs; answered when none runs.
    Pause,
    /// Lets them run again.
    Resume,
    /// Connects to a vsock port of the guest; the answer comes with a stream socket. Tried again
    /// until something listens there or the time is over.
    Connect {
        /// The guest's port.
        port: u32,
        /// How long to try, in milliseconds.
        timeout_ms: u32,
    },
    /// Asks the guest to give up this many MiB of memory.
    SetBalloon {
        /// MiB in the balloon.
        mib: u32,
    },
    /// Counters: [`Answer::Metrics`].
    Metrics,
    /// Adds a network interface over the tap device whose descriptor comes with the request, and after it, if
    /// the host's kernel is to move the frames, that of an open `/dev/vhost-net`: [`Answer::Plugged`].
    PlugNetwork(NetworkConfig),
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
    /// It is done.
    Done,
    /// To [`Command::Connect`]: the socket comes beside the message.
    Connected,
    /// To [`Command::Status`].
    Status {
        /// Whether the vCPUs are to run.
        running: bool,
    },
    /// To [`Command::PlugNetwork`].
    Plugged {
        /// The number of the virtio device, in the order in which the guest has them.
        device: u32,
    },
    /// To [`Command::Metrics`].
    Metrics(Metrics),
}
