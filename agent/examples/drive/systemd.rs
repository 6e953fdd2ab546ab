//! A rich container.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::driver::{Driver, Result, check, read_all};
use crate::spec::spec;

impl Driver {
    pub async fn systemd(&self) -> Result<()> {
        self.guest().await?;
        let mut spec = spec(&["/sbin/init"]);
        spec["process"]["env"] = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
        let terminal = std::env::args().any(|arg| arg == "tty");
        spec["process"]["terminal"] = json!(terminal);
        let stdio = if terminal { self.terminal() } else { self.pipes() };
        let (_, streams) = self.create("sys", &spec, stdio).await?;
        self.start("sys").await?;
        if let Some(console) = streams.terminal {
            tokio::spawn(async move { println!("     console: {:?}", read_all(Some(console)).await.ok()) });
        }
        let begin = Instant::now();
        let mut number = 0;
        let state = loop {
            number += 1;
            let (state, _) =
                self.output("sys", &format!("q{number}"), &["systemctl", "is-system-running"]).await?;
            if state.starts_with("running")
                || state.starts_with("degraded")
                || begin.elapsed() > Duration::from_secs(240)
            {
                break state;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        };
        println!("     {} after {:?}", state.trim(), begin.elapsed());
        for (name, command) in [
            ("failed", "systemctl --failed --no-pager; systemctl list-units --no-pager --type=service"),
            ("log", "journalctl --no-pager -p warning -b | tail -40"),
        ] {
            let (out, _) = self.output("sys", name, &["sh", "-c", command]).await?;
            println!("{out}");
        }
        self.signal("sys", 37, false).await?;
        let exit = self.wait("sys", "").await?;
        println!("     SIGRTMIN+3: status {} signal {}", exit.exit_status, exit.signal);
        self.delete("sys").await?;
        check("systemd is running", state.trim() == "running")
    }
}
