//! Two interfaces that are as one: what arrives at either is sent out by the other (tc-mirred(8)).

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption, TcActionType,
    TcAttribute, TcFilterMatchAll, TcFilterMatchAllOption, TcHandle, TcMessage, TcMirror, TcMirrorActionType,
    TcOption,
};

use super::netlink::{Netlink, NetlinkError};

/// The handle of the queueing discipline that filters hang on.
const QDISC: TcHandle = TcHandle { major: 0xffff, minor: 0 };
/// The priority of the filter for all frames, below any other.
const ALL_PRIORITY: u32 = 100;

/// Sends what arrives at `one` out through `other`, and the other way round. What an earlier
/// container left on them is replaced.
///
/// # Errors
/// [`NetlinkError`] as the kernel says it.
pub fn join(netlink: &mut Netlink, one: u32, other: u32) -> Result<(), NetlinkError> {
    for (from, to) in [(one, other), (other, one)] {
        let removed =
            netlink.change("remove old redirections", RouteNetlinkMessage::DelQueueDiscipline(ingress(from)));
        match removed {
            Err(error) if !error.is(libc::ENOENT) && !error.is(libc::EINVAL) => return Err(error),
            _ => {}
        }
        netlink.create("let frames be redirected", RouteNetlinkMessage::NewQueueDiscipline(ingress(from)))?;
        let filter = RouteNetlinkMessage::NewTrafficFilter(redirect_all(from, to));
        netlink.create("redirect frames", filter)?;
    }
    Ok(())
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
    message.header.parent = QDISC;
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
        // The frame itself goes on to this host's own stack.
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
