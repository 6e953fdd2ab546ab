//! The OCI runtime `pouch-vm`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pouch_shim::heap::limit();
    ExitCode::from(pouch_shim::cli::main())
}
