//! Converts the specification's resources, which are those of cgroup v1, to the files of cgroup v2.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources, LinuxThrottleDevice,
};

use crate::error::RequestError;
use crate::procfs::cpu_list;

/// One write to a file of the cgroup.
#[derive(Debug, PartialEq, Eq)]
pub struct Write {
    /// The field of the specification that asks for it.
    pub field: String,
    /// The file in the cgroup's directory.
    pub file: String,
    /// The text.
    pub value: String,
}

fn write(field: &str, file: &str, value: impl ToString) -> Write {
    Write { field: format!("linux.resources.{field}"), file: file.to_owned(), value: value.to_string() }
}

/// The refusal of a field of the resources.
pub fn invalid(field: &str, reason: impl Into<String>) -> RequestError {
    RequestError::new(format!("linux.resources.{field}"), reason)
}

/// Everything to write, in order, in a guest of so many CPUs. `exists` tells which files the kernel
/// has.
pub fn writes(
    resources: &LinuxResources,
    cpus: u64,
    exists: impl Fn(&str) -> bool,
) -> Result<Vec<Write>, RequestError> {
    refuse_unavailable(resources)?;
    let mut writes = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_writes(memory, &mut writes)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_writes(cpu, cpus, &mut writes)?;
    }
    if let Some(pids) = resources.pids() {
        pids_writes(pids, &mut writes);
    }
    if let Some(block) = resources.block_io() {
        block_writes(block, &exists, &mut writes)?;
    }
    for (index, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
        hugepage_writes(index, limit, &exists, &mut writes)?;
    }
    if let Some(unified) = resources.unified() {
        let mut settings: Vec<_> = unified.iter().collect();
        settings.sort();
        for (file, value) in settings {
            if file.contains('/') || !file.contains('.') {
                return Err(invalid(&format!("unified[{file}]"), "is not the name of a cgroup file"));
            }
            writes.push(write(&format!("unified[{file}]"), file, value));
        }
    }
    Ok(writes)
}

fn refuse_unavailable(resources: &LinuxResources) -> Result<(), RequestError> {
    if resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
        return Err(invalid("rdma", "not available in the guest, which has no RDMA devices"));
    }
    if let Some(network) = resources.network() {
        if network.class_id().is_some_and(|id| id != 0) {
            return Err(invalid(
                "network.classID",
                "not available in the guest: cgroup v2 has no such controller",
            ));
        }
        if network.priorities().as_ref().is_some_and(|priorities| !priorities.is_empty()) {
            let reason = "not available in the guest: cgroup v2 has no such controller";
            return Err(invalid("network.priorities", reason));
        }
    }
    Ok(())
}

fn memory_writes(memory: &LinuxMemory, writes: &mut Vec<Write>) -> Result<(), RequestError> {
    let v1_only = "not available in the guest: cgroup v2 has no such setting";
    for (field, value) in [("memory.kernel", memory.kernel()), ("memory.kernelTCP", memory.kernel_tcp())] {
        if value.is_some_and(|value| value > 0) {
            return Err(invalid(field, v1_only));
        }
    }
    if memory.swappiness().is_some() {
        return Err(invalid("memory.swappiness", v1_only));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(invalid("memory.disableOOMKiller", v1_only));
    }
    let limit = memory.limit().filter(|limit| *limit != 0);
    let swap = memory.swap().filter(|swap| *swap != 0);
    if let Some(swap) = swap_limit(limit, swap)? {
        writes.push(write("memory.swap", "memory.swap.max", swap));
    }
    if let Some(limit) = limit {
        writes.push(write("memory.limit", "memory.max", bytes("memory.limit", limit)?));
    }
    if let Some(reservation) = memory.reservation().filter(|reservation| *reservation != 0) {
        writes.push(write("memory.reservation", "memory.low", bytes("memory.reservation", reservation)?));
    }
    Ok(())
}

/// A number of bytes; -1 is no limit.
fn bytes(field: &str, value: i64) -> Result<String, RequestError> {
    match value {
        -1 => Ok("max".to_owned()),
        0.. => Ok(value.to_string()),
        _ => Err(invalid(field, format!("{value} is less than -1"))),
    }
}

