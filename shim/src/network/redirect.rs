//! Connects two interfaces: frames that arrive at one are sent out by the other (tc-mirred(8)).

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterMatchAll, TcFilterMatchAllOption, TcFilterU32, TcFilterU32Option, TcHandle,
    TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector, TcU32SelectorFlags,
};

use super::netlink::{Netlink, NetlinkError};
use super::resolver::OWN_PORTS;

/// The handle of the qdisc for filters, `ingress` or `clsact`.
const QDISC: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// Ingress of either qdisc: TC_H_MIN_INGRESS of linux/pkt_sched.h.
const ARRIVING: TcHandle = TcHandle { major: 0xffff, minor: 0xfff2 };
/// The priorities of our filters: after existing filters of a `clsact`.
const DNS_PRIORITY: u32 = 0xff01;
const ALL_PRIORITY: u32 = 0xff10;
/// How many filters share DNS with the guest.
const DNS_FILTERS: usize = 6;

/// Redirects frames that arrive at `one` to `other`, and vice versa. Filters of an earlier container are replaced. So is
/// an `ingress` qdisc. A `clsact` qdisc is kept, and its filters run first.
///
/// # Errors
/// [`NetlinkError`] from the kernel.
pub fn join(netlink: &mut Netlink, one: u32, other: u32) -> Result<(), NetlinkError> {
    for (from, to) in [(one, other), (other, one)] {
        let removed =
            netlink.change("remove old redirections", RouteNetlinkMessage::DelQueueDiscipline(ingress(from)));
        match removed {
            Err(error) if !error.is(libc::ENOENT) && !error.is(libc::EINVAL) => return Err(error),
            _ => {}
        }
        let made =
            netlink.create("add an ingress qdisc", RouteNetlinkMessage::NewQueueDiscipline(ingress(from)));
        match made {
            // A `clsact` is there, of which the kernel has one or an `ingress`.
            Err(error) if error.is(libc::EEXIST) => part(netlink, from)?,
            other => other?,
        }
        let filter = RouteNetlinkMessage::NewTrafficFilter(redirect_all(from, to));
        netlink.create("redirect frames", filter)?;
    }
    Ok(())
}

