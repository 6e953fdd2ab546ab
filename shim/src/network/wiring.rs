//! The interfaces of the namespace that are connected to the guest.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use pouch_protocol::agent::{Interface, Neighbor, Route, SetNetworkRequest};
use pouch_vmm_api::config::{MAX_NETWORK_SLOTS, MacAddress, NetworkConfig};

use super::devices::NetworkDevices;
use super::inspect::{self, Found, FoundInterface};
use super::netlink::Netlink;
use super::{Guest, WireError, redirect, resolver, tap};

/// How an interface of the namespace is connected.
#[derive(Clone, Copy, Debug)]
struct Wire {
    /// The number of the tap device.
    tap: u32,
    /// The number of the virtio device.
    slot: u32,
}

/// The interfaces of the namespace that are connected to the guest.
#[derive(Debug, Default)]
pub struct Wiring {
    /// Descriptors for further ones.
    devices: NetworkDevices,
    /// By the interface's number on the host.
    wires: BTreeMap<u32, Wire>,
    /// How many there were, including removed ones.
    used: usize,
    /// The engine's resolver is forwarded.
    resolver: bool,
    /// Removed devices that the agent does not know of yet.
    removed: Vec<u32>,
    /// The VM is gone.
    ended: bool,
    /// The last request to the agent.
    told: SetNetworkRequest,
}

impl Wiring {
    /// No interface yet, and descriptors for those to come.
    pub fn new(devices: NetworkDevices) -> Self {
        Wiring { devices, ..Wiring::default() }
    }

    /// Takes descriptors of `/dev/vhost-net` for the interfaces that are connected next.
    pub fn set_vhosts(&mut self, vhosts: Vec<OwnedFd>) {
        self.devices.set_vhosts(vhosts);
    }

    /// Disconnects the interfaces, so that the namespace can be used without the VM. The calling thread must be in
    /// it. Removed interfaces are ignored.
    pub fn undo(&mut self) {
        self.ended = true;
        let Ok(mut netlink) = Netlink::open() else { return };
        for index in std::mem::take(&mut self.wires).into_keys() {
            let _ = redirect::part(&mut netlink, index);
            let _ = redirect::take_all_multicast(&mut netlink, index, false);
        }
    }

    /// Gives the guest the current network of the calling thread's namespace. Unsupported parts are skipped; returns
    /// the reasons.
    pub fn update(&mut self, guest: &dyn Guest) -> Vec<WireError> {
        let mut problems = Vec::new();
        if !self.ended
            && let Err(error) = self.follow(guest, &mut problems)
        {
            problems.push(error);
        }
        problems
    }

    /// Problems of single parts are added to `problems`; an error concerns the whole network.
    fn follow(&mut self, guest: &dyn Guest, problems: &mut Vec<WireError>) -> Result<(), WireError> {
        let mut netlink = Netlink::open()?;
        let mut found = inspect::inspect(&mut netlink)?;
        if found.taps && self.used == 0 {
            return Err(WireError::Taken);
        }
        problems.append(&mut found.problems);
        self.forget_what_went(&found);
        let mut resolver = !found.interfaces.is_empty() && !self.resolver && resolver::is_there();
        if resolver && let Err(error) = self.make_room_for_resolver(&mut netlink) {
            problems.push(error);
            resolver = false;
        }
        let mut wired = Vec::new();
        for mut interface in found.interfaces {
            let known = self.wires.get(&interface.index).copied();
            let wire = known
                .map_or_else(|| self.connect(&mut netlink, guest, &interface, resolver || self.resolver), Ok);
            match wire {
                Ok(wire) => {
                    interface.guest.slot = wire.slot;
                    wired.push(interface.guest);
                }
                Err(error) => problems.push(error),
            }
        }
        self.tell(guest, request(wired, found.routes, found.neighbors))?;
        if resolver {
            resolver::forward(guest)?;
            self.resolver = true;
        }
        Ok(())
    }

    fn forget_what_went(&mut self, found: &Found) {
        self.wires.retain(|index, wire| {
            let stays = found.interfaces.iter().any(|interface| interface.index == *index);
            if !stays {
                self.removed.push(wire.slot);
            }
            stays
        });
    }

    fn make_room_for_resolver(&self, netlink: &mut Netlink) -> Result<(), WireError> {
        resolver::reserve_ports()?;
        for (index, wire) in &self.wires {
            redirect::share_dns(netlink, *index, wire.tap)?;
        }
        Ok(())
    }

    /// Sends the agent what has changed since the last request.
    fn tell(&mut self, guest: &dyn Guest, mut request: SetNetworkRequest) -> Result<(), WireError> {
        request.removed.clone_from(&self.removed);
        if request != self.told {
            guest.set_network(request.clone()).map_err(WireError::Guest)?;
            self.removed.clear();
            request.removed.clear();
            self.told = request;
        }
        Ok(())
    }

    fn connect(
        &mut self,
        netlink: &mut Netlink,
        guest: &dyn Guest,
        interface: &FoundInterface,
        resolver: bool,
    ) -> Result<Wire, WireError> {
        let name = || interface.guest.name.clone();
        if self.used >= usize::from(MAX_NETWORK_SLOTS) {
            return Err(WireError::TooMany(name()));
        }
        let no_tap = |source| WireError::Tap { interface: name(), source };
        let device = self.devices.take().map_err(no_tap)?;
        let tap = tap::create(device.tun).map_err(no_tap)?;
        tap.bring_up(netlink, interface.guest.mtu)?;
        let config = NetworkConfig { mac: MacAddress(interface.mac), mtu: interface.mtu() };
        let plug = || {
            redirect::join(netlink, interface.index, tap.index)?;
            redirect::take_all_multicast(netlink, interface.index, true)?;
            if resolver {
                redirect::share_dns(netlink, interface.index, tap.index)?;
            }
            guest
                .plug_network(&tap.file, device.vhost.as_ref(), config)
                .map_err(|source| WireError::Plug { interface: name(), source })
        };
        let slot = plug();
        if slot.is_err() {
            // The first error is reported.
            let _ = redirect::part(netlink, interface.index);
            let _ = redirect::take_all_multicast(netlink, interface.index, false);
        }
        let slot = slot?;
        self.used += 1;
        let wire = Wire { tap: tap.index, slot };
        self.wires.insert(interface.index, wire);
        Ok(wire)
    }
}

/// The guest's configuration with exactly these interfaces.
fn request(wired: Vec<Interface>, routes: Vec<Route>, neighbors: Vec<Neighbor>) -> SetNetworkRequest {
    let has = |name: &str| wired.iter().any(|interface| interface.name == name);
    let routes = routes.into_iter().filter(|route| has(&route.interface)).collect();
    let neighbors = neighbors.into_iter().filter(|neighbor| has(&neighbor.interface)).collect();
    let mut request = SetNetworkRequest::new();
    (request.routes, request.neighbors, request.interfaces) = (routes, neighbors, wired);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_an_interface_that_is_not_had_is_left_out() {
        let interface = |name: &str| Interface { name: name.to_owned(), ..Interface::default() };
        let route = |name: &str| Route { interface: name.to_owned(), ..Route::default() };
        let neighbor = |name: &str| Neighbor { interface: name.to_owned(), ..Neighbor::default() };
        let both = ["eth0", "eth8"];
        let request = request(vec![interface("eth0")], both.map(route).to_vec(), both.map(neighbor).to_vec());
        assert_eq!(request.interfaces, [interface("eth0")]);
        assert_eq!(request.routes, [route("eth0")]);
        assert_eq!(request.neighbors, [neighbor("eth0")]);
    }
}
