//! Reports to the engine that the guest ran out of memory.
//!
//! An engine reads the kill counter of the container's cgroup on the host, but the kill happened in the guest
//! kernel. So when the VM has ended because of it, a process that exists for this purpose is started in the
//! cgroup, and the host's out-of-memory killer kills it.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{Cgroup, Driver, HIERARCHY};

/// The internal command of this process.
pub const VICTIM_COMMAND: &str = "oom-victim";
/// Memory that it allocates: more than the other processes in the cgroup have.
const VICTIM_BYTES: usize = 48 << 20;
/// The limit under which it is killed; the sandbox host process has some MiB.
const LIMIT: &str = "25165824";
/// The message that it may allocate the memory.
const GO: &[u8] = b"!";
/// Bytes of the smallest page.
const PAGE: usize = 4096;

/// The memory controller's files.
struct Files {
    hierarchy: &'static str,
    /// Written 0, the cgroup does not swap.
    swap: &'static str,
    limit: &'static str,
    /// The file, and the value with which the kernel kills a single process instead of the whole cgroup.
    kills_one: (&'static str, &'static str),
}

const UNIFIED: Files = Files {
    hierarchy: "",
    swap: "memory.swap.max",
    limit: "memory.max",
    kills_one: ("memory.oom.group", "0"),
};
const LEGACY: Files = Files {
    hierarchy: "memory",
    swap: "memory.swappiness",
    limit: "memory.limit_in_bytes",
    kills_one: ("memory.oom_control", "oom_kill_disable 0"),
};

impl Cgroup {
    /// Causes one out-of-memory kill in the cgroup. This process must be in it, and the VM must have ended. The caller
    /// is [`super::oom_reporter`].
    ///
    /// # Errors
    /// The kernel's error; the engine then does not learn of the kill.
    pub fn count_oom_kill(&self) -> io::Result<()> {
        let files = if self.driver == Driver::Legacy { &LEGACY } else { &UNIFIED };
        let directory = Path::new(HIERARCHY).join(files.hierarchy).join(&self.path);
        let (name, wanted) = files.kills_one;
        let text = fs::read_to_string(directory.join(name))?;
        if !text.lines().any(|line| line == wanted) {
            return Err(io::Error::other(format!("{name} is {}", text.trim())));
        }
        let limits = [directory.join(files.swap), directory.join(files.limit)];
        // A kernel without swap has no file for it.
        let before = limits.each_ref().map(|file| fs::read_to_string(file).ok());
        // Protect this process, and the sandbox host process, which ends after this with the container's status. Without
        // CAP_SYS_RESOURCE the kernel refuses this, but still chooses the victim first.
        for process in [std::process::id(), std::os::unix::process::parent_id()] {
            let _ = fs::write(format!("/proc/{process}/oom_score_adj"), "-1000");
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg(VICTIM_COMMAND).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut victim = command.spawn()?;
        let ready = victim.stdout.take().map_or(Ok(0), |mut stdout| stdout.read(&mut [0]));
        // The limit is set before it is exceeded. If it were set afterwards, the kernel would continue to kill until
        // the memory is free, and might kill again before the victim's memory is.
        let limited = ready.and_then(|_| {
            let _ = fs::write(&limits[0], "0");
            fs::write(&limits[1], LIMIT)
        });
        if limited.is_ok() {
            // The victim may have ended already.
            let _ = victim.stdin.as_mut().map(|stdin| stdin.write_all(GO));
        }
        // This closes its input; without the message it does nothing.
        drop(victim.stdin.take());
        let end = victim.wait()?;
        for (file, value) in limits.iter().zip(before) {
            if let Some(value) = value {
                let _ = fs::write(file, value.trim());
            }
        }
        limited?;
        if end.signal() == Some(libc::SIGKILL) {
            Ok(())
        } else {
            Err(io::Error::other(format!("no process was killed with the limit {}: {end}", files.limit)))
        }
    }
}

/// The whole life of the process that is killed.
pub fn victim_main() -> i32 {
    // Make it the kernel's first choice.
    if fs::write(Path::new("/proc/self/oom_score_adj"), "1000").is_err() {
        return 1;
    }
    let told = io::stdout().write_all(GO).and_then(|()| io::stdout().flush());
    if told.is_err() || io::stdin().read_exact(&mut [0]).is_err() {
        return 1;
    }
    let mut memory = vec![0u8; VICTIM_BYTES];
    for page in memory.chunks_mut(PAGE) {
        page[0] = 1;
    }
    // Keeps the compiler from removing the allocation.
    std::hint::black_box(&mut memory);
    0
}
