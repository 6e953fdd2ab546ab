//! A container's counters as containerd has them: those of its cgroup of version 2, in the guest.

use containerd_shim::protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use serde_json::Value;

/// The counters of runc's `events --stats`, which the sandbox host process tells, and the number of out-of-memory kills.
pub fn of(stats: &Value, oom_kills: u64) -> Metrics {
    let data = &stats["data"];
    let mut metrics = Metrics::new();
    metrics.pids = Some(PidsStat {
        current: number(&data["pids"]["current"]),
        // 0 stands for none in one form, and the greatest number in the other.
        limit: Some(number(&data["pids"]["limit"])).filter(|limit| *limit > 0).unwrap_or(u64::MAX),
        ..PidsStat::default()
    })
    .into();
    metrics.cpu = Some(cpu(&data["cpu"])).into();
    metrics.memory = Some(memory(&data["memory"])).into();
    metrics.io = Some(io(&data["blkio"])).into();
    let mut events = MemoryEvents::new();
    (events.oom, events.oom_kill) = (oom_kills, oom_kills);
    metrics.memory_events = Some(events).into();
    metrics
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn cpu(cpu: &Value) -> CPUStat {
    // From nanoseconds to microseconds.
    let microseconds = |value: &Value| number(value) / 1000;
    CPUStat {
        usage_usec: microseconds(&cpu["usage"]["total"]),
        user_usec: microseconds(&cpu["usage"]["user"]),
        system_usec: microseconds(&cpu["usage"]["kernel"]),
        nr_periods: number(&cpu["throttling"]["periods"]),
        nr_throttled: number(&cpu["throttling"]["throttledPeriods"]),
        throttled_usec: microseconds(&cpu["throttling"]["throttledTime"]),
        ..CPUStat::default()
    }
}

fn memory(memory: &Value) -> MemoryStat {
    let raw = |name: &str| number(&memory["raw"][name]);
    let (usage, limit) = (number(&memory["usage"]["usage"]), number(&memory["usage"]["limit"]));
    let swap = |name: &str| number(&memory["swap"][name]);
    MemoryStat {
        anon: raw("anon"),
        file: raw("file"),
        kernel_stack: raw("kernel_stack"),
        slab: raw("slab"),
        sock: raw("sock"),
        shmem: raw("shmem"),
        file_mapped: raw("file_mapped"),
        file_dirty: raw("file_dirty"),
        file_writeback: raw("file_writeback"),
        anon_thp: raw("anon_thp"),
        inactive_anon: raw("inactive_anon"),
        active_anon: raw("active_anon"),
        inactive_file: raw("inactive_file"),
        active_file: raw("active_file"),
        unevictable: raw("unevictable"),
        slab_reclaimable: raw("slab_reclaimable"),
        slab_unreclaimable: raw("slab_unreclaimable"),
        pgfault: raw("pgfault"),
        pgmajfault: raw("pgmajfault"),
        workingset_activate: raw("workingset_activate_anon").saturating_add(raw("workingset_activate_file")),
        workingset_refault: raw("workingset_refault_anon").saturating_add(raw("workingset_refault_file")),
        workingset_nodereclaim: raw("workingset_nodereclaim"),
        pgrefill: raw("pgrefill"),
        pgscan: raw("pgscan"),
        pgsteal: raw("pgsteal"),
        pgactivate: raw("pgactivate"),
        pgdeactivate: raw("pgdeactivate"),
        pglazyfree: raw("pglazyfree"),
        pglazyfreed: raw("pglazyfreed"),
        thp_fault_alloc: raw("thp_fault_alloc"),
        thp_collapse_alloc: raw("thp_collapse_alloc"),
        usage,
        usage_limit: limit,
        max_usage: number(&memory["usage"]["max"]),
        // These have memory and swap together.
        swap_usage: swap("usage").saturating_sub(usage),
        swap_limit: swap("limit").saturating_sub(limit),
        ..MemoryStat::default()
    }
}

/// One entry for each device: its counters stand in two lists, for each kind of operation.
fn io(blkio: &Value) -> IOStat {
    let mut stat = IOStat::new();
    for (list, bytes) in [("ioServiceBytesRecursive", true), ("ioServicedRecursive", false)] {
        for counter in blkio[list].as_array().into_iter().flatten() {
            let (major, minor) = (number(&counter["major"]), number(&counter["minor"]));
            let found = stat.usage.iter().position(|entry| (entry.major, entry.minor) == (major, minor));
            let position = found.unwrap_or_else(|| {
                stat.usage.push(IOEntry { major, minor, ..IOEntry::default() });
                stat.usage.len() - 1
            });
            let entry = &mut stat.usage[position];
            let value = number(&counter["value"]);
            match (counter["op"].as_str(), bytes) {
                (Some("Read"), true) => entry.rbytes = value,
                (Some("Write"), true) => entry.wbytes = value,
                (Some("Read"), false) => entry.rios = value,
                (Some("Write"), false) => entry.wios = value,
                _ => {}
            }
        }
    }
    stat
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::stats::to_json;
    use pouch_protocol::agent::{BlockStats, ContainerStatsResponse};

    #[test]
    fn counters_keep_their_values() {
        let mut stats = ContainerStatsResponse::new();
        (stats.cpu_usage_usec, stats.cpu_user_usec) = (7, 5);
        (stats.memory_current, stats.memory_max) = (100, 200);
        (stats.memory_swap_current, stats.memory_swap_max) = (3, 4);
        (stats.pids_current, stats.pids_max) = (2, u64::MAX);
        stats.memory_stat.insert("anon".to_owned(), 9);
        let device = BlockStats {
            major: 254,
            read_bytes: 1,
            write_bytes: 2,
            reads: 3,
            writes: 4,
            ..Default::default()
        };
        stats.block = vec![device];
        let metrics = of(&to_json("a", &stats), 6);
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.user_usec), (7, 5));
        let memory = &metrics.memory;
        assert_eq!((memory.usage, memory.usage_limit, memory.anon), (100, 200, 9));
        assert_eq!((memory.swap_usage, memory.swap_limit), (3, 4));
        assert_eq!((metrics.pids.current, metrics.pids.limit), (2, u64::MAX));
        assert_eq!(metrics.memory_events.oom_kill, 6);
        let [entry] = &metrics.io.usage[..] else { panic!("{metrics}") };
        assert_eq!((entry.major, entry.rbytes, entry.wbytes, entry.rios, entry.wios), (254, 1, 2, 3, 4));
    }
}
