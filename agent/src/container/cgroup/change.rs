//! Updates the limits of an existing container: fills in what the update omits, and checks it against the
//! VM's size.

use std::fs;

use oci_spec::runtime::{LinuxCpu, LinuxResources};

use super::limits::invalid;
use crate::cpus;
use crate::error::RequestError;
use crate::procfs;

/// The kernel's default period of CPU time, in microseconds.
const PERIOD: u64 = 100_000;

/// How large the VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Memory in bytes.
    pub memory: u64,
    /// CPUs.
    pub cpus: u64,
}

impl Size {
    /// The size of this VM. An unknown size is no limit.
    pub fn of_guest() -> Self {
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = procfs::field(&text, "MemTotal").and_then(procfs::number);
        Size {
            memory: memory.map_or(u64::MAX, |kib| kib.saturating_mul(1024)),
            cpus: cpus::online().map_or(u64::MAX, |list| list.len() as u64),
        }
    }
}

/// Adds current values that a setting of cgroup v2 also needs: `cpu.max` has quota and period, and the
/// specification's swap includes the memory limit.
pub fn complete(resources: &mut LinuxResources, read: impl Fn(&str) -> Option<String>) {
    if let Some(cpu) = resources.cpu_mut()
        && cpu.period().is_some_and(|period| period != 0)
        && cpu.quota().is_none_or(|quota| quota == 0)
        && let Some(quota) = read("cpu.max").and_then(|text| procfs::limit(text.split(' ').next()?))
    {
        cpu.set_quota(Some(i64::try_from(quota).unwrap_or(-1)));
    }
    if let Some(memory) = resources.memory_mut()
        && memory.swap().is_some_and(|swap| swap > 0)
        && memory.limit().is_none_or(|limit| limit == 0)
        && let Some(limit) = read("memory.max").and_then(|text| procfs::limit(&text))
    {
        memory.set_limit(Some(i64::try_from(limit).unwrap_or(-1)));
    }
}

/// Refuses more than the VM has.
pub fn check_size(
    resources: &LinuxResources,
    size: Size,
    read: impl Fn(&str) -> Option<String>,
) -> Result<(), RequestError> {
    const INSTEAD: &str = "which is fixed while it runs; create the container again with this limit";
    if let Some(limit @ 1..) = resources.memory().as_ref().and_then(|memory| memory.limit())
        && limit.unsigned_abs() > size.memory
    {
        let mib = size.memory >> 20;
        let reason = format!("{limit} is more than the {mib} MiB of memory that the VM has, {INSTEAD}");
        return Err(invalid("memory.limit", reason));
    }
    let Some(cpu) = resources.cpu() else { return Ok(()) };
    if let Some(quota @ 1..) = cpu.quota() {
        let period = period(cpu, read).max(1);
        let wanted = quota.unsigned_abs().div_ceil(period);
        if wanted > size.cpus {
            let reason = format!("asks for {wanted} CPUs, but the VM has {}, {INSTEAD}", size.cpus);
            return Err(invalid("cpu.quota", reason));
        }
    }
    if let Some(list) = cpu.cpus().as_ref().filter(|list| !list.is_empty()) {
        let listed = procfs::cpu_list(list)
            .ok_or_else(|| invalid("cpu.cpus", format!("{list:?} is not a list of CPUs")))?;
        if listed.len() as u64 > size.cpus {
            let reason = format!("names {} CPUs, but the VM has {}, {INSTEAD}", listed.len(), size.cpus);
            return Err(invalid("cpu.cpus", reason));
        }
    }
    Ok(())
}

/// The period that a new quota is for.
fn period(cpu: &LinuxCpu, read: impl Fn(&str) -> Option<String>) -> u64 {
    let current = || read("cpu.max")?.trim().split(' ').nth(1)?.parse().ok();
    cpu.period().filter(|period| *period != 0).or_else(current).unwrap_or(PERIOD)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { memory: 256 << 20, cpus: 2 };

    fn now(file: &str) -> Option<String> {
        match file {
            "cpu.max" => Some("20000 50000\n".to_owned()),
            "memory.max" => Some("1000\n".to_owned()),
            _ => None,
        }
    }

    fn parse(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn what_is_left_out_stays() {
        let mut resources = parse(r#"{"cpu":{"period":70000},"memory":{"swap":2000}}"#);
        complete(&mut resources, now);
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(20_000));
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(1000));
        let mut given = parse(r#"{"cpu":{"period":70000,"quota":5},"memory":{"swap":2000,"limit":7}}"#);
        complete(&mut given, now);
        assert_eq!(given.cpu().as_ref().unwrap().quota(), Some(5));
        assert_eq!(given.memory().as_ref().unwrap().limit(), Some(7));
        let mut unlimited = parse(r#"{"cpu":{"period":70000}}"#);
        complete(&mut unlimited, |_| Some("max 100000\n".to_owned()));
        assert_eq!(unlimited.cpu().as_ref().unwrap().quota(), Some(-1));
    }

    #[test]
    fn more_than_the_vm_has_is_refused_by_name() {
        for (json, field) in [
            (r#"{"memory":{"limit":268435457}}"#, "linux.resources.memory.limit: "),
            (r#"{"cpu":{"quota":200001,"period":100000}}"#, "linux.resources.cpu.quota: asks for 3"),
            (r#"{"cpu":{"quota":100001}}"#, "linux.resources.cpu.quota: asks for 3"),
            (r#"{"cpu":{"cpus":"0,4-5"}}"#, "linux.resources.cpu.cpus: names 3"),
            (r#"{"cpu":{"cpus":"x"}}"#, "linux.resources.cpu.cpus: "),
        ] {
            let error = check_size(&parse(json), SIZE, now).unwrap_err().to_string();
            assert!(error.starts_with(field), "{json}: {error}");
        }
    }

    #[test]
    fn what_the_vm_has_can_be_asked_for() {
        for json in [
            r#"{"memory":{"limit":268435456},"cpu":{"quota":100000,"cpus":"6,7"}}"#,
            r#"{"memory":{"limit":-1},"cpu":{"quota":-1}}"#,
            r#"{"memory":{"limit":0},"cpu":{"quota":0,"cpus":""}}"#,
            "{}",
        ] {
            assert!(check_size(&parse(json), SIZE, now).is_ok(), "{json}");
        }
    }
}
