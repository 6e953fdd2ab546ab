//! A container's counters in the form of runc's `events --stats`, which engines read.

use pouch_protocol::agent::ContainerStatsResponse;
use serde_json::{Value, json};

/// Entries of `memory.stat` that are passed on.
const MAX_MEMORY_STAT: usize = 100;
/// Network interfaces that are passed on.
const MAX_INTERFACES: usize = 32;
/// Characters of an interface's name that are.
const MAX_NAME: usize = 32;

/// The counters as one object.
pub fn to_json(id: &str, stats: &ContainerStatsResponse) -> Value {
    let nanoseconds = |usec: u64| usec.saturating_mul(1000);
    let devices = |read: fn(&pouch_protocol::agent::BlockStats) -> (u64, u64)| -> Value {
        stats
            .block
            .iter()
            .take(MAX_MEMORY_STAT)
            .flat_map(|device| {
                let (reads, writes) = read(device);
                [("Read", reads), ("Write", writes)].map(|(op, value)| {
                    json!({"major": device.major, "minor": device.minor, "op": op, "value": value})
                })
            })
            .collect()
    };
    // 0 is runc's word for none.
    let pids_limit = if stats.pids_max == u64::MAX { 0 } else { stats.pids_max };
    json!({
        "type": "stats",
        "id": id,
        "data": {
            "cpu": {
                "usage": {
                    "total": nanoseconds(stats.cpu_usage_usec),
                    "kernel": nanoseconds(stats.cpu_system_usec),
                    "user": nanoseconds(stats.cpu_user_usec),
                },
                "throttling": {
                    "periods": stats.cpu_nr_periods,
                    "throttledPeriods": stats.cpu_nr_throttled,
                    "throttledTime": nanoseconds(stats.cpu_throttled_usec),
                },
            },
            "memory": memory(stats),
            "pids": {"current": stats.pids_current, "limit": pids_limit},
            "blkio": {
                "ioServiceBytesRecursive": devices(|device| (device.read_bytes, device.write_bytes)),
                "ioServicedRecursive": devices(|device| (device.reads, device.writes)),
            },
            "hugetlb": {},
            "intel_rdt": {},
            "network_interfaces": interfaces(stats),
        },
    })
}

/// The memory's counters.
fn memory(stats: &ContainerStatsResponse) -> Value {
    let raw: serde_json::Map<String, Value> = stats
        .memory_stat
        .iter()
        .take(MAX_MEMORY_STAT)
        .map(|(key, value)| (key.chars().take(50).collect(), json!(value)))
        .collect();
    let total = |ram: u64, swap: u64| ram.saturating_add(swap);
    // cgroup v2 counts no failures, nor the kernel's memory by itself.
    let uncounted = json!({"limit": 0, "failcnt": 0});
    json!({
        "cache": raw.get("file").cloned().unwrap_or(json!(0)),
        "usage": {
            "limit": stats.memory_max,
            "usage": stats.memory_current,
            "max": stats.memory_peak,
            "failcnt": 0,
        },
        "swap": {
            "limit": total(stats.memory_max, stats.memory_swap_max),
            "usage": total(stats.memory_current, stats.memory_swap_current),
            "failcnt": 0,
        },
        "kernel": uncounted,
        "kernelTCP": uncounted,
        "raw": raw,
    })
}

/// The network's counters, under the names that runc's library has for them.
fn interfaces(stats: &ContainerStatsResponse) -> Value {
    let each = stats.interfaces.iter().take(MAX_INTERFACES).map(|interface| {
        json!({
            "Name": interface.name.chars().take(MAX_NAME).collect::<String>(),
            "RxBytes": interface.receive_bytes,
            "RxPackets": interface.receive_packets,
            "RxErrors": interface.receive_errors,
            "RxDropped": interface.receive_dropped,
            "TxBytes": interface.transmit_bytes,
            "TxPackets": interface.transmit_packets,
            "TxErrors": interface.transmit_errors,
            "TxDropped": interface.transmit_dropped,
        })
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_runcs_names_and_units() {
        let mut stats = ContainerStatsResponse::new();
        stats.cpu_usage_usec = 5;
        stats.memory_current = 7;
        let value = to_json("a", &stats);
        assert_eq!(value["data"]["cpu"]["usage"]["total"], 5000);
        assert_eq!(value["data"]["memory"]["usage"]["usage"], 7);
    }
}
