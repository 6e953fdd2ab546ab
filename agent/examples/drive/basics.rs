//! The guest, simple containers, and what must fail.

use std::time::Instant;

use pouch_protocol::agent::*;
use serde_json::json;

use crate::ROOT;
use crate::driver::{Driver, Result, check, code_of, status_of, within};
use crate::spec::spec;

impl Driver {
    pub async fn guest(&self) -> Result<()> {
        let answer = self.client.check(within(30), &CheckRequest::new()).await?;
        println!(
            "     agent {}, kernel {}, ready {} µs after the kernel's start",
            answer.agent_version,
            answer.kernel_release,
            answer.ready_nanoseconds / 1000
        );
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        let request = SetupSandboxRequest {
            hostname: "driven".into(),
            time: Some(SetTimeRequest { nanoseconds: now.as_nanos() as i64, ..Default::default() }).into(),
            entropy: Some(AddEntropyRequest { data: vec![7; 64], ..Default::default() }).into(),
            cpus: Some(OnlineCpusRequest { count: 1, ..Default::default() }).into(),
            storages: vec![Storage {
                driver: "block".into(),
                source: "rootfs".into(),
                mount_point: ROOT.into(),
                filesystem: "ext4".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let answer = self.client.setup_sandbox(within(30), &request).await?;
        check("the sandbox is set up", answer.online_cpus == 1)?;
        let stats = self.client.guest_stats(within(30), &Empty::new()).await?;
        println!(
            "     memory {} KiB, available {} KiB",
            stats.memory_total >> 10,
            stats.memory_available >> 10
        );
        check("the guest counts its memory", stats.memory_available > 0)?;
        let again = MountStorageRequest {
            storage: Some(Storage {
                driver: "tmpfs".into(),
                mount_point: "/run/pouch/t".into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        self.client.mount_storage(within(30), &again).await?;
        let twice = self.client.mount_storage(within(30), &again).await;
        check(
            "a second mount in the same place is refused",
            code_of(&twice) == Some(ttrpc::Code::ALREADY_EXISTS),
        )?;
        let request = UnmountStorageRequest { mount_point: "/run/pouch/t".into(), ..Default::default() };
        self.client.unmount_storage(within(30), &request).await?;
        Ok(())
    }

    pub async fn plain(&self) -> Result<()> {
        let begin = Instant::now();
        let (out, err, exit) =
            self.run("echo", &spec(&["sh", "-c", "echo hello; echo oops >&2; exit 3"]), b"").await?;
        println!("     create to delete took {:?}", begin.elapsed());
        check(
            "stdout, stderr and status",
            (out.as_str(), err.as_str(), exit.exit_status) == ("hello\n", "oops\n", 3),
        )?;
        check("bytes are counted", (exit.stdout_bytes, exit.stderr_bytes) == (6, 5))?;
        let input: Vec<u8> = (0..3_000_000_u32).map(|i| b'a' + (i % 26) as u8).collect();
        let (out, _, exit) = self.run("cat", &spec(&["cat"]), &input[..200_000]).await?;
        check("cat gives back what it gets", out.as_bytes() == &input[..200_000] && exit.exit_status == 0)?;
        let (_, _, exit) = self.run("kill", &spec(&["sh", "-c", "kill -9 $$; sleep 5"]), b"").await?;
        // PID 1 of a namespace is immune to its own signals, so it sleeps and exits with 0.
        check("PID 1 cannot kill itself", exit.exit_status == 0)?;
        let (out, ..) = self
            .run("env", &spec(&["sh", "-c", "echo $HOME $A; pwd; id -u; hostname; cat /proc/1/comm"]), b"")
            .await?;
        check(&format!("environment, user and name: {out:?}"), out == "/root 1=2\n/\n0\nbox\ncat\n")?;
        let mut user =
            spec(&["sh", "-c", "id; echo again > /dev/stdout; echo $HOME; grep Cap /proc/self/status"]);
        user["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 63});
        let (out, ..) = self.run("user", &user, b"").await?;
        println!("     {}", out.replace('\n', "\n     "));
        check("another user", out.starts_with("uid=1000 gid=1001 groups=5(tty),6") && out.contains("again"))?;
        Ok(())
    }

    pub async fn failures(&self) -> Result<()> {
        for (command, code, text) in [
            ("nosuch", ttrpc::Code::NOT_FOUND, "exec: \"nosuch\": executable file not found in $PATH"),
            ("/etc", ttrpc::Code::PERMISSION_DENIED, "exec: \"/etc\": is a directory"),
            ("/etc/passwd", ttrpc::Code::PERMISSION_DENIED, "exec: \"/etc/passwd\": permission denied"),
            (
                "/no/such",
                ttrpc::Code::NOT_FOUND,
                "exec: \"/no/such\": stat /no/such: no such file or directory",
            ),
        ] {
            let error = status_of(self.create("bad", &spec(&[command]), self.pipes()).await)?;
            check(
                &format!("{command}: {:?} {}", error.code(), error.message),
                error.code() == code && error.message == text,
            )?;
        }
        let mut mount = spec(&["true"]);
        mount["mounts"]
            .as_array_mut()
            .ok_or("mounts")?
            .push(json!({"destination": "/x", "type": "ext9", "source": "none"}));
        let error = status_of(self.create("bad", &mount, self.pipes()).await)?;
        check(&format!("a bad mount: {}", error.message), error.message.contains("ENODEV"))?;
        let mut limits = spec(&["true"]);
        limits["linux"]["resources"] = json!({"memory": {"limit": 100, "swap": 50}});
        let error = status_of(self.create("bad", &limits, self.pipes()).await)?;
        check(
            &format!("bad limits: {}", error.message),
            error.message.starts_with("linux.resources.memory.swap: "),
        )?;
        self.delete("bad").await?;
        check("deleting nothing is fine", self.delete("never").await.is_ok())?;
        Ok(())
    }
}
