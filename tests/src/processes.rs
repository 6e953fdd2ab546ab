//! The host's processes, read from /proc.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What is known of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its parent's number.
    pub parent: i32,
    /// `R`, `S`, `Z` …
    pub state: char,
    /// The name that the kernel keeps.
    pub name: String,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// The process with this number.
pub fn find(pid: i32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let mut fields = stat[close + 1..].split_whitespace();
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments = command.split(|byte| *byte == 0).filter(|part| !part.is_empty());
    Some(Process {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        name: stat[open + 1..close].to_owned(),
        arguments: arguments.map(|part| String::from_utf8_lossy(part).into_owned()).collect(),
    })
}

/// All processes but the kernel's threads.
pub fn all() -> BTreeMap<i32, Process> {
    const KTHREADD: i32 = 2;
    let entries = fs::read_dir("/proc").unwrap();
    let numbers = entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let found = numbers.filter_map(|pid| Some((pid, find(pid)?)));
    found.filter(|(pid, process)| *pid != KTHREADD && process.parent != KTHREADD).collect()
}

/// Whether a process runs: it exists and is no zombie.
pub fn runs(pid: i32) -> bool {
    find(pid).is_some_and(|process| !matches!(process.state, 'Z' | 'X'))
}

/// The processes below `pid`, at any depth.
pub fn descendants(pid: i32) -> Vec<i32> {
    let all = all();
    let mut found = vec![pid];
    let mut index = 0;
    while index < found.len() {
        let parent = found[index];
        found.extend(all.iter().filter(|(_, process)| process.parent == parent).map(|(pid, _)| *pid));
        index += 1;
    }
    found.remove(0);
    found
}

/// The VMM's processes of the container whose process on the host is `pid`: all of them, because
/// a VMM that has namespaces of its own may have a parent in between.
pub fn vmm_of(pid: i32) -> Vec<i32> {
    let all = all();
    descendants(pid)
        .into_iter()
        .filter(|pid| all.get(pid).is_some_and(|p| p.name.starts_with("pouch-vmm")))
        .collect()
}

/// Kills a process.
pub fn sigkill(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// KiB of memory that belong to a process: all of its own pages, and its part of shared ones.
pub fn pss_kib(pid: i32) -> u64 {
    field_kib(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// KiB of memory that a process has for itself (its part of shared pages counts), and of the guest's memory and root
/// that it maps.
pub fn own_and_guest_kib(pid: i32) -> (u64, u64) {
    let (mut own, mut guest, mut is_guest) = (0, 0, false);
    for line in fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next().and_then(|word| word.parse::<u64>().ok())) {
            (Some("Rss:"), Some(kib)) if is_guest => guest += kib,
            (Some("Pss:"), Some(kib)) if !is_guest => own += kib,
            (Some(name), _) if !name.ends_with(':') => {
                // The guest root is mapped from a mount of its own, where its path is "/".
                is_guest = line.contains("pouch-vm-memory") || line.split_whitespace().nth(5) == Some("/");
            }
            _ => {}
        }
    }
    (own, guest)
}

/// KiB of memory that are a process's alone, such as its heap.
pub fn anonymous_kib(pid: i32) -> u64 {
    field_kib(&format!("/proc/{pid}/smaps_rollup"), "Pss_Anon:")
}

/// KiB of memory that can be used once the kernel has dropped its caches.
pub fn settled_kib() -> u64 {
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    available_kib()
}

/// KiB of memory that can still be used on this machine.
pub fn available_kib() -> u64 {
    field_kib("/proc/meminfo", "MemAvailable:")
}

fn field_kib(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
