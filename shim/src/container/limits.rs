//! Resource limits (getrlimit(2)) of a container's processes.
//!
//! What a specification does not limit has the limits of the process that called the runtime, as with runc, and not
//! those that the guest kernel starts with.

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType};
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};

/// All limits that Linux has.
const ALL: [(PosixRlimitType, Resource); 16] = [
    (PosixRlimitType::RlimitCpu, Resource::Cpu),
    (PosixRlimitType::RlimitFsize, Resource::Fsize),
    (PosixRlimitType::RlimitData, Resource::Data),
    (PosixRlimitType::RlimitStack, Resource::Stack),
    (PosixRlimitType::RlimitCore, Resource::Core),
    (PosixRlimitType::RlimitRss, Resource::Rss),
    (PosixRlimitType::RlimitNproc, Resource::Nproc),
    (PosixRlimitType::RlimitNofile, Resource::Nofile),
    (PosixRlimitType::RlimitMemlock, Resource::Memlock),
    (PosixRlimitType::RlimitAs, Resource::As),
    (PosixRlimitType::RlimitLocks, Resource::Locks),
    (PosixRlimitType::RlimitSigpending, Resource::Sigpending),
    (PosixRlimitType::RlimitMsgqueue, Resource::Msgqueue),
    (PosixRlimitType::RlimitNice, Resource::Nice),
    (PosixRlimitType::RlimitRtprio, Resource::Rtprio),
    (PosixRlimitType::RlimitRttime, Resource::Rttime),
];

/// Adds this process's limits to those of a specification, which take precedence.
pub fn inherit(limits: &mut Vec<PosixRlimit>) {
    for (kind, resource) in ALL {
        if limits.iter().any(|limit| limit.typ() == kind) {
            continue;
        }
        let own = getrlimit(resource);
        // Without a limit, the value is RLIM_INFINITY.
        let (mut soft, mut hard) = (own.current.unwrap_or(u64::MAX), own.maximum.unwrap_or(u64::MAX));
        if kind == PosixRlimitType::RlimitNofile {
            // This process may have got its limit before that of the host, which the guest has too, was lowered.
            let most = files_of_the_host().unwrap_or(u64::MAX);
            (soft, hard) = (soft.min(most), hard.min(most));
        }
        limits.extend(PosixRlimitBuilder::default().typ(kind).soft(soft).hard(hard).build());
    }
}

/// Adds this process's limits to those of a `process` object. The agent reports an object that is malformed.
pub fn inherit_in(process: &mut Value) {
    let Some(members) = process.as_object_mut() else { return };
    let limits = members.entry("rlimits").or_insert(Value::Null);
    if let Ok(all) = serde_json::from_value::<Option<Vec<_>>>(limits.clone()) {
        let mut all = all.unwrap_or_default();
        inherit(&mut all);
        *limits = json!(all);
    }
}

/// The setting `fs.nr_open`, above which no limit of open files can be set.
fn files_of_the_host() -> Option<u64> {
    std::fs::read_to_string("/proc/sys/fs/nr_open").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_limited_is_inherited() {
        let files = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(7_u64).hard(9_u64);
        let files = files.build().unwrap();
        let mut limits = vec![files];
        inherit(&mut limits);
        assert_eq!((limits.len(), limits[0]), (ALL.len(), files));
        let own = getrlimit(Resource::Nproc);
        let processes = limits.iter().find(|limit| limit.typ() == PosixRlimitType::RlimitNproc).unwrap();
        assert_eq!((processes.soft(), processes.hard()), (own.current.unwrap(), own.maximum.unwrap()));
        let time = limits.iter().find(|limit| limit.typ() == PosixRlimitType::RlimitRttime).unwrap();
        assert_eq!((time.soft(), time.hard()), (u64::MAX, u64::MAX));
    }
}
