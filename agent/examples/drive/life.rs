//! Containers that run for a while: signals, limits, terminals.

use std::time::{Duration, Instant};

use pouch_protocol::agent::*;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ttrpc::context::with_timeout;

use crate::driver::{Driver, Result, check, container, read_all, status_of, within};
use crate::spec::spec;

impl Driver {
    pub async fn long_running(&self) -> Result<()> {
        let mut long =
            spec(&["sh", "-c", "trap 'echo term; exit 7' TERM; echo up; while :; do sleep 0.1; done"]);
        long["linux"]["resources"] = json!({
            "memory": {"limit": 67108864}, "pids": {"limit": 50}, "cpu": {"shares": 512},
            "devices": [{"allow": false, "access": "rwm"}],
        });
        let (pid, mut streams) = self.create("long", &long, self.pipes()).await?;
        check("a second container with the id is refused", {
            let error = status_of(self.create("long", &long, self.pipes()).await)?;
            error.code() == ttrpc::Code::ALREADY_EXISTS
        })?;
        let early = self.output("long", "early", &["true"]).await;
        check("no exec before the start", early.is_err())?;
        self.start("long").await?;
        let mut line = [0; 3];
        streams.stdout.as_mut().ok_or("stdout")?.read_exact(&mut line).await?;
        check("it runs", &line == b"up\n")?;
        let begin = Instant::now();
        let (out, exit) = self.output("long", "e1", &["sh", "-c", "cat /proc/self/cgroup; exit 9"]).await?;
        println!("     exec took {:?}", begin.elapsed());
        check("exec", out == "0::/\n" && exit.exit_status == 9)?;
        let (out, _) = self
            .output(
                "long",
                "e2",
                &["sh", "-c", "mknod /tmp/d b 254 0; cat /tmp/d 2>&1; cat /dev/null; echo $?"],
            )
            .await?;
        check(&format!("device rules: {out:?}"), out.contains("not permitted") && out.ends_with("0\n"))?;
        let processes = self.client.list_processes(within(30), &container("long")).await?.processes;
        check(
            "processes are listed",
            processes.iter().any(|p| p.pid == pid && p.command.starts_with("sh -c trap")),
        )?;
        self.client.pause_container(within(30), &container("long")).await?;
        check("no exec while paused", self.output("long", "e3", &["true"]).await.is_err())?;
        self.client.resume_container(within(30), &container("long")).await?;
        let stats = self.client.container_stats(within(30), &container("long")).await?;
        check(
            "limits are set",
            stats.memory_max == 67108864 && stats.pids_max == 50 && stats.memory_current > 0,
        )?;
        let update = UpdateContainerRequest {
            container_id: "long".into(),
            resources: br#"{"pids":{"limit":60},"memory":{"limit":33554432}}"#.to_vec(),
            ..Default::default()
        };
        self.client.update_container(within(30), &update).await?;
        let stats = self.client.container_stats(within(30), &container("long")).await?;
        check("limits are changed", stats.memory_max == 33554432 && stats.pids_max == 60)?;
        self.out_of_memory().await?;
        self.signal("long", libc::SIGTERM, false).await?;
        let exit = self.wait("long", "").await?;
        check("a signal with a trap", exit.exit_status == 7 && exit.signal == 0)?;
        check("waiting again gives the same", self.wait("long", "").await? == exit)?;
        self.delete("long").await?;
        check("it is gone", self.wait("long", "").await.is_err())
    }

    async fn out_of_memory(&self) -> Result<()> {
        let mut events = self.client.watch_events(with_timeout(0), &Empty::new()).await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (_, exit) = self
            .output("long", "oom", &["sh", "-c", "dd if=/dev/zero of=/dev/shm/x bs=1M count=60; exit $?"])
            .await?;
        println!(
            "     out of memory: status {}, signal {}, {}",
            exit.exit_status, exit.signal, exit.oom_killed
        );
        check("the out-of-memory killer is told of", exit.oom_killed)?;
        let event = tokio::time::timeout(Duration::from_secs(10), events.recv()).await??;
        let kill = event.is_some_and(|event| event.kind == event::Kind::OUT_OF_MEMORY.into());
        check("the first event is the kill", kill)?;
        let more = UpdateContainerRequest {
            container_id: "long".into(),
            resources: br#"{"memory":{"limit":134217728}}"#.to_vec(),
            ..Default::default()
        };
        self.client.update_container(within(30), &more).await?;
        Ok(())
    }

    pub async fn terminals(&self) -> Result<()> {
        let mut tty =
            spec(&["sh", "-c", "stty size; tty; ls -l /dev/console; read x; echo got $x; stty size; exit 4"]);
        tty["process"]["terminal"] = json!(true);
        let (_, streams) = self.create("tty", &tty, self.terminal()).await?;
        let mut terminal = streams.terminal.ok_or("no terminal")?;
        self.start("tty").await?;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let resize =
            ResizeTerminalRequest { container_id: "tty".into(), rows: 44, columns: 55, ..Default::default() };
        self.client.resize_terminal(within(30), &resize).await?;
        terminal.write_all(b"line\n").await?;
        let out = read_all(Some(terminal)).await?;
        println!("     {out:?}");
        check("the terminal's size", out.starts_with("33 101\r\n/dev/pts/0\r\n") && out.contains("44 55"))?;
        check("its input", out.contains("line\r\ngot line\r\n"))?;
        let exit = self.wait("tty", "").await?;
        check("its end", exit.exit_status == 4 && exit.stdout_bytes == out.len() as u64)?;
        self.delete("tty").await?;
        Ok(())
    }
}
