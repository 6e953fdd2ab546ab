//! Checks and parses a network request.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pouch_protocol::agent::{Interface, Neighbor, Route, SetNetworkRequest};

use crate::error::RequestError;

/// The limit for the length of lists.
const LIST_MAX: usize = 4096;

/// A MAC address.
pub type Mac = [u8; 6];

/// A request in the kernel's terms.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub interfaces: Vec<InterfacePlan>,
    pub routes: Vec<RoutePlan>,
    pub neighbors: Vec<NeighborPlan>,
    /// Virtio devices to remove.
    pub removed: Vec<u32>,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfacePlan {
    pub name: String,
    pub mac: Mac,
    /// The virtio device to start; none if the interface is found by its MAC.
    pub slot: Option<u32>,
    pub ipv6: bool,
    pub arp: bool,
    pub mtu: Option<u32>,
    pub addresses: Vec<AddressPlan>,
}

/// One address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPlan {
    pub address: IpAddr,
    /// Of the address, or of the peer if there is one.
    pub length: u8,
    pub peer: Option<IpAddr>,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutePlan {
    /// The unspecified address with length 0 for the default route.
    pub destination: (IpAddr, u8),
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub interface: String,
    pub scope: u8,
    pub metric: Option<u32>,
    pub onlink: bool,
    pub protocol: Option<u8>,
}

/// One neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeighborPlan {
    pub address: IpAddr,
    pub interface: String,
    pub mac: Mac,
}

/// Checks the whole request before anything is changed.
pub fn check(request: &SetNetworkRequest) -> Result<Plan, RequestError> {
    for (name, length) in [
        ("interfaces", request.interfaces.len()),
        ("routes", request.routes.len()),
        ("neighbors", request.neighbors.len()),
        ("removed", request.removed.len()),
    ] {
        if length > LIST_MAX {
            return Err(RequestError::new(
                format!("network.{name}"),
                format!("has more than {LIST_MAX} entries"),
            ));
        }
    }
    let interfaces = request.interfaces.iter().enumerate().map(|(index, entry)| interface(index, entry));
    let routes = request.routes.iter().enumerate().map(|(index, entry)| route(index, entry));
    let neighbors = request.neighbors.iter().enumerate().map(|(index, entry)| neighbor(index, entry));
    let plan = Plan {
        interfaces: interfaces.collect::<Result<_, _>>()?,
        routes: routes.collect::<Result<_, _>>()?,
        neighbors: neighbors.collect::<Result<_, _>>()?,
        removed: request.removed.clone(),
    };
    for (index, interface) in plan.interfaces.iter().enumerate() {
        if plan.interfaces[..index].iter().any(|other| other.name == interface.name) {
            return Err(RequestError::new(format!("network.interfaces[{index}].name"), "is listed twice"));
        }
    }
    Ok(plan)
}

fn interface(index: usize, entry: &Interface) -> Result<InterfacePlan, RequestError> {
    let field = |name: &str| format!("network.interfaces[{index}].{name}");
    let addresses = entry
        .addresses
        .iter()
        .enumerate()
        .map(|(at, text)| interface_address(&field(&format!("addresses[{at}]")), text));
    if entry.mtu > 65_535 {
        return Err(RequestError::new(field("mtu"), format!("{} is more than 65535", entry.mtu)));
    }
    Ok(InterfacePlan {
        name: interface_name(&field("name"), &entry.name)?,
        mac: mac(&field("mac"), &entry.mac)?,
        slot: Some(entry.slot).filter(|slot| *slot != 0),
        ipv6: !entry.no_ipv6,
        arp: !entry.no_arp,
        mtu: Some(entry.mtu).filter(|mtu| *mtu != 0),
        addresses: addresses.collect::<Result<_, _>>()?,
    })
}

fn route(index: usize, entry: &Route) -> Result<RoutePlan, RequestError> {
    let field = |name: &str| format!("network.routes[{index}].{name}");
    let optional = |name: &str, text: &str| match text {
        "" => Ok(None),
        text => address(&field(name), text).map(Some),
    };
    let gateway = optional("gateway", &entry.gateway)?;
    let source = optional("source", &entry.source)?;
    let destination = match entry.destination.as_str() {
        "" if entry.ipv6 || gateway.is_some_and(|gateway| gateway.is_ipv6()) => {
            (Ipv6Addr::UNSPECIFIED.into(), 0)
        }
        "" => (Ipv4Addr::UNSPECIFIED.into(), 0),
        text => prefix(&field("destination"), text)?,
    };
    for (name, other) in [("gateway", gateway), ("source", source)] {
        if other.is_some_and(|other| other.is_ipv4() != destination.0.is_ipv4()) {
            return Err(RequestError::new(field(name), "is of another family than the destination"));
        }
    }
    if entry.onlink && gateway.is_none() {
        return Err(RequestError::new(field("onlink"), "needs a gateway"));
    }
    let byte = |name: &str, value: u32| {
        u8::try_from(value).map_err(|_| RequestError::new(field(name), format!("{value} is more than 255")))
    };
    Ok(RoutePlan {
        destination,
        gateway,
        source,
        interface: interface_name(&field("interface"), &entry.interface)?,
        scope: byte("scope", entry.scope)?,
        metric: Some(entry.metric).filter(|metric| *metric != 0),
        onlink: entry.onlink,
        protocol: Some(byte("protocol", entry.protocol)?).filter(|protocol| *protocol != 0),
    })
}

