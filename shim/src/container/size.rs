//! The size of a container's VM.

use std::collections::BTreeSet;

use oci_spec::runtime::{LinuxCpu, Spec};
use pouch_vmm_api::config::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};

use crate::config::Config;
use crate::sandbox::VmSize;

/// The least memory limit of a container, in MiB.
const MIN_LIMIT_MIB: u64 = 4;
/// The memory of the guest kernel and the agent in MiB, added so that the container can use all of its
/// limit.
const GUEST_OVERHEAD_MIB: u64 = 48;
/// The beginning of the annotations with the resources of a pod.
const CRI_PREFIX: &str = "io.kubernetes.cri.sandbox-";
/// The divisor for the kernel's page structures (64 bytes for each page of 4,096).
const PAGE_BOOKKEEPING: u64 = 64;

/// How many CPUs a quota is for.
fn quota_cpus(cpu: &LinuxCpu) -> Option<u64> {
    let quota = u64::try_from(cpu.quota()?).ok().filter(|quota| *quota > 0)?;
    let period = cpu.period().filter(|period| *period > 0).unwrap_or(100_000);
    Some(quota.div_ceil(period))
}

/// A limit that no VM can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Too little memory.
    #[error(
        "linux.resources.memory.limit is {0} bytes, but a container in a VM needs at least {MIN_LIMIT_MIB} MiB"
    )]
    MemoryTooSmall(i64),
    /// Too much memory.
    #[error("linux.resources.memory.limit is {0} bytes, but a VM has at most {MAX_MEMORY_MIB} MiB")]
    MemoryTooLarge(i64),
    /// The list of CPUs is malformed.
    #[error("linux.resources.cpu.cpus {0:?} is not a list of CPUs")]
    Cpus(String),
    /// The host has not all of the CPUs.
    #[error("linux.resources.cpu.cpus {list:?} names CPUs that the host does not have; it has {online}")]
    HostCpus {
        /// The list.
        list: String,
        /// Those of the host.
        online: String,
    },
}

/// The size that the specification's limits ask for; where it has none, the configuration's.
///
/// # Errors
/// [`SizeError`] names the field.
pub fn vm_size(spec: &Spec, config: &Config, host_cpus: u8) -> Result<VmSize, SizeError> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let memory_limit = resources
        .and_then(|resources| resources.memory().as_ref())
        .and_then(|memory| memory.limit())
        .filter(|limit| *limit > 0);
    let memory_mib = match memory_limit {
        Some(limit) => memory_for(limit)?,
        None => config.default_memory_mib,
    };
    let cpu = resources.and_then(|resources| resources.cpu().as_ref());
    let listed = match cpu.and_then(|cpu| cpu.cpus().clone()).filter(|list| !list.is_empty()) {
        Some(list) => Some(count_cpus(&list).ok_or(SizeError::Cpus(list))?),
        None => None,
    };
    // A quota beyond the host's CPUs is possible with runc too, and has no effect.
    let by_quota = cpu.as_ref().and_then(|cpu| quota_cpus(cpu));
    let wanted = match (by_quota, listed) {
        (Some(quota), Some(listed)) => quota.min(listed),
        (Some(quota), None) => quota,
        (None, Some(listed)) => listed,
        (None, None) => u64::from(config.default_vcpus.min(host_cpus)),
    };
    let vcpus = wanted.clamp(1, MAX_VCPUS.into());
    // The clamp fits a byte.
    Ok(VmSize { vcpus: vcpus as u8, memory_mib })
}

/// The size of the VM of a pod: what CRI says of the sum of its containers' limits, else the configuration's.
///
/// # Errors
/// [`SizeError`] if no VM has so much memory.
pub fn pod_size(spec: &Spec, config: &Config, host_cpus: u8) -> Result<VmSize, SizeError> {
    let annotation = |name: &str| -> Option<i64> {
        let value = spec.annotations().as_ref()?.get(&format!("{CRI_PREFIX}{name}"))?;
        value.parse().ok().filter(|value| *value > 0)
    };
    let memory_mib = match annotation("memory") {
        // A container gets no less than without a limit.
        Some(limit) => memory_for(limit)?.max(config.default_memory_mib),
        None => config.default_memory_mib,
    };
    let quota = annotation("cpu-quota").and_then(|quota| u64::try_from(quota).ok());
    let period = annotation("cpu-period").and_then(|period| u64::try_from(period).ok()).unwrap_or(100_000);
    let wanted =
        quota.map_or_else(|| config.default_vcpus.min(host_cpus).into(), |quota| quota.div_ceil(period));
    // The clamp fits a byte.
    Ok(VmSize { vcpus: wanted.clamp(1, MAX_VCPUS.into()) as u8, memory_mib })
}

fn memory_for(limit: i64) -> Result<u32, SizeError> {
    let mib = u64::try_from(limit).unwrap_or(0).div_ceil(1 << 20);
    if mib < MIN_LIMIT_MIB {
        return Err(SizeError::MemoryTooSmall(limit));
    }
    // An engine's way to say "no limit".
    let total = mib + mib.div_ceil(PAGE_BOOKKEEPING) + GUEST_OVERHEAD_MIB;
    let total = total.max(MIN_MEMORY_MIB.into());
    u32::try_from(total).ok().filter(|mib| *mib <= MAX_MEMORY_MIB).ok_or(SizeError::MemoryTooLarge(limit))
}

