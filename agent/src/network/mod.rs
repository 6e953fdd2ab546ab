//! The guest's network: interfaces are found by their MAC and made as the host wants them.

mod check;
pub mod loopback;
mod netlink;

use pouch_protocol::agent::SetNetworkRequest;
use ttrpc::proto::Code;

use crate::error::{Coded, RequestError};

/// Why the network could not be set.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The request is wrong in itself.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// No interface has the MAC.
    #[error("network.interfaces[{index}].mac: no interface has {mac}")]
    NoInterface {
        /// Which entry.
        index: usize,
        /// The MAC.
        mac: String,
    },
    /// The kernel refused.
    #[error("{0}: the kernel refused it")]
    Refused(String, #[source] rtnetlink::Error),
    /// The netlink socket failed.
    #[error("network: cannot talk to the kernel")]
    Socket(#[from] std::io::Error),
}

impl Coded for NetworkError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::NoInterface { .. } => Code::NOT_FOUND,
            Self::Refused(..) => Code::INVALID_ARGUMENT,
            Self::Socket(_) => Code::INTERNAL,
        }
    }
}

/// Sets interfaces, then routes, then neighbours. Asking for what is there already is fine.
pub async fn set(request: SetNetworkRequest) -> Result<(), NetworkError> {
    let plan = check::check(&request)?;
    netlink::apply(plan).await
}
