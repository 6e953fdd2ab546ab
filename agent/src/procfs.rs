//! Parsers for files in /proc and for cgroup files.

use std::collections::HashMap;

/// What `/proc/PID/stat` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stat {
    /// The command's name, at most 15 bytes.
    pub command: String,
    /// The parent's PID.
    pub parent: u32,
    /// The controlling terminal's device number, or 0.
    pub terminal: u32,
    /// User and system time in clock ticks.
    pub ticks: u64,
    /// Clock ticks from boot to its start.
    pub start: u64,
}

/// Parses `/proc/PID/stat`. The name is in parentheses and may contain any characters, including parentheses.
pub fn parse_stat(text: &str) -> Option<Stat> {
    let open = text.find('(')?;
    let close = text.rfind(')')?;
    let command = text.get(open + 1..close)?.to_owned();
    let fields: Vec<&str> = text.get(close + 1..)?.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        command,
        parent: number(1)? as u32,
        terminal: fields.get(4)?.parse::<i32>().ok()? as u32,
        ticks: number(11)?.saturating_add(number(12)?),
        start: number(19)?,
    })
}

/// The name of a terminal as `ps` shows it.
pub fn terminal_name(device: u32) -> String {
    let major = (device >> 8) & 0xfff;
    let minor = (device & 0xff) | ((device >> 12) & 0xfff00);
    match (major, minor) {
        (0, _) => String::new(),
        (136..=143, _) => format!("pts/{}", minor + (major - 136) * 256),
        (4, 64..) => format!("ttyS{}", minor - 64),
        (4, _) => format!("tty{minor}"),
        (229, _) => format!("hvc{minor}"),
        (5, 1) => "console".to_owned(),
        _ => format!("{major}:{minor}"),
    }
}

/// The value of a line like `Uid:\t0\t0` or `MemTotal:  100 kB`.
pub fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// A number with an optional unit after it.
pub fn number(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// A cgroup file of lines with a key and a number.
pub fn flat_keyed(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

/// A cgroup limit: a number, or "max", which is the greatest one.
pub fn limit(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// How many members a CPU list like `0-3,8` has, and which.
pub fn cpu_list(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last < first || last > 8192 {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// A counter of one network interface, as in `/proc/net/dev`.
#[derive(Debug, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// The interface.
    pub name: String,
    /// The 16 columns.
    pub columns: [u64; 16],
}

/// Parses `/proc/net/dev`.
pub fn network_devices(text: &str) -> Vec<InterfaceCounters> {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let mut columns = [0; 16];
            for (column, value) in columns.iter_mut().zip(rest.split_ascii_whitespace()) {
                *column = value.parse().ok()?;
            }
            Some(InterfaceCounters { name: name.trim().to_owned(), columns })
        })
        .collect()
}

/// The v2 line of `/proc/PID/cgroup`.
pub fn unified_cgroup(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_stat_line_with_a_hostile_name() {
        let text = "42 (a) R (b) S 7 42 42 34817 42 4194560 1 2 3 4 11 22 0 0 20 0 1 0 333 0";
        let stat = parse_stat(text).unwrap();
        assert_eq!(
            stat,
            Stat { command: "a) R (b".into(), parent: 7, terminal: 34817, ticks: 33, start: 333 }
        );
        assert_eq!(terminal_name(34817), "pts/1");
        assert_eq!(terminal_name(0), "");
        assert_eq!(terminal_name((4 << 8) | 64), "ttyS0");
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(cpu_list("0-2,5\n"), Some(vec![0, 1, 2, 5]));
        assert_eq!(cpu_list(""), Some(vec![]));
        assert_eq!(cpu_list("3-1"), None);
        assert_eq!(cpu_list("0-4294967295"), None);
    }

    #[test]
    fn keyed_files() {
        let events = flat_keyed("low 0\noom 2\noom_kill 1\nodd\n");
        assert_eq!(events["oom_kill"], 1);
        assert_eq!(limit("max\n"), Some(u64::MAX));
        assert_eq!(limit("4096\n"), Some(4096));
        assert_eq!(field("Name:\tx\nUid:\t5\t6\n", "Uid").and_then(number), Some(5));
        assert_eq!(unified_cgroup("1:x:/a\n0::/pouch/c\n"), Some("/pouch/c"));
    }

    #[test]
    fn network_counters() {
        let text = "Inter-|\n face |bytes\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n";
        let counters = network_devices(text);
        assert_eq!(counters.len(), 1);
        assert_eq!((counters[0].name.as_str(), counters[0].columns[8]), ("eth0", 9));
    }

    proptest! {
        #[test]
        fn no_text_breaks_a_parser(text in "\\PC{0,200}") {
            parse_stat(&text);
            cpu_list(&text);
            network_devices(&text);
            flat_keyed(&text);
        }
    }
}
