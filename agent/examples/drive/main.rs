//! Drives the agent of a booted guest from its host, and checks the results:
//!
//!     drive CID            all checks; needs a disk with the serial "rootfs" that holds a
//!                          busybox root file system in ext4
//!     drive CID systemd    boots a rich container from the same disk
//!
//! It is for testing the agent without pouch-vmm, under QEMU with vhost-vsock.

mod basics;
mod driver;
mod features;
mod life;
mod network;
mod spec;
mod systemd;

use driver::{Driver, Result, within};
use pouch_protocol::agent::Empty;

/// Where the disk with the root file system is mounted.
const ROOT: &str = "/run/pouch/disks/rootfs";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let cid: u32 = args.next().ok_or("usage: drive CID [systemd]")?.parse()?;
    let driver = Driver::connect(cid).await?;
    match args.next().as_deref() {
        Some("systemd") => driver.systemd().await,
        Some("shutdown") => {
            // The answer may not arrive.
            let _ = driver.client.shutdown(within(30), &Empty::new()).await;
            Ok(())
        }
        _ => driver.everything().await,
    }
}

impl Driver {
    async fn everything(&self) -> Result<()> {
        self.guest().await?;
        for (name, result) in [
            ("plain", self.plain().await),
            ("failures", self.failures().await),
            ("long-running", self.long_running().await),
            ("terminals", self.terminals().await),
            ("seccomp", self.seccomp().await),
            ("features", self.features().await),
            ("more", self.more().await),
            ("execs", self.execs().await),
            ("network", self.network().await),
        ] {
            if let Err(error) = result {
                driver::check(&format!("{name}: {error}"), false)?;
            }
        }
        let failures = driver::failures();
        println!("{failures} checks failed");
        if failures == 0 { Ok(()) } else { Err("not every check passed".into()) }
    }
}
