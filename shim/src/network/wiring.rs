//! The interfaces of the namespace that the guest has.

use std::collections::BTreeMap;

use pouch_protocol::agent::SetNetworkRequest;
use pouch_vmm::config::{MAX_NETWORK_SLOTS, MacAddress, NetworkConfig};

use super::inspect::{self, FoundInterface};
use super::netlink::Netlink;
use super::{WireError, redirect, resolver, tap};
use crate::sandbox::agent::Agent;
use crate::sandbox::vm::Vm;

/// How an interface of the namespace is connected.
#[derive(Clone, Copy, Debug)]
struct Wire {
    /// The number of the tap device.
    tap: u32,
    /// The number of the virtio device.
    slot: u32,
}

/// What the guest has of the namespace's network.
#[derive(Debug, Default)]
pub struct Wiring {
    /// By the interface's number on the host.
    wires: BTreeMap<u32, Wire>,
    /// How many there were, with those that went away.
    used: usize,
    /// The engine's resolver is forwarded.
    resolver: bool,
    /// What the agent was told last.
    told: SetNetworkRequest,
}

impl Wiring {
    /// Whether the guest has no interface.
    pub fn is_empty(&self) -> bool {
        self.wires.is_empty()
    }

    /// Gives the guest the network of the namespace that the calling thread is in, as it is now.
    ///
    /// # Errors
    /// [`WireError`] names the interface or route.
    pub fn update(&mut self, vm: &Vm, agent: &Agent) -> Result<(), WireError> {
        let mut netlink = Netlink::open()?;
        let mut found = inspect::inspect(&mut netlink)?;
        if found.taps && self.used == 0 {
            return Err(WireError::Taken);
        }
        let mut request = SetNetworkRequest::new();
        self.wires.retain(|index, wire| {
            let stays = found.interfaces.iter().any(|interface| interface.index == *index);
            if !stays {
                request.removed.push(wire.slot);
            }
            stays
        });
        let resolver = !found.interfaces.is_empty() && !self.resolver && resolver::is_there();
        if resolver {
            resolver::reserve_ports()?;
            for (index, wire) in &self.wires {
                redirect::share_dns(&mut netlink, *index, wire.tap)?;
            }
        }
        for interface in &mut found.interfaces {
            let wire = match self.wires.get(&interface.index) {
                Some(wire) => *wire,
                None => self.connect(&mut netlink, vm, interface, resolver || self.resolver)?,
            };
            interface.guest.slot = wire.slot;
        }
        request.interfaces = found.interfaces.into_iter().map(|interface| interface.guest).collect();
        request.routes = found.routes;
        request.neighbors = found.neighbors;
        if request != self.told {
            agent.set_network(request.clone()).map_err(WireError::Guest)?;
            request.removed.clear();
            self.told = request;
        }
        if resolver {
            resolver::forward(vm, agent)?;
            self.resolver = true;
        }
        Ok(())
    }

    fn connect(
        &mut self,
        netlink: &mut Netlink,
        vm: &Vm,
        interface: &FoundInterface,
        resolver: bool,
    ) -> Result<Wire, WireError> {
        let name = || interface.guest.name.clone();
        if self.used >= usize::from(MAX_NETWORK_SLOTS) {
            return Err(WireError::TooMany(name()));
        }
        let tap = tap::create().map_err(|source| WireError::Tap { interface: name(), source })?;
        tap.bring_up(netlink, interface.guest.mtu)?;
        redirect::join(netlink, interface.index, tap.index)?;
        if resolver {
            redirect::share_dns(netlink, interface.index, tap.index)?;
        }
        let config = NetworkConfig { mac: MacAddress(interface.mac), mtu: interface.mtu() };
        let slot = vm
            .plug_network(&tap.file, config)
            .map_err(|source| WireError::Plug { interface: name(), source })?;
        self.used += 1;
        let wire = Wire { tap: tap.index, slot };
        self.wires.insert(interface.index, wire);
        Ok(wire)
    }
}
