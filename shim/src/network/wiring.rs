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
    /// The devices that went away, and the agent has not been told.
    removed: Vec<u32>,
    /// The VM is gone.
    ended: bool,
    /// What the agent was told last.
    told: SetNetworkRequest,
}

impl Wiring {
    /// Whether the guest has no interface.
    pub fn is_empty(&self) -> bool {
        self.wires.is_empty()
    }

    /// Gives the interfaces back to the namespace, which may go on without the VM. The calling thread must be in
    /// it. What has gone by now needs nothing.
    pub fn undo(&mut self) {
        self.ended = true;
        let Ok(mut netlink) = Netlink::open() else { return };
        for index in std::mem::take(&mut self.wires).into_keys() {
            let _ = redirect::part(&mut netlink, index);
        }
    }

    /// Gives the guest the network of the namespace that the calling thread is in, as it is now.
    ///
    /// # Errors
    /// [`WireError`] names the interface or route.
    pub fn update(&mut self, vm: &Vm, agent: &Agent) -> Result<(), WireError> {
        if self.ended {
            return Ok(());
        }
        let mut netlink = Netlink::open()?;
        let mut found = inspect::inspect(&mut netlink)?;
        if found.taps && self.used == 0 {
            return Err(WireError::Taken);
        }
        let mut request = SetNetworkRequest::new();
        self.wires.retain(|index, wire| {
            let stays = found.interfaces.iter().any(|interface| interface.index == *index);
            if !stays {
                self.removed.push(wire.slot);
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
        request.removed.clone_from(&self.removed);
        request.interfaces = found.interfaces.into_iter().map(|interface| interface.guest).collect();
        request.routes = found.routes;
        request.neighbors = found.neighbors;
        if request != self.told {
            agent.set_network(request.clone()).map_err(WireError::Guest)?;
            self.removed.clear();
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
        let config = NetworkConfig { mac: MacAddress(interface.mac), mtu: interface.mtu() };
        let plug = || {
            redirect::join(netlink, interface.index, tap.index)?;
            if resolver {
                redirect::share_dns(netlink, interface.index, tap.index)?;
            }
            vm.plug_network(&tap.file, config).map_err(|source| WireError::Plug { interface: name(), source })
        };
        let slot = plug();
        if slot.is_err() {
            // The first error is the one to be told.
            let _ = redirect::part(netlink, interface.index);
        }
        let slot = slot?;
        self.used += 1;
        let wire = Wire { tap: tap.index, slot };
        self.wires.insert(interface.index, wire);
        Ok(wire)
    }
}