/// The specification's swap is memory and swap together; cgroup v2's is swap alone.
fn swap_limit(limit: Option<i64>, swap: Option<i64>) -> Result<Option<String>, RequestError> {
    match (limit, swap) {
        (Some(-1), None) => Ok(Some("max".to_owned())),
        (_, None) => Ok(None),
        (_, Some(-1)) => Ok(Some("max".to_owned())),
        (None | Some(-1), Some(_)) => Err(invalid("memory.swap", "needs memory.limit, which it includes")),
        (Some(limit), Some(swap)) if swap >= limit => Ok(Some((swap - limit).to_string())),
        (Some(limit), Some(swap)) => Err(invalid(
            "memory.swap",
            format!("{swap} is less than memory.limit, {limit}, which it includes"),
        )),
    }
}

/// `checkBeforeUpdate`: refuses a limit that is less than what is in use.
pub fn check_usage(resources: &LinuxResources, usage: impl Fn() -> Option<u64>) -> Result<(), RequestError> {
    let Some(memory) = resources.memory() else { return Ok(()) };
    let (Some(true), Some(limit @ 1..)) = (memory.check_before_update(), memory.limit()) else {
        return Ok(());
    };
    match usage() {
        Some(usage) if usage > limit.unsigned_abs() => {
            Err(invalid("memory.limit", format!("{limit} is less than the {usage} bytes in use")))
        }
        _ => Ok(()),
    }
}

