//! The guest's network: finds interfaces by MAC address and configures them as the host requests.

mod check;
pub mod loopback;
pub mod namespace;
mod netlink;
mod withdraw;

use pouch_protocol::agent::SetNetworkRequest;
use tokio::sync::Mutex;
use ttrpc::proto::Code;

use crate::error::{Coded, RequestError};
use crate::settings::InterfaceSettings;

/// Why the network could not be set.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The request is invalid.
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
    /// The added virtio device could not be started.
    #[error("network.interfaces[{index}].slot: virtio device {slot} could not be started: {error}")]
    Slot {
        /// Which entry.
        index: usize,
        /// The device.
        slot: u32,
        /// The kernel's error.
        error: std::io::Error,
    },
    /// A virtio device could not be removed.
    #[error("network.removed: virtio device {slot} could not be removed: {error}")]
    Removed {
        /// The device.
        slot: u32,
        /// The kernel's error.
        error: std::io::Error,
    },
    /// IPv6 cannot be turned off or on.
    #[error("network.interfaces[{index}].no_ipv6: IPv6 could not be disabled: {error}")]
    NoIpv6 {
        /// Which entry.
        index: usize,
        /// The kernel's error.
        error: std::io::Error,
    },
    /// A setting of an interface cannot be made.
    #[error("linux.sysctl[{0}]: the kernel refused it")]
    Setting(String, #[source] std::io::Error),
    /// The kernel refused.
    #[error("{0}: the kernel refused it")]
    Refused(String, #[source] rtnetlink::Error),
    /// The netlink socket failed.
    #[error("network: no netlink connection to the kernel")]
    Socket(#[from] std::io::Error),
}

impl Coded for NetworkError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::NoInterface { .. } => Code::NOT_FOUND,
            Self::Refused(..) | Self::Setting(..) => Code::INVALID_ARGUMENT,
            Self::Slot { .. } | Self::Removed { .. } | Self::NoIpv6 { .. } | Self::Socket(_) => {
                Code::INTERNAL
            }
        }
    }
}

/// The network that the host wants.
#[derive(Default)]
pub struct Network {
    /// The last request; other configuration belongs to the container.
    wanted: Mutex<check::Plan>,
}

impl Network {
    /// Removes what the host no longer wants; then sets interfaces, then routes, then neighbours. Entries that exist already
    /// are no error. `settings` are those of specifications that wait for an interface.
    ///
    /// # Errors
    /// [`NetworkError`] names the entry; what stands before it is set.
    pub async fn set(
        &self,
        request: SetNetworkRequest,
        settings: &InterfaceSettings,
    ) -> Result<(), NetworkError> {
        let plan = check::check(&request)?;
        let mut wanted = self.wanted.lock().await;
        netlink::apply(&wanted, &plan, settings).await?;
        *wanted = plan;
        Ok(())
    }
}
