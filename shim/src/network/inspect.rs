//! Reads the network configuration that the engine made in the network namespace.

use std::net::IpAddr;

use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use pouch_protocol::agent::{Interface, Neighbor, Route};

use super::netlink::Netlink;
use super::{WireError, tap};

/// RTNH_F_ONLINK of linux/rtnetlink.h: the gateway counts as reachable.
const ONLINK: u32 = 4;

/// An Ethernet interface of the namespace.
#[derive(Debug)]
pub struct FoundInterface {
    /// Its number on the host.
    pub index: u32,
    /// Its address.
    pub mac: [u8; 6],
    /// Its configuration in the guest.
    pub guest: Interface,
}

impl FoundInterface {
    /// The largest packet, as far as virtio can say it.
    pub fn mtu(&self) -> u16 {
        u16::try_from(self.guest.mtu).unwrap_or(u16::MAX)
    }
}

/// A network.
#[derive(Debug, Default)]
pub struct Found {
    /// Interfaces, in the order of their numbers.
    pub interfaces: Vec<FoundInterface>,
    /// Routes of the main table that the kernel does not make by itself.
    pub routes: Vec<Route>,
    /// Neighbours that were set by hand.
    pub neighbors: Vec<Neighbor>,
    /// There are tap devices of a VM.
    pub taps: bool,
    /// Parts that are not supported in a guest.
    pub problems: Vec<WireError>,
}

impl Found {
    fn name_of(&self, index: u32) -> Option<&str> {
        let found = self.interfaces.iter().find(|interface| interface.index == index);
        found.map(|interface| interface.guest.name.as_str())
    }
}

/// Reads the configuration of the namespace of `netlink`.
///
/// # Errors
/// [`WireError`] if the kernel does not tell.
pub fn inspect(netlink: &mut Netlink) -> Result<Found, WireError> {
    let mut found = Found::default();
    let links = netlink.list("list interfaces", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let links: Vec<LinkMessage> = links.into_iter().filter_map(link).collect();
    let all = links.len();
    let links: Vec<LinkMessage> =
        links.into_iter().filter(|link| !name(link).starts_with(tap::PREFIX)).collect();
    found.taps = links.len() < all;
    if links.is_empty() {
        return Ok(found);
    }
    let message = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let addresses = netlink.list("list addresses", message)?;
    let addresses: Vec<AddressMessage> = addresses.into_iter().filter_map(address).collect();
    for link in links {
        match interface(&link, &addresses) {
            Ok(interface) => found.interfaces.extend(interface),
            Err(error) => found.problems.push(error),
        }
    }
    if found.interfaces.is_empty() {
        return Ok(found);
    }
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        for answer in netlink.list("list routes", RouteNetlinkMessage::GetRoute(message))? {
            let RouteNetlinkMessage::NewRoute(message) = answer else { continue };
            match route(&message, &found) {
                Ok(route) => found.routes.extend(route),
                Err(error) => found.problems.push(error),
            }
        }
    }
    let message = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    for answer in netlink.list("list neighbours", message)? {
        if let RouteNetlinkMessage::NewNeighbour(message) = answer {
            found.neighbors.extend(neighbor(&message, &found));
        }
    }
    Ok(found)
}

/// All interfaces but the loopback one.
fn link(message: RouteNetlinkMessage) -> Option<LinkMessage> {
    let RouteNetlinkMessage::NewLink(link) = message else { return None };
    (link.header.link_layer_type != LinkLayerType::Loopback).then_some(link)
}

fn name(link: &LinkMessage) -> &str {
    let mut names = link.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    names.next_back().unwrap_or_default()
}

fn address(message: RouteNetlinkMessage) -> Option<AddressMessage> {
    match message {
        RouteNetlinkMessage::NewAddress(address) => Some(address),
        _ => None,
    }
}

fn interface(link: &LinkMessage, addresses: &[AddressMessage]) -> Result<Option<FoundInterface>, WireError> {
    let index = link.header.index;
    let own: Vec<&AddressMessage> = addresses.iter().filter(|a| a.header.index == index).collect();
    // Such as the fall-back devices of tunnels, which the kernel puts into every namespace.
    if own.is_empty() && !link.header.flags.contains(LinkFlags::Up) {
        return Ok(None);
    }
    let mut guest = Interface::new();
    guest.name = name(link).to_owned();
    let mut mac = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes.as_slice()).ok(),
            LinkAttribute::Mtu(mtu) => guest.mtu = (*mtu).min(u16::MAX.into()),
            _ => {}
        }
    }
    let Some(mac) = mac.filter(|_| link.header.link_layer_type == LinkLayerType::Ether) else {
        return Err(WireError::Unsupported {
            what: format!("the interface {}", guest.name),
            problem: "which is not an Ethernet interface; a VM supports no other",
        });
    };
    guest.mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    // For example, an ipvlan interface in an L3 mode does not use ARP.
    guest.no_arp = link.header.flags.contains(LinkFlags::Noarp);
    guest.no_ipv6 = own.iter().all(|address| address.header.family != AddressFamily::Inet6);
    guest.addresses = own.into_iter().filter_map(prefix).collect();
    Ok(Some(FoundInterface { index, mac, guest }))
}

