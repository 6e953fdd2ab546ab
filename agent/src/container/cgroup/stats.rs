//! A container's counters, read from its cgroup and its network interfaces.

use std::collections::HashMap;

use pouch_protocol::agent::{BlockStats, ContainerStatsResponse, InterfaceStats};

use super::Cgroup;
use crate::procfs::{self, flat_keyed, limit};

/// The counters of a container for the protocol. `network` is its `/proc/PID/net/dev`.
pub fn collect(cgroup: &Cgroup, network: &str) -> ContainerStatsResponse {
    let keyed = |file: &str| flat_keyed(&cgroup.read(file).unwrap_or_default());
    let number = |file: &str| cgroup.read(file).and_then(|text| limit(&text)).unwrap_or(0);
    let cpu = keyed("cpu.stat");
    let of = |map: &HashMap<String, u64>, key: &str| map.get(key).copied().unwrap_or(0);
    ContainerStatsResponse {
        cpu_usage_usec: of(&cpu, "usage_usec"),
        cpu_user_usec: of(&cpu, "user_usec"),
        cpu_system_usec: of(&cpu, "system_usec"),
        cpu_nr_periods: of(&cpu, "nr_periods"),
        cpu_nr_throttled: of(&cpu, "nr_throttled"),
        cpu_throttled_usec: of(&cpu, "throttled_usec"),
        memory_current: number("memory.current"),
        memory_peak: number("memory.peak"),
        memory_max: number("memory.max"),
        memory_swap_current: number("memory.swap.current"),
        memory_swap_max: number("memory.swap.max"),
        memory_stat: keyed("memory.stat"),
        oom_kills: cgroup.oom_kills(),
        pids_current: number("pids.current"),
        pids_max: number("pids.max"),
        block: block(&cgroup.read("io.stat").unwrap_or_default()),
        interfaces: interfaces(network),
        ..Default::default()
    }
}

/// Parses `io.stat`: `254:0 rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn block(text: &str) -> Vec<BlockStats> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let (major, minor) = words.next()?.split_once(':')?;
            let mut stats = BlockStats::new();
            (stats.major, stats.minor) = (major.parse().ok()?, minor.parse().ok()?);
            for (key, value) in words.filter_map(|word| word.split_once('=')) {
                let value = value.parse().unwrap_or(0);
                match key {
                    "rbytes" => stats.read_bytes = value,
                    "wbytes" => stats.write_bytes = value,
                    "rios" => stats.reads = value,
                    "wios" => stats.writes = value,
                    _ => {}
                }
            }
            Some(stats)
        })
        .collect()
}

fn interfaces(text: &str) -> Vec<InterfaceStats> {
    procfs::network_devices(text)
        .into_iter()
        .filter(|device| device.name != "lo")
        .map(|device| {
            let c = device.columns;
            InterfaceStats {
                name: device.name,
                receive_bytes: c[0],
                receive_packets: c[1],
                receive_errors: c[2],
                receive_dropped: c[3],
                transmit_bytes: c[8],
                transmit_packets: c[9],
                transmit_errors: c[10],
                transmit_dropped: c[11],
                ..Default::default()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_counters() {
        let stats = block("254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\nodd\n7:0 \n");
        assert_eq!(stats.len(), 2);
        let first = &stats[0];
        assert_eq!(
            (first.major, first.read_bytes, first.write_bytes, first.reads, first.writes),
            (254, 1, 2, 3, 4)
        );
    }

    #[test]
    fn the_loopback_interface_is_not_counted() {
        let text = "lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\neth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n";
        let stats = interfaces(text);
        assert_eq!(stats.len(), 1);
        assert_eq!((stats[0].transmit_bytes, stats[0].receive_dropped), (5, 4));
    }
}
