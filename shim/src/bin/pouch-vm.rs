//! The OCI runtime `pouch-vm`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(pouch_shim::cli::main())
}
