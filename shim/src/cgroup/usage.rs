//! What the processes in a cgroup use.

use std::fs;

use super::Cgroup;

/// What the processes in a cgroup use on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in microseconds.
    pub cpu: u64,
    /// The part of it in programs.
    pub user: u64,
    /// The part of it in the kernel.
    pub system: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Processes and threads.
    pub processes: u64,
}

impl Cgroup {
    /// What its processes use: the counters of version 2, and zero where the host has none.
    pub fn usage(&self) -> Usage {
        let read = |file: &str| fs::read_to_string(self.directory().join(file)).unwrap_or_default();
        let number = |file: &str| read(file).trim().parse().unwrap_or(0);
        let cpu = read("cpu.stat");
        Usage {
            cpu: counter(&cpu, "usage_usec"),
            user: counter(&cpu, "user_usec"),
            system: counter(&cpu, "system_usec"),
            memory: number("memory.current"),
            processes: number("pids.current"),
        }
    }
}

/// A counter of a file with one in each line.
fn counter(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let text = "usage_usec 12\nuser_usec 7\nsystem_usec 5\n";
        assert_eq!((counter(text, "user_usec"), counter(text, "nr_periods")), (7, 0));
    }
}