/// Stops the redirection from `interface`, so that frames go to this host's stack again. The filters are removed and the
/// qdisc is kept: removing it stops the interface for a while, and without filters it has no effect.
///
/// # Errors
/// [`NetlinkError`] from the kernel.
pub fn part(netlink: &mut Netlink, interface: u32) -> Result<(), NetlinkError> {
    for priority in (DNS_PRIORITY..).take(DNS_FILTERS).chain([ALL_PRIORITY]) {
        let mut message = message(interface);
        message.header.parent = ARRIVING;
        // Of any protocol.
        message.header.info = info(priority, 0);
        match netlink.change("remove redirections", RouteNetlinkMessage::DelTrafficFilter(message)) {
            Err(error) if !error.is(libc::ENOENT) && !error.is(libc::EINVAL) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Has an interface receive the frames of all multicast groups, or only of those that this host's stack has joined. The
/// groups that the guest joins are unknown here, and macvlan and network cards drop frames of other groups.
///
/// # Errors
/// [`NetlinkError`] from the kernel.
pub fn take_all_multicast(netlink: &mut Netlink, interface: u32, all: bool) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = interface;
    message.header.change_mask = LinkFlags::Allmulti;
    if all {
        message.header.flags = LinkFlags::Allmulti;
    }
    netlink.change("set an interface to receive all multicast", RouteNetlinkMessage::SetLink(message))
}

/// Lets a resolver in this namespace receive the answers to its own queries. Packets from port 53 to the ports
/// reserved for it ([`OWN_PORTS`] and above), and ARP and neighbour discovery, are passed to this host's stack as well as
/// to the guest.
///
/// # Errors
/// [`NetlinkError`] from the kernel.
pub fn share_dns(netlink: &mut Netlink, interface: u32, tap: u32) -> Result<(), NetlinkError> {
    const UDP: u32 = 17;
    const TCP: u32 = 6;
    const ICMPV6: u32 = 58;
    // Words at offsets of a header, in host order: (offset, value, mask).
    let arp_reply = (4, 2, 0xffff);
    let ipv4 = |protocol: u32| (8, protocol << 16, 0xff_0000);
    let ipv6 = |protocol: u32| (4, protocol << 8, 0xff00);
    // Headers with options are not supported; no server sends these.
    let ports = |offset| (offset, 53 << 16 | u32::from(OWN_PORTS), 0xffff_0000 | u32::from(OWN_PORTS));
    let advertisement = (40, 136 << 24, 0xff << 24);
    let (arp, v4, v6) = (libc::ETH_P_ARP as u16, libc::ETH_P_IP as u16, libc::ETH_P_IPV6 as u16);
    let copy = || Some(mirred(TcMirrorActionType::EgressMirror, tap));
    let filters: [_; DNS_FILTERS] = [
        (arp, vec![arp_reply], copy()),
        (v4, vec![ipv4(UDP), ports(20)], copy()),
        (v6, vec![ipv6(UDP), ports(40)], copy()),
        (v6, vec![ipv6(ICMPV6), advertisement], copy()),
        // The guest would reset a connection that it does not know.
        (v4, vec![ipv4(TCP), ports(20)], None),
        (v6, vec![ipv6(TCP), ports(40)], None),
    ];
    for (priority, (protocol, words, action)) in (DNS_PRIORITY..).zip(filters) {
        let mut message = message(interface);
        message.header.parent = ARRIVING;
        message.header.info = info(priority, protocol);
        message.attributes.push(TcAttribute::Kind(TcFilterU32::KIND.to_owned()));
        message.attributes.push(TcAttribute::Options(match_words(&words, action)));
        netlink.create("share DNS with the guest", RouteNetlinkMessage::NewTrafficFilter(message))?;
    }
    Ok(())
}

/// A match of words of the packet's header. Without an action the packet goes to this host's stack.
fn match_words(words: &[(i32, u32, u32)], action: Option<TcAction>) -> Vec<TcOption> {
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = words.len() as u8;
    for (offset, value, mask) in words {
        let mut key = TcU32Key::default();
        (key.off, key.val, key.mask) = (*offset, *value, *mask);
        selector.keys.push(key);
    }
    let what = match action {
        Some(action) => TcFilterU32Option::Action(vec![action]),
        None => TcFilterU32Option::ClassId(TcHandle { major: 1, minor: 1 }),
    };
    vec![TcOption::U32(TcFilterU32Option::Selector(selector)), TcOption::U32(what)]
}

fn message(interface: u32) -> TcMessage {
    // Interface numbers are positive and fit.
    TcMessage::with_index(interface as i32)
}

fn ingress(interface: u32) -> TcMessage {
    let mut message = message(interface);
    message.header.handle = QDISC;
    message.header.parent = TcHandle::INGRESS;
    message.attributes.push(TcAttribute::Kind("ingress".to_owned()));
    message
}

fn redirect_all(from: u32, to: u32) -> TcMessage {
    let mut message = message(from);
    message.header.parent = ARRIVING;
    message.header.info = info(ALL_PRIORITY, libc::ETH_P_ALL as u16);
    message.attributes.push(TcAttribute::Kind(TcFilterMatchAll::KIND.to_owned()));
    let action = TcFilterMatchAllOption::Action(vec![mirred(TcMirrorActionType::EgressRedir, to)]);
    message.attributes.push(TcAttribute::Options(vec![TcOption::MatchAll(action)]));
    message
}

/// Priority and protocol of a filter: the protocol is in network order.
fn info(priority: u32, protocol: u16) -> u32 {
    priority << 16 | u32::from(protocol.to_be())
}

fn mirred(kind: TcMirrorActionType, to: u32) -> TcAction {
    let mut parameters = TcMirror::default();
    parameters.generic.action = match kind {
        TcMirrorActionType::EgressRedir => TcActionType::Stolen,
        // The frame itself continues to this host's stack.
        _ => TcActionType::Ok,
    };
    parameters.eaction = kind;
    parameters.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(parameters))]),
    ];
    action
}
