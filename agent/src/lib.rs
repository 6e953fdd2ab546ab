//! The agent in the guest: PID 1, which mounts the basic file systems, listens on vsock, and runs containers
//! for the host.
//!
//! The same binary has several roles. As PID 1 it is the agent itself: one thread with an event loop that never
//! blocks. Creating a container needs `clone` with namespaces, which must not happen in the agent. So the
//! agent executes itself as a short-lived [`runner`], which calls libcontainer and reports through a pipe.
//! The kernel executes the binary to load [`modules`]. The first process of a PID namespace that containers share
//! is one too ([`pause`]).

// Tests may panic; the allowances in clippy.toml do not reach helper functions in them.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod clock;
pub mod container;
pub mod cpus;
pub mod disks;
pub mod error;
pub mod events;
pub mod identity;
pub mod init;
pub mod logger;
pub mod modules;
pub mod network;
pub mod pause;
pub mod port_forward;
pub mod process;
pub mod procfs;
pub mod reaper;
pub mod resolver;
pub mod runner;
pub mod service;
pub mod settings;
pub mod storage;
pub mod streams;
pub mod virtio;

/// Chooses the role by how the program was started, and runs it to its end.
pub fn run() -> i32 {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    if name == runner::NAME {
        return runner::main(args);
    }
    if let Some(file) = runner::ids::role(&name) {
        return runner::ids::main(file, args);
    }
    if name == modules::NAME {
        return modules::main(args);
    }
    if name == pause::NAME {
        return pause::main();
    }
    if std::process::id() == 1 {
        return init::main();
    }
    eprintln!("pouch-agent {}: runs as PID 1 of a pouch-vm guest only", env!("CARGO_PKG_VERSION"));
    2
}
