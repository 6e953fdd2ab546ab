//! A container's counters in the form of runc's `events --stats`, which engines read.

use pouch_protocol::agent::ContainerStatsResponse;
use serde_json::{Value, json};

/// Entries of `memory.stat` that are passed on.
const MAX_MEMORY_STAT: usize = 100;

/// The counters as one object.
pub fn to_json(id: &str, stats: &ContainerStatsResponse) -> Value {
    let nanoseconds = |usec: u64| usec.saturating_mul(1000);
    let raw: serde_json::Map<String, Value> = stats
        .memory_stat
        .iter()
        .take(MAX_MEMORY_STAT)
        .map(|(key, value)| (key.chars().take(50).collect(), json!(value)))
        .collect();
    let devices = |read: fn(&pouch_protocol::agent::BlockStats) -> (u64, u64)| -> Value {
        stats
            .block
            .iter()
            .take(MAX_MEMORY_STAT)
            .flat_map(|device| {
                let (reads, writes) = read(device);
                [("read", reads), ("write", writes)].map(|(op, value)| {
                    json!({"major": device.major, "minor": device.minor, "op": op, "value": value})
                })
            })
            .collect()
    };
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
            "memory": {
                "usage": {"limit": stats.memory_max, "usage": stats.memory_current, "max": stats.memory_peak},
                "swap": {"limit": stats.memory_swap_max, "usage": stats.memory_swap_current},
                "raw": raw,
            },
            "pids": {"current": stats.pids_current, "limit": stats.pids_max},
            "blkio": {
                "ioServiceBytesRecursive": devices(|device| (device.read_bytes, device.write_bytes)),
                "ioServicedRecursive": devices(|device| (device.reads, device.writes)),
            },
        },
    })
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
