//! The network.

use pouch_protocol::agent::*;

use crate::driver::{Driver, Result, check, within};
use crate::spec::spec;

impl Driver {
    pub async fn network(&self) -> Result<()> {
        let interface = Interface {
            name: "eth0".into(),
            mac: "02:42:ac:11:00:02".into(),
            mtu: 1400,
            addresses: vec!["172.17.0.2/16".into(), "fd00::2/64".into()],
            ..Default::default()
        };
        let request = SetNetworkRequest {
            interfaces: vec![interface],
            routes: vec![
                Route { gateway: "172.17.0.1".into(), interface: "eth0".into(), ..Default::default() },
                Route {
                    gateway: "fd00::1".into(),
                    interface: "eth0".into(),
                    ipv6: true,
                    ..Default::default()
                },
                Route {
                    destination: "10.9.0.0/16".into(),
                    gateway: "169.254.1.1".into(),
                    interface: "eth0".into(),
                    onlink: true,
                    metric: 77,
                    ..Default::default()
                },
                Route {
                    destination: "169.254.2.2/32".into(),
                    interface: "eth0".into(),
                    scope: 253,
                    source: "172.17.0.2".into(),
                    ..Default::default()
                },
            ],
            neighbors: vec![Neighbor {
                address: "172.17.0.1".into(),
                interface: "eth0".into(),
                mac: "02:42:ac:11:00:01".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        for round in 0..2 {
            if let Err(error) = self.client.set_network(within(30), &request).await {
                check(&format!("network, round {round}: {error}"), false)?;
            }
        }
        let script = "ip addr show eth0; ip route; ip -6 route; ip neigh";
        let (out, ..) = self.run("net0", &spec(&["sh", "-c", script]), b"").await?;
        println!("     {}", out.trim().replace('\n', "\n     "));
        for part in [
            "mtu 1400",
            "172.17.0.2/16",
            "fd00::2/64",
            "default via 172.17.0.1 dev eth0",
            "default via fd00::1 dev eth0",
            "10.9.0.0/16 via 169.254.1.1 dev eth0",
            "169.254.2.2 dev eth0",
            "02:42:ac:11:00:01",
        ] {
            check(part, out.contains(part))?;
        }
        Ok(())
    }
}
