//! Generates the message types and the client and server code from proto/agent.proto.

use std::path::PathBuf;
use std::{env, fs, io};

use ttrpc_codegen::{Codegen, Customize};

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto/agent.proto");
    let out_dir = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?;
    let out_dir = PathBuf::from(out_dir);
    Codegen::new()
        .out_dir(&out_dir)
        .include("proto")
        .input("proto/agent.proto")
        .rust_protobuf()
        .customize(Customize { async_all: true, ..Default::default() })
        .run()?;
    // The host side is not asynchronous: a client of its own kind, into a folder of its own. Its
    // generator knows no streams, so it does not see the one that there is.
    let sync_dir = out_dir.join("sync");
    fs::create_dir_all(&sync_dir)?;
    let service = fs::read_to_string("proto/agent.proto")?;
    let service: Vec<&str> = service.lines().filter(|line| !line.contains("(stream ")).collect();
    fs::write(sync_dir.join("agent.proto"), service.join("\n"))?;
    Codegen::new()
        .out_dir(&sync_dir)
        .include(&sync_dir)
        .input(sync_dir.join("agent.proto"))
        .rust_protobuf()
        .run()?;
    for name in ["agent.rs", "agent_ttrpc.rs", "sync/agent_ttrpc.rs"] {
        drop_inner_attributes(&out_dir.join(name))?;
    }
    Ok(())
}

/// `include!` takes no inner attributes or inner documentation, which the generators
/// put at the start of their files.
fn drop_inner_attributes(path: &std::path::Path) -> io::Result<()> {
    let text = fs::read_to_string(path)?;
    let kept: Vec<&str> =
        text.lines().filter(|line| !line.starts_with("#![") && !line.starts_with("//!")).collect();
    fs::write(path, kept.join("\n"))
}
