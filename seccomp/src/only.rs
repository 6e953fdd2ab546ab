//! What arguments a call may have.

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// The flags of clone(2) and unshare(2) for new namespaces. A process may have capabilities in those.
pub const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// What an argument of a call, counted from 0, must be. Only its lower 32 bits count.
#[derive(Clone, Copy, Debug)]
pub enum Only {
    /// It is one of these.
    OneOf(u8, &'static [u64]),
    /// It has none of these bits.
    Without(u8, u64),
    /// It has these bits, and none of the others.
    WithAndWithout(u8, u64, u64),
    /// It is the PID of the process that builds the filter.
    OwnPid(u8),
    /// The first and the third, which are a socket's domain and protocol, are one of these pairs; without a protocol any.
    Sockets(&'static [(libc::c_int, Option<libc::c_int>)]),
}

impl Only {
    /// The rules of which one must hold.
    pub(crate) fn rules(self) -> Result<Vec<SeccompRule>, BackendError> {
        // The kernel looks at no more of these arguments than their lower half.
        let condition =
            |index, operator, value| SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value);
        let rule = |index, operator, value| SeccompRule::new(vec![condition(index, operator, value)?]);
        match self {
            Only::OneOf(index, values) => {
                values.iter().map(|value| rule(index, SeccompCmpOp::Eq, *value)).collect()
            }
            Only::Without(index, bits) => Ok(vec![rule(index, SeccompCmpOp::MaskedEq(bits), 0)?]),
            Only::WithAndWithout(index, with, without) => {
                Ok(vec![rule(index, SeccompCmpOp::MaskedEq(with | without), with)?])
            }
            Only::OwnPid(index) => Ok(vec![rule(index, SeccompCmpOp::Eq, std::process::id().into())?]),
            Only::Sockets(pairs) => pairs
                .iter()
                .map(|(domain, protocol)| {
                    let equal = |index, value: libc::c_int| condition(index, SeccompCmpOp::Eq, value as u64);
                    let protocol = protocol.map(|protocol| equal(2, protocol)).transpose()?;
                    SeccompRule::new([equal(0, *domain)?].into_iter().chain(protocol).collect())
                })
                .collect(),
        }
    }
}