fn cpu_writes(cpu: &LinuxCpu, online: u64, writes: &mut Vec<Write>) -> Result<(), RequestError> {
    for (field, set) in [
        ("cpu.realtimeRuntime", cpu.realtime_runtime().is_some_and(|value| value != 0)),
        ("cpu.realtimePeriod", cpu.realtime_period().is_some_and(|value| value != 0)),
    ] {
        if set {
            return Err(invalid(field, "not available in the guest: cgroup v2 has no such setting"));
        }
    }
    if let Some(idle) = cpu.idle() {
        writes.push(write("cpu.idle", "cpu.idle", idle));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        writes.push(write("cpu.shares", "cpu.weight", weight_of_shares(shares)));
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    let quota_text = quota.map(|quota| if quota < 0 { "max".to_owned() } else { quota.to_string() });
    match (quota_text, period) {
        (None, None) => {}
        (Some(quota), Some(period)) => {
            writes.push(write("cpu.quota", "cpu.max", format!("{quota} {period}")))
        }
        (Some(quota), None) => writes.push(write("cpu.quota", "cpu.max", quota)),
        (None, Some(period)) => writes.push(write("cpu.period", "cpu.max", format!("max {period}"))),
    }
    if let Some(burst) = cpu.burst() {
        writes.push(write("cpu.burst", "cpu.max.burst", burst));
    }
    // The list has the host's numbers; the guest gets as many, from its first. Its memory is one node,
    // whatever those of the host are.
    if let Some(cpus) = cpu.cpus().as_ref().filter(|cpus| !cpus.is_empty()) {
        let listed =
            cpu_list(cpus).ok_or_else(|| invalid("cpu.cpus", format!("{cpus:?} is not a list of CPUs")))?;
        let last = (listed.len() as u64).min(online).saturating_sub(1);
        writes.push(write("cpu.cpus", "cpuset.cpus", format!("0-{last}")));
    }
    Ok(())
}

/// Shares from 2 to 262144 onto weights from 1 to 10000, such that the two defaults, 1024
/// and 100, meet. It is runc's and crun's formula of 2025.
pub fn weight_of_shares(shares: u64) -> u64 {
    let logarithm = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (logarithm * logarithm + 125.0 * logarithm) / 612.0 - 7.0 / 34.0;
    (10_f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

fn pids_writes(pids: &LinuxPids, writes: &mut Vec<Write>) {
    match pids.limit() {
        // The specification leaves 0 open; Docker and runc mean "no limit asked for".
        0 => {}
        limit @ 1.. => writes.push(write("pids.limit", "pids.max", limit)),
        _ => writes.push(write("pids.limit", "pids.max", "max")),
    }
}

fn block_writes(
    block: &LinuxBlockIo,
    exists: &impl Fn(&str) -> bool,
    writes: &mut Vec<Write>,
) -> Result<(), RequestError> {
    if block.leaf_weight().is_some_and(|weight| weight != 0) {
        return Err(invalid(
            "blockIO.leafWeight",
            "not available in the guest: cgroup v2 has no such setting",
        ));
    }
    let bfq = exists("io.bfq.weight");
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        let field = "blockIO.weight";
        match (bfq, io_weight(field, weight)?) {
            (true, _) => writes.push(write(field, "io.bfq.weight", weight)),
            (false, weight) => writes.push(write(field, "io.weight", format!("default {weight}"))),
        }
    }
    for (index, device) in block.weight_device().iter().flatten().enumerate() {
        let field = format!("blockIO.weightDevice[{index}]");
        let Some(weight) = device.weight().filter(|weight| *weight != 0) else {
            return Err(invalid(&format!("{field}.weight"), "is missing"));
        };
        let value = format!("{}:{} {}", device.major(), device.minor(), io_weight(&field, weight)?);
        writes.push(write(&field, "io.weight", value));
    }
    throttle_writes("throttleReadBpsDevice", "rbps", block.throttle_read_bps_device(), writes);
    throttle_writes("throttleWriteBpsDevice", "wbps", block.throttle_write_bps_device(), writes);
    throttle_writes("throttleReadIOPSDevice", "riops", block.throttle_read_iops_device(), writes);
    throttle_writes("throttleWriteIOPSDevice", "wiops", block.throttle_write_iops_device(), writes);
    Ok(())
}

/// Weights from 10 to 1000 onto those from 1 to 10000.
fn io_weight(field: &str, weight: u16) -> Result<u64, RequestError> {
    if !(10..=1000).contains(&weight) {
        return Err(invalid(field, format!("{weight} is not from 10 to 1000")));
    }
    Ok(1 + (u64::from(weight) - 10) * 9999 / 990)
}

fn throttle_writes(
    name: &str,
    key: &str,
    devices: &Option<Vec<LinuxThrottleDevice>>,
    writes: &mut Vec<Write>,
) {
    for (index, device) in devices.iter().flatten().enumerate() {
        let rate = match device.rate() {
            0 => "max".to_owned(),
            rate => rate.to_string(),
        };
        let value = format!("{}:{} {key}={rate}", device.major(), device.minor());
        writes.push(write(&format!("blockIO.{name}[{index}]"), "io.max", value));
    }
}

fn hugepage_writes(
    index: usize,
    limit: &LinuxHugepageLimit,
    exists: &impl Fn(&str) -> bool,
    writes: &mut Vec<Write>,
) -> Result<(), RequestError> {
    let size = limit.page_size();
    let field = format!("hugepageLimits[{index}]");
    if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(invalid(&format!("{field}.pageSize"), format!("{size:?} is not a page size")));
    }
    let value = bytes(&format!("{field}.limit"), limit.limit())?;
    let reserved = format!("hugetlb.{size}.rsvd.max");
    writes.push(write(&field, &format!("hugetlb.{size}.max"), &value));
    if exists(&reserved) {
        writes.push(write(&field, &reserved, &value));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(json: &str) -> Result<Vec<(String, String)>, String> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        match writes(&resources, 4, |file| file.ends_with("rsvd.max")) {
            Ok(writes) => Ok(writes.into_iter().map(|write| (write.file, write.value)).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn pairs(list: &[(&str, &str)]) -> Result<Vec<(String, String)>, String> {
        Ok(list.iter().map(|(file, value)| ((*file).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn memory_and_swap() {
        let json = r#"{"memory":{"limit":100,"swap":150,"reservation":50,"disableOOMKiller":false}}"#;
        let expected = [("memory.swap.max", "50"), ("memory.max", "100"), ("memory.low", "50")];
        assert_eq!(all(json), pairs(&expected));
        assert_eq!(
            all(r#"{"memory":{"limit":-1}}"#),
            pairs(&[("memory.swap.max", "max"), ("memory.max", "max")])
        );
        assert_eq!(
            all(r#"{"memory":{"limit":100,"swap":-1}}"#),
            pairs(&[("memory.swap.max", "max"), ("memory.max", "100")])
        );
        assert!(
            all(r#"{"memory":{"limit":100,"swap":99}}"#)
                .unwrap_err()
                .starts_with("linux.resources.memory.swap: ")
        );
        assert!(all(r#"{"memory":{"swap":99}}"#).unwrap_err().contains("memory.swap: needs memory.limit"));
        assert!(all(r#"{"memory":{"swappiness":10}}"#).unwrap_err().contains("memory.swappiness"));
        assert!(all(r#"{"memory":{"limit":-2}}"#).unwrap_err().contains("memory.limit"));
    }

    #[test]
    fn cpu() {
        let json = r#"{"cpu":{"shares":1024,"quota":50000,"period":100000,"cpus":"0-1"}}"#;
        assert_eq!(
            all(json),
            pairs(&[("cpu.weight", "100"), ("cpu.max", "50000 100000"), ("cpuset.cpus", "0-1")])
        );
        for (list, ours) in [("2-3", "0-1"), ("7", "0-0"), ("0-63", "0-3")] {
            assert_eq!(
                all(&format!(r#"{{"cpu":{{"cpus":"{list}","mems":"1"}}}}"#)),
                pairs(&[("cpuset.cpus", ours)])
            );
        }
        assert!(all(r#"{"cpu":{"cpus":"3-1"}}"#).unwrap_err().starts_with("linux.resources.cpu.cpus: "));
        assert_eq!(all(r#"{"cpu":{"quota":-1}}"#), pairs(&[("cpu.max", "max")]));
        assert_eq!(all(r#"{"cpu":{"realtimeRuntime":0,"realtimePeriod":0,"shares":0}}"#), pairs(&[]));
        assert!(all(r#"{"cpu":{"realtimeRuntime":5}}"#).unwrap_err().contains("cpu.realtimeRuntime"));
    }

    #[test]
    fn weights_meet_at_the_ends_and_the_default() {
        assert_eq!([2, 1024, 262_144].map(weight_of_shares), [1, 100, 10_000]);
        assert_eq!([1, u64::MAX].map(weight_of_shares), [1, 10_000]);
    }

    #[test]
    fn the_rest() {
        assert_eq!(all(r#"{"pids":{"limit":0}}"#), pairs(&[]));
        assert_eq!(all(r#"{"pids":{"limit":-1}}"#), pairs(&[("pids.max", "max")]));
        let huge = r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4096}]}"#;
        assert_eq!(all(huge), pairs(&[("hugetlb.2MB.max", "4096"), ("hugetlb.2MB.rsvd.max", "4096")]));
        assert_eq!(all(r#"{"unified":{"memory.high":"10"}}"#), pairs(&[("memory.high", "10")]));
        assert!(all(r#"{"unified":{"../x.y":"10"}}"#).unwrap_err().contains("unified"));
        assert_eq!(all(r#"{"blockIO":{"weight":500}}"#), pairs(&[("io.weight", "default 4950")]));
        let throttle = r#"{"blockIO":{"throttleReadBpsDevice":[{"major":254,"minor":0,"rate":9}]}}"#;
        assert_eq!(all(throttle), pairs(&[("io.max", "254:0 rbps=9")]));
        assert!(all(r#"{"network":{"classID":7}}"#).unwrap_err().contains("network.classID"));
        assert!(all(r#"{"rdma":{"mlx":{"hcaHandles":1}}}"#).unwrap_err().contains("rdma"));
    }

    #[test]
    fn a_limit_below_the_usage_is_refused_if_asked() {
        let json = r#"{"memory":{"limit":100,"checkBeforeUpdate":true}}"#;
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        assert!(check_usage(&resources, || Some(101)).is_err());
        assert!(check_usage(&resources, || Some(100)).is_ok());
    }

    proptest! {
        #[test]
        fn weights_stay_in_range_and_order(a in 0_u64..300_000, b in 0_u64..300_000) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(weight_of_shares(low) <= weight_of_shares(high));
        }
    }
}
