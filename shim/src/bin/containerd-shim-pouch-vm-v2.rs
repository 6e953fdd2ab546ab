//! The shim for containerd, `io.containerd.pouch-vm.v2`.

use std::process::ExitCode;

use pouch_shim::{cli, heap, task};

fn main() -> ExitCode {
    heap::limit();
    // The sandbox host process is started from this program too.
    ExitCode::from(cli::internal_main().unwrap_or_else(task::main))
}
