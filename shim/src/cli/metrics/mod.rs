//! `metrics`: counters of all VMs and containers for Prometheus, once or over HTTP.

mod collect;
mod serve;

use std::net::SocketAddr;

use clap::Args;

use super::{Global, Outcome, other, print};

#[derive(Args)]
pub struct Metrics {
    /// Serve the metrics at http://ADDRESS:PORT/metrics until killed, instead of printing them once. There is no
    /// authentication; use a loopback address, or one that only Prometheus reaches.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

impl Metrics {
    pub fn run(&self, global: &Global) -> Outcome {
        match self.listen {
            Some(address) => serve::serve(address, || collect::collect(&global.root)).map_err(other)?,
            None => print(&collect::collect(&global.root).map_err(other)?),
        }
        Ok(0)
    }
}
