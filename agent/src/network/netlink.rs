//! Configures the network through rtnetlink.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol, RouteScope, RouteType};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use super::check::{AddressPlan, InterfacePlan, Mac, NeighborPlan, Plan, RoutePlan, mac};
use super::{NetworkError, namespace, withdraw};
use crate::settings::InterfaceSettings;
use crate::virtio;

const CLASS: &str = "/sys/class/net";
const IPV6: &str = "/proc/sys/net/ipv6/conf";

/// Applies a plan. Entries that exist already are no error.
pub async fn apply(before: &Plan, plan: &Plan, settings: &InterfaceSettings) -> Result<(), NetworkError> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let task = tokio::spawn(connection);
    let result = apply_with(&handle, before, plan, settings).await;
    task.abort();
    result
}

async fn apply_with(
    handle: &Handle,
    before: &Plan,
    plan: &Plan,
    settings: &InterfaceSettings,
) -> Result<(), NetworkError> {
    for slot in &plan.removed {
        let gone = virtio::let_go(*slot);
        gone.map_err(|error| NetworkError::Removed { slot: *slot, error })?;
    }
    withdraw::withdraw(handle, before, plan).await?;
    for (index, interface) in plan.interfaces.iter().enumerate() {
        set_interface(handle, index, interface, settings).await?;
    }
    // A gateway must be reachable before a route goes through it, so those of directly
    // connected networks come first.
    let (direct, indirect): (Vec<_>, Vec<_>) =
        plan.routes.iter().enumerate().partition(|(_, route)| route.gateway.is_none());
    for (index, route) in direct.into_iter().chain(indirect) {
        set_route(handle, index, route).await?;
    }
    for (index, neighbor) in plan.neighbors.iter().enumerate() {
        set_neighbor(handle, index, neighbor).await?;
    }
    Ok(())
}

/// The interfaces of the guest with their MACs.
fn interfaces() -> Vec<(String, Mac)> {
    let Ok(entries) = fs::read_dir(CLASS) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.path().join("address")).ok()?;
            Some((entry.file_name().into_string().ok()?, mac("address", text.trim()).ok()?))
        })
        .collect()
}