/// An address with its prefix length, or with its peer and that one's; none for those that a kernel makes by itself.
fn prefix(message: &AddressMessage) -> Option<String> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(own) => local = Some(*own),
            AddressAttribute::Address(other) => address = Some(*other),
            _ => {}
        }
    }
    // If the address has a peer, only the former is the interface's own.
    let (own, peer) = (local.or(address)?, address.filter(|address| Some(*address) != local));
    if own.is_ipv6() && message.header.scope == AddressScope::Link {
        return None;
    }
    let length = message.header.prefix_len;
    Some(match peer.filter(|_| local.is_some()) {
        Some(peer) => format!("{own} peer {peer}/{length}"),
        None => format!("{own}/{length}"),
    })
}

fn route(message: &RouteMessage, found: &Found) -> Result<Option<Route>, WireError> {
    let header = &message.header;
    let made_by_kernel = matches!(header.protocol, RouteProtocol::Kernel | RouteProtocol::Ra);
    if header.table != RouteHeader::RT_TABLE_MAIN || made_by_kernel || header.kind != RouteType::Unicast {
        return Ok(None);
    }
    let mut route = Route::new();
    route.ipv6 = header.address_family == AddressFamily::Inet6;
    route.scope = u8::from(header.scope).into();
    route.protocol = u8::from(header.protocol).into();
    route.onlink = header.flags.bits() & ONLINK != 0;
    let mut output = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                let text = ip(address).map(|address| address.to_string()).unwrap_or_default();
                route.destination = format!("{text}/{}", header.destination_prefix_length);
            }
            RouteAttribute::Gateway(address) => {
                route.gateway = ip(address).map(|address| address.to_string()).unwrap_or_default();
            }
            RouteAttribute::PrefSource(address) => {
                route.source = ip(address).map(|address| address.to_string()).unwrap_or_default();
            }
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::Oif(index) => output = Some(*index),
            RouteAttribute::MultiPath(_) | RouteAttribute::Via(_) | RouteAttribute::Encap(_) => {
                return Err(WireError::Unsupported {
                    what: format!("a route to {}", destination(&route)),
                    problem: "which has several gateways, a gateway of another address family, or a tunnel",
                });
            }
            _ => {}
        }
    }
    // Others are routes of interfaces that the guest does not get.
    let Some(interface) = output.and_then(|index| found.name_of(index)) else { return Ok(None) };
    route.interface = interface.to_owned();
    Ok(Some(route))
}

fn destination(route: &Route) -> &str {
    if route.destination.is_empty() { "everywhere (default)" } else { &route.destination }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn neighbor(message: &NeighbourMessage, found: &Found) -> Option<Neighbor> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut neighbor = Neighbor::new();
    neighbor.interface = found.name_of(message.header.ifindex)?.to_owned();
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                neighbor.address = address.to_string();
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                neighbor.address = address.to_string();
            }
            NeighbourAttribute::LinkLayerAddress(bytes) if bytes.len() == 6 => {
                let pairs: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                neighbor.mac = pairs.join(":");
            }
            _ => {}
        }
    }
    let complete = !neighbor.address.is_empty() && !neighbor.mac.is_empty();
    // Multicast groups are neighbours of the kernel's own making.
    let multicast = neighbor.address.parse().is_ok_and(|address: IpAddr| address.is_multicast());
    (complete && !multicast).then_some(neighbor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(attributes: &[AddressAttribute], length: u8) -> Option<String> {
        let mut message = AddressMessage::default();
        message.header.prefix_len = length;
        message.attributes = attributes.to_vec();
        prefix(&message)
    }

    #[test]
    fn an_address_keeps_its_peer() {
        let address = |text: &str| AddressAttribute::Address(text.parse().unwrap());
        let local = |text: &str| AddressAttribute::Local(text.parse().unwrap());
        let found = |attributes: &[AddressAttribute]| text(attributes, 32).unwrap();
        assert_eq!(found(&[address("10.0.0.1"), local("10.0.0.2")]), "10.0.0.2 peer 10.0.0.1/32");
        assert_eq!(found(&[address("10.0.0.2"), local("10.0.0.2")]), "10.0.0.2/32");
        // IPv6 names one only where there is no peer.
        assert_eq!(found(&[address("fd00::2")]), "fd00::2/32");
        assert_eq!(text(&[], 32), None);
    }
}
