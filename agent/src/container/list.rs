//! ListProcesses, and signals to all processes of a container.

use std::fs;

use pouch_protocol::agent::list_processes_response::Process as Listed;

use super::Container;
use crate::process::{SignalError, check_signal, open_pidfd, send_signal};
use crate::procfs;

/// Clock ticks a second, which the kernel fixes for its users.
const TICKS: u64 = 100;

/// The container's processes, ordered by pid.
pub fn processes(container: &Container) -> Vec<Listed> {
    let mut pids = container.cgroup.processes();
    pids.sort_unstable();
    pids.dedup();
    // One that has ended in between is not listed.
    pids.into_iter().filter_map(describe).collect()
}

fn describe(pid: i32) -> Option<Listed> {
    let stat = procfs::parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    Some(Listed {
        pid: pid as u32,
        parent_pid: stat.parent,
        uid: procfs::field(&status, "Uid").and_then(procfs::number)? as u32,
        command: command(&arguments, &stat.command),
        start_milliseconds: stat.start.saturating_mul(1000 / TICKS),
        cpu_milliseconds: stat.ticks.saturating_mul(1000 / TICKS),
        terminal: procfs::terminal_name(stat.terminal),
        ..Default::default()
    })
}

/// The command line with spaces, or the name in brackets for what has none, as `ps` does.
fn command(arguments: &[u8], name: &str) -> String {
    const LENGTH_MAX: usize = 4096;
    let end = arguments.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if end == 0 {
        return format!("[{name}]");
    }
    let text = String::from_utf8_lossy(&arguments[..end.min(LENGTH_MAX)]);
    text.replace('\0', " ")
}

/// Signals every process of the container. It is no error if one ends meanwhile.
pub fn signal_all(container: &Container, signal: u32) -> Result<(), SignalError> {
    check_signal(signal)?;
    if signal == libc::SIGKILL as u32 {
        return container.cgroup.kill().map_err(|error| SignalError::Refused(std::io::Error::other(error)));
    }
    for pid in container.cgroup.processes() {
        let Ok(handle) = open_pidfd(pid) else { continue };
        // The handle means what has the pid now; check that this is still the container's.
        if !container.cgroup.processes().contains(&pid) {
            continue;
        }
        match send_signal(&handle, signal) {
            Ok(()) | Err(SignalError::Ended) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_ps_does() {
        assert_eq!(command(b"sh\0-c\0a b\0", "sh"), "sh -c a b");
        assert_eq!(command(b"", "kworker/0:1"), "[kworker/0:1]");
        assert_eq!(command(b"title\0\0\0\0", "x"), "title");
    }

    #[test]
    fn this_process_can_be_described() {
        let listed = describe(std::process::id() as i32).unwrap();
        assert!(listed.parent_pid > 0 && !listed.command.is_empty());
    }
}