/// The number of an interface here, where sysfs shows the guest's first namespace.
pub(super) fn index_of(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// The interface of a virtio device, brought to the agent's namespace if that is another than the first.
async fn plugged(index: usize, slot: u32, mac: Mac) -> Result<String, NetworkError> {
    if let Some(name) = namespace::entered().then(|| here_with(mac)).flatten() {
        return Ok(name);
    }
    let entry = virtio::bring_to_life(slot, "net");
    let entry = entry.map_err(|error| NetworkError::Slot { index, slot, error })?;
    let name = entry.file_name().to_string_lossy().into_owned();
    if !namespace::entered() {
        return Ok(name);
    }
    let number = fs::read_to_string(format!("{CLASS}/{name}/ifindex"))?.trim().parse();
    let number = number.map_err(std::io::Error::other)?;
    // No other interface there has this name.
    let brought = format!("pouch-slot{slot}");
    let fetched = namespace::fetch(number, &brought).await;
    fetched.map_err(|error| NetworkError::Refused(format!("network.interfaces[{index}].slot"), error))?;
    Ok(brought)
}

/// The interface of the agent's namespace with this MAC.
fn here_with(mac: Mac) -> Option<String> {
    let mut all = nix::ifaddrs::getifaddrs().ok()?;
    let found =
        all.find(|one| one.address.as_ref().and_then(|address| address.as_link_addr()?.addr()) == Some(mac));
    found.map(|one| one.interface_name)
}

async fn set_interface(
    handle: &Handle,
    index: usize,
    plan: &InterfacePlan,
    settings: &InterfaceSettings,
) -> Result<(), NetworkError> {
    let refused = |name: &str| {
        let field = format!("network.interfaces[{index}].{name}");
        move |error| NetworkError::Refused(field, error)
    };
    let missing =
        || NetworkError::NoInterface { index, mac: plan.mac.map(|byte| format!("{byte:02x}")).join(":") };
    let current = match plan.slot {
        Some(slot) => plugged(index, slot, plan.mac).await?,
        None => {
            let found = interfaces().into_iter().find(|(name, mac)| *mac == plan.mac && name != "lo");
            found.ok_or_else(missing)?.0
        }
    };
    let link = index_of(&current).ok_or_else(missing)?;
    if current != plan.name {
        if let Some(other) = index_of(&plan.name) {
            // The name belongs to an interface that will be renamed, or that is not in the plan.
            rename(handle, other, &format!("pouch{other}")).await.map_err(refused("name"))?;
        }
        rename(handle, link, &plan.name).await.map_err(refused("name"))?;
    }
    // Skip duplicate address detection, which takes a second: no other host is on the link.
    let _ = fs::write(format!("{IPV6}/{}/accept_dad", plan.name), "0");
    // An address may have come since the last time.
    let off = if plan.ipv6 { "0" } else { "1" };
    fs::write(format!("{IPV6}/{}/disable_ipv6", plan.name), off)
        .map_err(|error| NetworkError::NoIpv6 { index, error })?;
    settings.set(&plan.name).map_err(|(key, error)| NetworkError::Setting(key, error))?;
    if let Some(mtu) = plan.mtu {
        let message = LinkUnspec::new_with_index(link).mtu(mtu).build();
        handle.link().set(message).execute().await.map_err(refused("mtu"))?;
    }
    let message = LinkUnspec::new_with_index(link).arp(plan.arp).up().build();
    handle.link().set(message).execute().await.map_err(refused("name"))?;
    for (at, address) in plan.addresses.iter().enumerate() {
        let mut request = handle.address().add(link, address.address, address.length).replace();
        with_peer(request.message_mut(), address);
        request.execute().await.map_err(refused(&format!("addresses[{at}]")))?;
    }
    Ok(())
}

/// Of an address with a peer the kernel's IFA_ADDRESS is the peer's, and nothing is broadcast.
pub(super) fn with_peer(message: &mut AddressMessage, plan: &AddressPlan) {
    let Some(peer) = plan.peer else { return };
    message.attributes = vec![AddressAttribute::Local(plan.address), AddressAttribute::Address(peer)];
}

/// An interface is renamed while it is down.
async fn rename(handle: &Handle, link: u32, name: &str) -> Result<(), rtnetlink::Error> {
    handle.link().set(LinkUnspec::new_with_index(link).down().build()).execute().await?;
    handle.link().set(LinkUnspec::new_with_index(link).name(name).build()).execute().await
}

async fn set_route(handle: &Handle, index: usize, plan: &RoutePlan) -> Result<(), NetworkError> {
    let field = format!("network.routes[{index}]");
    let link = index_of(&plan.interface)
        .ok_or_else(|| crate::error::RequestError::new(format!("{field}.interface"), "does not exist"))?;
    let message = route_message(plan, link);
    match handle.route().add(message).replace().execute().await {
        Err(error) => Err(NetworkError::Refused(field, error)),
        Ok(()) => Ok(()),
    }
}

pub(super) fn route_message(plan: &RoutePlan, link: u32) -> RouteMessage {
    let mut message = match plan.destination {
        (IpAddr::V4(address), length) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, length);
            if let Some(IpAddr::V4(gateway)) = plan.gateway {
                builder = builder.gateway(gateway);
            }
            if let Some(IpAddr::V4(source)) = plan.source {
                builder = builder.pref_source(source);
            }
            finish(builder, plan, link)
        }
        (IpAddr::V6(address), length) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, length);
            if let Some(IpAddr::V6(gateway)) = plan.gateway {
                builder = builder.gateway(gateway);
            }
            if let Some(IpAddr::V6(source)) = plan.source {
                builder = builder.pref_source(source);
            }
            finish(builder, plan, link)
        }
    };
    message.header.kind = RouteType::Unicast;
    message
}

fn finish<T>(builder: RouteMessageBuilder<T>, plan: &RoutePlan, link: u32) -> RouteMessage {
    let mut builder = builder.output_interface(link).scope(RouteScope::from(plan.scope));
    if let Some(metric) = plan.metric {
        builder = builder.priority(metric);
    }
    if plan.onlink {
        builder = builder.onlink();
    }
    if let Some(protocol) = plan.protocol {
        builder = builder.protocol(RouteProtocol::from(protocol));
    }
    builder.build()
}

async fn set_neighbor(handle: &Handle, index: usize, plan: &NeighborPlan) -> Result<(), NetworkError> {
    let field = format!("network.neighbors[{index}]");
    let link = index_of(&plan.interface)
        .ok_or_else(|| crate::error::RequestError::new(format!("{field}.interface"), "does not exist"))?;
    let request = handle.neighbours().add(link, plan.address).link_layer_address(&plan.mac).replace();
    request.execute().await.map_err(|error| NetworkError::Refused(field, error))
}