/// Checks a list of the host's CPUs. The kernel would refuse it without naming the field.
///
/// # Errors
/// [`SizeError`] names the field.
pub fn check_host_cpus(list: &str) -> Result<(), SizeError> {
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    let online = online.trim();
    let listed = cpu_set(list).ok_or_else(|| SizeError::Cpus(list.to_owned()))?;
    // If it cannot be read, the kernel checks the list.
    match cpu_set(online) {
        Some(host) if !listed.is_subset(&host) => {
            Err(SizeError::HostCpus { list: list.to_owned(), online: online.to_owned() })
        }
        _ => Ok(()),
    }
}

/// How many CPUs a list such as "0-2,5" names.
fn count_cpus(list: &str) -> Option<u64> {
    cpu_set(list).map(|cpus| cpus.len() as u64)
}

fn cpu_set(list: &str) -> Option<BTreeSet<u16>> {
    let mut cpus = BTreeSet::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?);
        if first > last {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_that_the_host_does_not_have_are_named() {
        assert_eq!(check_host_cpus("0"), Ok(()));
        let error = check_host_cpus("0,65000").unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.cpu.cpus \"0,65000\" names CPUs"), "{error}");
        assert_eq!(check_host_cpus("many"), Err(SizeError::Cpus("many".to_owned())));
    }

    fn size(resources: &str) -> Result<VmSize, SizeError> {
        let text = format!(r#"{{"ociVersion":"1.0.2","linux":{{"resources":{resources}}}}}"#);
        vm_size(&serde_json::from_str(&text).unwrap(), &Config::default(), 8)
    }

    #[test]
    fn without_limits_the_configuration_counts() {
        assert_eq!(size("{}"), Ok(VmSize { vcpus: 2, memory_mib: 1024 }));
        assert_eq!(size(r#"{"memory":{"limit":-1},"cpu":{"quota":-1}}"#).unwrap().memory_mib, 1024);
    }

    #[test]
    fn the_container_can_use_all_of_its_limit() {
        let size = size(r#"{"memory":{"limit":268435456}}"#).unwrap();
        assert_eq!(size.memory_mib, 256 + 4 + 48);
    }

    #[test]
    fn a_small_limit_has_the_smallest_vm() {
        assert_eq!(size(r#"{"memory":{"limit":4194304}}"#).unwrap().memory_mib, MIN_MEMORY_MIB);
    }

    #[test]
    fn quotas_are_rounded_up_and_lists_counted() {
        let vcpus = |cpu: &str| size(&format!(r#"{{"cpu":{cpu}}}"#)).unwrap().vcpus;
        assert_eq!(vcpus(r#"{"quota":150000,"period":100000}"#), 2);
        assert_eq!(vcpus(r#"{"quota":50000}"#), 1);
        assert_eq!(vcpus(r#"{"cpus":"0-2,5"}"#), 4);
        assert_eq!(vcpus(r#"{"cpus":"0-3","quota":100000}"#), 1);
        assert_eq!(vcpus(r#"{"quota":100000000}"#), MAX_VCPUS);
    }

    #[test]
    fn a_pod_has_room_for_its_containers() {
        let size = |annotations: &str| {
            let text = format!(r#"{{"ociVersion":"1.0.2","annotations":{annotations}}}"#);
            pod_size(&serde_json::from_str(&text).unwrap(), &Config::default(), 8)
        };
        assert_eq!(size("{}"), Ok(VmSize { vcpus: 2, memory_mib: 1024 }));
        let large = r#"{"io.kubernetes.cri.sandbox-memory": "4294967296",
            "io.kubernetes.cri.sandbox-cpu-quota": "350000", "io.kubernetes.cri.sandbox-cpu-period": "100000"}"#;
        assert_eq!(size(large), Ok(VmSize { vcpus: 4, memory_mib: 4096 + 64 + 48 }));
        let small =
            r#"{"io.kubernetes.cri.sandbox-memory": "16777216", "io.kubernetes.cri.sandbox-cpu-quota": "0"}"#;
        assert_eq!(size(small), Ok(VmSize { vcpus: 2, memory_mib: 1024 }));
    }

    #[test]
    fn limits_that_cannot_be_are_named() {
        assert_eq!(size(r#"{"memory":{"limit":1048576}}"#), Err(SizeError::MemoryTooSmall(1 << 20)));
        let huge = size(r#"{"memory":{"limit":9223372036854771712}}"#);
        assert!(matches!(huge, Err(SizeError::MemoryTooLarge(_))));
        assert_eq!(size(r#"{"cpu":{"cpus":"3-1"}}"#), Err(SizeError::Cpus("3-1".into())));
        assert_eq!(size(r#"{"cpu":{"cpus":"a"}}"#), Err(SizeError::Cpus("a".into())));
    }
}
