//! Which limits the guest kernel enforces, which the host, and which both.
//!
//! The guest limits the container's processes. The host limits what the VM uses: the VMM and the sandbox host
//! process are in the container's cgroup on the host.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use crate::sandbox::VmSize;

/// How many bytes the processes on the host may use besides guest memory: their own memory, the kernel's page tables
/// and caches, and a sixteenth of guest memory. The latter is for files that the VMM holds open, whose number
/// grows with guest memory (`files_kept` of the VMM).
const HOST_OVERHEAD: i64 = 64 << 20;
const HOST_OVERHEAD_SHARE: i64 = 16;

/// The limits of a container, by the kernel that enforces them.
#[derive(Debug, Default, PartialEq)]
pub struct Split {
    /// In the guest.
    pub guest: LinuxResources,
    /// On the host.
    pub host: LinuxResources,
}

/// Splits limits for a VM of this size.
pub fn split(resources: &LinuxResources, size: VmSize) -> Split {
    let mut host = LinuxResources::default();
    host.set_block_io(resources.block_io().clone());
    host.set_cpu(resources.cpu().as_ref().map(without_real_time));
    host.set_memory(resources.memory().as_ref().and_then(|memory| host_memory(memory, size)));
    host.set_unified(part(resources, |file| is_hosts(file) || file.starts_with("cpu.")));
    Split { guest: of_guest(resources), host }
}

/// The limits that the guest enforces.
pub fn of_guest(resources: &LinuxResources) -> LinuxResources {
    let mut guest = resources.clone();
    // Disks and numbers of CPUs are the host's.
    guest.set_block_io(None);
    guest.set_cpu(resources.cpu().as_ref().map(without_numbers));
    guest.set_unified(part(resources, |file| !is_hosts(file)));
    guest
}

/// The files of cgroup v2 that are `wanted`, with their values.
fn part(resources: &LinuxResources, wanted: fn(&str) -> bool) -> Option<HashMap<String, String>> {
    let all = resources.unified().iter().flatten();
    let part: HashMap<String, String> =
        all.filter(|(file, _)| wanted(file)).map(|(file, value)| (file.clone(), value.clone())).collect();
    (!part.is_empty()).then_some(part)
}

/// Whether a file of cgroup v2 is about devices or CPUs by their numbers.
fn is_hosts(file: &str) -> bool {
    file.starts_with("io.") || file.starts_with("cpuset.")
}

fn without_numbers(cpu: &LinuxCpu) -> LinuxCpu {
    let mut cpu = cpu.clone();
    cpu.set_cpus(None).set_mems(None);
    cpu
}

/// The guest refuses these by name.
fn without_real_time(cpu: &LinuxCpu) -> LinuxCpu {
    let mut cpu = cpu.clone();
    cpu.set_realtime_period(None).set_realtime_runtime(None);
    cpu
}

/// The whole VM may be in memory, and what its processes need.
fn host_memory(memory: &LinuxMemory, size: VmSize) -> Option<LinuxMemory> {
    let limit = memory.limit().filter(|limit| *limit > 0)?;
    let guest = i64::from(size.memory_mib) << 20;
    let all = guest + guest / HOST_OVERHEAD_SHARE + HOST_OVERHEAD;
    let mut host = LinuxMemory::default();
    host.set_limit(Some(all));
    host.set_reservation(memory.reservation());
    // Memory and swap together.
    host.set_swap(memory.swap().map(|swap| if swap < 0 { -1 } else { all + (swap - limit).max(0) }));
    Some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: VmSize = VmSize { vcpus: 1, memory_mib: 320 };

    fn of(json: &str) -> Split {
        split(&serde_json::from_str(json).unwrap(), SIZE)
    }

    #[test]
    fn the_host_leaves_room_for_the_whole_vm() {
        let both = of(r#"{"memory": {"limit": 268435456, "swap": 536870912, "reservation": 5}}"#);
        let host = both.host.memory().unwrap();
        let all = (320 + 20 + 64) << 20;
        assert_eq!((host.limit(), host.swap()), (Some(all), Some(all + (256 << 20))));
        assert_eq!(host.reservation(), Some(5));
        assert_eq!(both.guest.memory().unwrap().limit(), Some(256 << 20));
        assert_eq!(of(r#"{"memory": {"limit": -1}}"#).host.memory(), &None);
    }

    #[test]
    fn what_the_guest_refuses_by_name_is_left_to_it() {
        let both = of(r#"{"cpu": {"realtimeRuntime": 5, "realtimePeriod": 6, "quota": 7}}"#);
        let parts = |part: &LinuxResources| {
            let cpu = part.cpu().clone().unwrap();
            (cpu.realtime_runtime(), cpu.realtime_period(), cpu.quota())
        };
        assert_eq!(parts(&both.guest), (Some(5), Some(6), Some(7)));
        assert_eq!(parts(&both.host), (None, None, Some(7)));
    }

    #[test]
    fn what_has_numbers_of_the_host_stays_there() {
        let both = of(r#"{"cpu": {"quota": 5, "cpus": "3", "mems": "0"}, "blockIO": {"weight": 100},
            "unified": {"io.max": "8:0 rbps=1", "memory.high": "7", "cpu.weight": "9"}, "pids": {"limit": 4}}"#);
        let cpu = both.guest.cpu().as_ref().unwrap();
        assert_eq!((cpu.quota(), cpu.cpus(), cpu.mems()), (Some(5), &None, &None));
        assert_eq!(both.host.cpu().as_ref().unwrap().cpus().as_deref(), Some("3"));
        assert!(both.guest.block_io().is_none() && both.host.block_io().is_some());
        assert!(both.guest.pids().is_some() && both.host.pids().is_none());
        let names = |part: &LinuxResources| {
            let mut names: Vec<String> = part.unified().as_ref().unwrap().keys().cloned().collect();
            names.sort();
            names
        };
        assert_eq!(names(&both.guest), ["cpu.weight", "memory.high"]);
        assert_eq!(names(&both.host), ["cpu.weight", "io.max"]);
    }
}
