//! `/init` of the guest. Everything is in the library; see there.

fn main() {
    std::process::exit(pouch_agent::run());
}
