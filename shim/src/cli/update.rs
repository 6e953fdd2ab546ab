//! `update`: new limits for a running container, inside its VM.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{CliError, Global, Outcome, other};
use crate::host::limits::{self, LimitsError};

#[derive(Args)]
pub struct Update {
    /// Read an OCI `linux.resources` object from this file (- for standard input), instead of using the other flags.
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Block I/O weight, from 10 to 1000.
    #[arg(long, value_name = "N")]
    blkio_weight: Option<u16>,
    /// CPU time limit in each period, in microseconds; -1 is no limit.
    #[arg(long, value_name = "USEC", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// CPU period, in microseconds.
    #[arg(long, value_name = "USEC")]
    cpu_period: Option<u64>,
    /// CPU time that can accumulate for bursts, in microseconds.
    #[arg(long, value_name = "USEC")]
    cpu_burst: Option<u64>,
    /// CPU shares, relative to other containers.
    #[arg(long, value_name = "N")]
    cpu_share: Option<u64>,
    /// 1 makes the container use only idle CPU time (cpu.idle).
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    cpu_idle: Option<i64>,
    /// Not supported: period for real-time processes.
    #[arg(long, value_name = "USEC")]
    cpu_rt_period: Option<u64>,
    /// Not supported: CPU time for real-time processes.
    #[arg(long, value_name = "USEC", allow_negative_numbers = true)]
    cpu_rt_runtime: Option<i64>,
    /// CPUs of the host that the container may use, for example 0-2,5.
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes of the host that the container may use.
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Not supported: kernel memory limit, which cgroup v2 does not have.
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = parse_bytes)]
    kernel_memory: Option<i64>,
    /// Not supported: kernel memory limit for TCP, which cgroup v2 does not have.
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = parse_bytes)]
    kernel_memory_tcp: Option<i64>,
    /// Memory limit, in bytes or with the suffix b, k, m, g or t.
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = parse_bytes)]
    memory: Option<i64>,
    /// Memory soft limit.
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = parse_bytes)]
    memory_reservation: Option<i64>,
    /// Limit of memory and swap together; -1 is no limit.
    #[arg(long, value_name = "BYTES", allow_negative_numbers = true, value_parser = parse_bytes)]
    memory_swap: Option<i64>,
    /// Maximum number of processes.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Intel RDT: not supported in a VM.
    #[arg(long, value_name = "SCHEMA")]
    l3_cache_schema: Option<String>,
    /// Intel RDT: not supported in a VM.
    #[arg(long, value_name = "SCHEMA")]
    mem_bw_schema: Option<String>,
    /// The container's ID.
    id: String,
}

impl Update {
    pub fn run(&self, global: &Global) -> Outcome {
        let resources = match &self.resources {
            Some(path) => read(path)?,
            None => self.flag_resources()?,
        };
        limits::update(&global.dir(&self.id)?, resources).map_err(|error| match error {
            LimitsError::Client(error) => error.into(),
            error => other(error),
        })?;
        Ok(0)
    }

    fn flag_resources(&self) -> Result<Value, CliError> {
        for (option, value) in
            [("--l3-cache-schema", &self.l3_cache_schema), ("--mem-bw-schema", &self.mem_bw_schema)]
        {
            if value.as_ref().is_some_and(|value| !value.is_empty()) {
                let text = format!("{option}: Intel RDT (linux.intelRdt) is not available in a VM; omit it");
                return Err(CliError::Other(text));
            }
        }
        let mut resources = json!({});
        let mut set = |section: &str, key: &str, value: Option<Value>| {
            if let Some(value) = value {
                resources[section][key] = value;
            }
        };
        set("blockIO", "weight", self.blkio_weight.filter(|weight| *weight != 0).map(Value::from));
        set("cpu", "quota", self.cpu_quota.map(Value::from));
        set("cpu", "period", self.cpu_period.map(Value::from));
        set("cpu", "burst", self.cpu_burst.map(Value::from));
        set("cpu", "shares", self.cpu_share.map(Value::from));
        set("cpu", "idle", self.cpu_idle.map(Value::from));
        set("cpu", "realtimePeriod", self.cpu_rt_period.map(Value::from));
        set("cpu", "realtimeRuntime", self.cpu_rt_runtime.map(Value::from));
        set("cpu", "cpus", self.cpuset_cpus.clone().map(Value::from));
        set("cpu", "mems", self.cpuset_mems.clone().map(Value::from));
        set("memory", "kernel", self.kernel_memory.map(Value::from));
        set("memory", "kernelTCP", self.kernel_memory_tcp.map(Value::from));
        set("memory", "limit", self.memory.map(Value::from));
        set("memory", "reservation", self.memory_reservation.map(Value::from));
        set("memory", "swap", self.memory_swap.map(Value::from));
        set("pids", "limit", self.pids_limit.map(Value::from));
        Ok(resources)
    }
}

/// "1048576", "512k", "64m", "1g", as runc takes them; -1 is no limit.
fn parse_bytes(text: &str) -> Result<i64, String> {
    let error = || format!("{text:?} is not a number of bytes such as 64m");
    let lower = text.to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(lower.len());
    let number: i64 = lower[..digits].parse().map_err(|_| error())?;
    let shift = match lower[digits..].trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(error()),
    };
    number.checked_mul(1_i64 << shift).filter(|number| *number >= -1).ok_or_else(error)
}

fn read(path: &PathBuf) -> Result<Value, CliError> {
    let text = if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    let error = |text: String| CliError::Other(format!("--resources {} {text}", path.display()));
    let text = text.map_err(|why| error(format!("cannot be read: {why}")))?;
    let value: Value = serde_json::from_str(&text).map_err(|why| error(format!("is not valid: {why}")))?;
    if value.is_object() { Ok(value) } else { Err(error("is not valid: it is not a JSON object".to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_units_of_runc() {
        for (text, bytes) in [("0", 0), ("7", 7), ("512k", 512 << 10), ("64M", 64 << 20), ("1GiB", 1 << 30)] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_bytes("-1"), Ok(-1));
        for bad in ["", "m", "1q", "-2", "1.5m", "99999999999t", "--1"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
