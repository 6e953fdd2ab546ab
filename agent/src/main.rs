//! `/init` of the guest. The code is in the library.

fn main() {
    std::process::exit(pouch_agent::run());
}
