//! The container's network: what the engine set up in the network namespace reaches the guest.
//!
//! [`namespace`] puts the sandbox host process there. When the container starts, [`inspect`] looks
//! at what there is; each Ethernet interface gets a [`tap`] device beside it, frames go over from
//! one to the other both ways ([`redirect`]), the VMM makes a virtio interface of the tap device,
//! and the agent gives that the name, addresses and routes of the engine's. [`resolver`] makes the
//! engine's own DNS resolver answer in the guest.

pub mod inspect;
pub mod namespace;
pub mod netlink;
pub mod redirect;
pub mod resolver;
pub mod tap;

use std::io;

use pouch_protocol::agent::SetNetworkRequest;
use pouch_vmm::config::{MAX_NETWORK_SLOTS, MacAddress, NetworkConfig};

use crate::sandbox::agent::{Agent, AgentError};
use crate::sandbox::vm::{Vm, VmError};
use inspect::Found;
use netlink::{Netlink, NetlinkError};

/// What the engine set up cannot be had in the guest.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The kernel was asked and refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Something of it cannot be in a VM.
    #[error("the network namespace has {what}, {problem}")]
    Unsupported {
        /// What there is.
        what: String,
        /// Why it cannot be.
        problem: &'static str,
    },
    /// There are too many interfaces.
    #[error("the network namespace has {0} interfaces, and a VM can have {MAX_NETWORK_SLOTS} at most")]
    TooMany(usize),
    /// No tap device.
    #[error("a tap device for {interface} could not be made with /dev/net/tun")]
    Tap {
        /// The engine's interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The VMM refuses the interface.
    #[error("the VM takes no interface for {interface}")]
    Plug {
        /// The engine's interface.
        interface: String,
        /// What the VMM said.
        source: VmError,
    },
    /// The agent refuses.
    #[error("the network could not be set up in the guest")]
    Guest(#[source] AgentError),
    /// The engine's resolver does not reach the guest.
    #[error("the engine's DNS resolver could not be brought into the guest")]
    Resolver(#[from] resolver::ResolverError),
}

/// Gives the guest the network of the namespace that the calling thread is in.
///
/// # Errors
/// [`WireError`] names the interface or route.
pub fn wire(vm: &Vm, agent: &Agent) -> Result<(), WireError> {
    let mut netlink = Netlink::open()?;
    let mut found = inspect::inspect(&mut netlink)?;
    if found.interfaces.is_empty() {
        return Ok(());
    }
    if found.interfaces.len() > usize::from(MAX_NETWORK_SLOTS) {
        return Err(WireError::TooMany(found.interfaces.len()));
    }
    let resolver = resolver::is_there();
    if resolver {
        resolver::reserve_ports()?;
    }
    for interface in &mut found.interfaces {
        let tap_error = |source| WireError::Tap { interface: interface.guest.name.clone(), source };
        let tap = tap::create().map_err(tap_error)?;
        tap.bring_up(&mut netlink, interface.guest.mtu)?;
        redirect::join(&mut netlink, interface.index, tap.index)?;
        if resolver {
            redirect::share_dns(&mut netlink, interface.index, tap.index)?;
        }
        let config = NetworkConfig { mac: MacAddress(interface.mac), mtu: interface.mtu() };
        interface.guest.slot = vm
            .plug_network(&tap.file, config)
            .map_err(|source| WireError::Plug { interface: interface.guest.name.clone(), source })?;
    }
    agent.set_network(request(found)).map_err(WireError::Guest)?;
    if resolver {
        resolver::forward(vm, agent)?;
    }
    Ok(())
}

fn request(found: Found) -> SetNetworkRequest {
    let mut request = SetNetworkRequest::new();
    request.interfaces = found.interfaces.into_iter().map(|interface| interface.guest).collect();
    request.routes = found.routes;
    request.neighbors = found.neighbors;
    request
}
