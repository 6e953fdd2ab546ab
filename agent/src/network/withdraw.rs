//! Removes configuration that the host no longer wants.

use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::{Error, Handle};

use super::NetworkError;
use super::check::{AddressPlan, NeighborPlan, Plan, RoutePlan};
use super::netlink::{index_of, route_message, with_peer};

/// The entries of `before` that are not in `plan`, for interfaces that stay.
#[derive(Debug, Default, PartialEq, Eq)]
struct Withdrawn<'a> {
    neighbors: Vec<&'a NeighborPlan>,
    routes: Vec<&'a RoutePlan>,
    /// With the names of their interfaces.
    addresses: Vec<(&'a str, &'a AddressPlan)>,
}

impl<'a> Withdrawn<'a> {
    fn of(before: &'a Plan, plan: &Plan) -> Self {
        // With another device everything goes by itself.
        let stays = |name: &str| {
            let find = |plan: &Plan| plan.interfaces.iter().find(|other| other.name == name).map(|i| i.slot);
            find(before).is_some() && find(before) == find(plan)
        };
        let mut withdrawn = Withdrawn::default();
        let neighbors = before.neighbors.iter().filter(|neighbor| stays(&neighbor.interface));
        withdrawn.neighbors.extend(neighbors.filter(|neighbor| !plan.neighbors.contains(neighbor)));
        let routes = before.routes.iter().filter(|route| stays(&route.interface));
        withdrawn.routes.extend(routes.filter(|route| !plan.routes.contains(route)));
        for old in before.interfaces.iter().filter(|interface| stays(&interface.name)) {
            let new = plan.interfaces.iter().find(|interface| interface.name == old.name);
            let kept = |address: &&AddressPlan| new.is_some_and(|new| new.addresses.contains(address));
            let gone = old.addresses.iter().filter(|address| !kept(address));
            withdrawn.addresses.extend(gone.map(|address| (old.name.as_str(), address)));
        }
        withdrawn
    }
}

/// Removes entries of `before` that are not in `plan`. It is no error if the container has removed an entry itself.
pub async fn withdraw(handle: &Handle, before: &Plan, plan: &Plan) -> Result<(), NetworkError> {
    let withdrawn = Withdrawn::of(before, plan);
    for neighbor in withdrawn.neighbors {
        let Some(link) = index_of(&neighbor.interface) else { continue };
        let mut request = handle.neighbours().add(link, neighbor.address);
        let message = request.message_mut().clone();
        done("neighbors", handle.neighbours().del(message).execute().await)?;
    }
    for route in withdrawn.routes {
        let Some(link) = index_of(&route.interface) else { continue };
        done("routes", handle.route().del(route_message(route, link)).execute().await)?;
    }
    for (interface, address) in withdrawn.addresses {
        let Some(link) = index_of(interface) else { continue };
        let message = address_message(handle, link, address);
        done("interfaces.addresses", handle.address().del(message).execute().await)?;
    }
    Ok(())
}

fn address_message(handle: &Handle, link: u32, plan: &AddressPlan) -> AddressMessage {
    let mut request = handle.address().add(link, plan.address, plan.length);
    with_peer(request.message_mut(), plan);
    request.message_mut().clone()
}

fn done(what: &str, result: Result<(), Error>) -> Result<(), NetworkError> {
    match result {
        Err(Error::NetlinkError(error))
            if [libc::ENOENT, libc::ESRCH, libc::EADDRNOTAVAIL, libc::ENODEV]
                .contains(&-error.raw_code()) =>
        {
            Ok(())
        }
        Err(error) => Err(NetworkError::Refused(format!("network.{what}: outdated entries"), error)),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::check;
    use super::*;
    use pouch_protocol::agent::{Interface, Neighbor, Route, SetNetworkRequest};

    fn plan(slot: u32, last: u8) -> Plan {
        let interface = Interface {
            name: "eth0".into(),
            mac: "02:42:ac:11:00:02".into(),
            slot,
            addresses: vec!["10.0.0.1/24".into(), format!("10.0.0.{last}/24")],
            ..Default::default()
        };
        let route = Route {
            interface: "eth0".into(),
            destination: format!("10.0.{last}.0/24"),
            gateway: "10.0.0.9".into(),
            ..Default::default()
        };
        let neighbor = Neighbor {
            interface: "eth0".into(),
            address: format!("10.0.0.1{last}"),
            mac: "02:42:ac:11:00:09".into(),
            ..Default::default()
        };
        let request = SetNetworkRequest {
            interfaces: vec![interface],
            routes: vec![route],
            neighbors: vec![neighbor],
            ..Default::default()
        };
        check(&request).unwrap()
    }

    #[test]
    fn what_is_not_wanted_any_more_goes() {
        let (old, new) = (plan(9, 2), plan(9, 3));
        let withdrawn = Withdrawn::of(&old, &new);
        assert_eq!(withdrawn.neighbors, [&old.neighbors[0]]);
        assert_eq!(withdrawn.routes, [&old.routes[0]]);
        assert_eq!(withdrawn.addresses, [("eth0", &old.interfaces[0].addresses[1])]);
        assert_eq!(Withdrawn::of(&old, &old), Withdrawn::default());
    }

    #[test]
    fn what_went_with_its_device_is_let_be() {
        assert_eq!(Withdrawn::of(&plan(9, 2), &plan(10, 3)), Withdrawn::default());
        assert_eq!(Withdrawn::of(&plan(9, 2), &Plan::default()), Withdrawn::default());
    }
}
