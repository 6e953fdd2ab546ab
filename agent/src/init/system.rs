//! Limits, signals, sysctls and the loopback interface of the guest.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::time::{ClockId, clock_gettime};

use crate::container::cgroup;
use crate::network::loopback;

/// Kernel settings of the guest, each with its reason. What a container inherits from its host comes with
/// SetupSandbox.
const SYSCTLS: &[(&str, &str)] = &[
    // An out-of-memory kill ends what asked for the memory, and the container's cgroup
    // tells; a panic would take the other containers of a pod with it.
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "-1"),
    // Duplicate address detection has nothing to detect on the container's only link, and
    // delays IPv6 by seconds.
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
];

/// What PID 1 needs of its process before the event loop starts.
pub fn adopt_pid_1() {
    umask(Mode::from_bits_truncate(0o022));
    // Signals stay as they are: the kernel gives PID 1 none that it has no handler for, and
    // what is ignored here would be ignored in every container.
}

/// The rest of the set-up, after the listeners exist.
pub fn prepare() {
    write_logged("/proc/self/oom_score_adj", "-1000");
    for (name, value) in SYSCTLS {
        let path = format!("/proc/sys/{name}");
        match fs::write(&path, value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => log::warn!("cannot set {path}: {error}"),
            _ => {}
        }
    }
    // Containers inherit this where their spec has no rlimits.
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, 1_048_576, 1_048_576) {
        log::warn!("cannot set RLIMIT_NOFILE: {error}");
    }
    if let Err(error) = loopback::up() {
        log::warn!("cannot bring the loopback interface up: {error}");
    }
    cgroup::prepare_root();
    for directory in ["/run/pouch", "/run/pouch/containers", "/run/pouch/state"] {
        if let Err(error) = fs::create_dir_all(directory) {
            log::error!("cannot make {directory}: {error}");
        }
    }
}

/// How much the agent has used of a processor.
pub fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

fn write_logged(path: &str, value: &str) {
    if let Err(error) = fs::write(path, value) {
        log::warn!("cannot write {path}: {error}");
    }
}