fn neighbor(index: usize, entry: &Neighbor) -> Result<NeighborPlan, RequestError> {
    let field = |name: &str| format!("network.neighbors[{index}].{name}");
    Ok(NeighborPlan {
        address: address(&field("address"), &entry.address)?,
        interface: interface_name(&field("interface"), &entry.interface)?,
        mac: mac(&field("mac"), &entry.mac)?,
    })
}

fn interface_name(field: &str, name: &str) -> Result<String, RequestError> {
    let bad = |byte: u8| byte.is_ascii_whitespace() || byte == b'/' || byte == b':' || byte == 0;
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.bytes().any(bad) {
        return Err(RequestError::new(field, format!("{name:?} is not the name of an interface")));
    }
    Ok(name.to_owned())
}

fn address(field: &str, text: &str) -> Result<IpAddr, RequestError> {
    text.parse().map_err(|_| RequestError::new(field, format!("{text:?} is not an IP address")))
}

/// Parses "10.0.0.2/24" or "10.0.0.2 peer 10.0.0.1/32".
fn interface_address(field: &str, text: &str) -> Result<AddressPlan, RequestError> {
    let Some((own, peer)) = text.split_once(" peer ") else {
        let (address, length) = prefix(field, text)?;
        return Ok(AddressPlan { address, length, peer: None });
    };
    let (address, (peer, length)) = (address(field, own)?, prefix(field, peer)?);
    if address.is_ipv4() != peer.is_ipv4() {
        return Err(RequestError::new(field, format!("{text:?} has a peer of another family")));
    }
    Ok(AddressPlan { address, length, peer: Some(peer) })
}

fn prefix(field: &str, text: &str) -> Result<(IpAddr, u8), RequestError> {
    let bad = || RequestError::new(field, format!("{text:?} is not an address with a prefix length"));
    let (head, length) = text.split_once('/').ok_or_else(bad)?;
    let parsed: IpAddr = head.parse().map_err(|_| bad())?;
    let length: u8 = length.parse().map_err(|_| bad())?;
    if length > if parsed.is_ipv4() { 32 } else { 128 } {
        return Err(bad());
    }
    Ok((parsed, length))
}

/// Parses "02:42:ac:11:00:02".
pub fn mac(field: &str, text: &str) -> Result<Mac, RequestError> {
    let bad = || RequestError::new(field, format!("{text:?} is not a MAC address"));
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(bad)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
    }
    if parts.next().is_some() { Err(bad()) } else { Ok(mac) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn eth0() -> Interface {
        Interface {
            name: "eth0".into(),
            mac: "02:42:ac:11:00:02".into(),
            addresses: vec!["172.17.0.2/16".into(), "fd00::2/64".into()],
            ..Default::default()
        }
    }

    fn request(interface: Interface, route: Route) -> SetNetworkRequest {
        SetNetworkRequest { interfaces: vec![interface], routes: vec![route], ..Default::default() }
    }

    #[test]
    fn a_usual_network() {
        let route = Route { gateway: "172.17.0.1".into(), interface: "eth0".into(), ..Default::default() };
        let plan = check(&request(eth0(), route)).unwrap();
        assert_eq!(plan.interfaces[0].mac, [2, 0x42, 0xac, 0x11, 0, 2]);
        assert_eq!(plan.interfaces[0].addresses[1].length, 64);
        assert_eq!(plan.routes[0].destination, ("0.0.0.0".parse().unwrap(), 0));
    }

    #[test]
    fn an_address_with_a_peer() {
        let plan = |text: &str| interface_address("a", text);
        let found = plan("10.0.0.2 peer 10.0.0.1/32").unwrap();
        let peer = "10.0.0.1".parse().ok();
        assert_eq!(found, AddressPlan { address: "10.0.0.2".parse().unwrap(), length: 32, peer });
        for bad in ["10.0.0.2 peer 10.0.0.1", "10.0.0.2/32 peer 10.0.0.1/32", "10.0.0.2 peer fd00::1/64"] {
            assert!(plan(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_default_route_of_ipv6() {
        let route = Route { ipv6: true, interface: "eth0".into(), ..Default::default() };
        let plan = check(&request(eth0(), route)).unwrap();
        assert_eq!(plan.routes[0].destination, ("::".parse().unwrap(), 0));
    }

    #[test]
    fn bad_entries_are_named() {
        let refused = |change: fn(&mut Interface, &mut Route)| {
            let mut interface = eth0();
            let mut route = Route { interface: "eth0".into(), ..Default::default() };
            change(&mut interface, &mut route);
            check(&request(interface, route)).unwrap_err().to_string()
        };
        assert!(refused(|i, _| i.mac = "02:42".into()).starts_with("network.interfaces[0].mac: "));
        assert!(refused(|i, _| i.name = "a/b".into()).starts_with("network.interfaces[0].name: "));
        assert!(
            refused(|i, _| i.addresses[1] = "fd00::2/129".into())
                .starts_with("network.interfaces[0].addresses[1]: ")
        );
        assert!(refused(|_, r| r.gateway = "x".into()).starts_with("network.routes[0].gateway: "));
        assert!(refused(|_, r| r.scope = 300).starts_with("network.routes[0].scope: "));
        assert!(refused(|_, r| r.protocol = 256).starts_with("network.routes[0].protocol: "));
        assert!(refused(|_, r| r.onlink = true).starts_with("network.routes[0].onlink: "));
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_parser(text in "\\PC{0,40}") {
            let _ = mac("m", &text);
            let _ = interface_address("p", &text);
            let _ = address("a", &text);
        }
    }
}
