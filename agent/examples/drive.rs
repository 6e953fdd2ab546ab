//! Drives the agent of a booted guest from its host, and checks what comes back:
//!
//!     drive CID            all checks; needs a disk with the serial "rootfs" that holds a
//!                          busybox root file system in ext4
//!     drive CID systemd    boots a rich container from the same disk
//!
//! It is for trying the agent without a VMM of ours, under QEMU with vhost-vsock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pouch_protocol::agent::*;
use pouch_protocol::agent_ttrpc::AgentClient;
use pouch_protocol::{AGENT_PORT, STREAM_PORT};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_vsock::{VsockAddr, VsockStream};
use ttrpc::r#async::Client;
use ttrpc::context::{Context, with_timeout};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

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

fn within(seconds: i64) -> Context {
    with_timeout(seconds * 1_000_000_000)
}

struct Driver {
    cid: u32,
    client: AgentClient,
    tokens: AtomicU64,
}

/// The host's ends of a process's streams.
#[derive(Default)]
struct Streams {
    stdin: Option<VsockStream>,
    stdout: Option<VsockStream>,
    stderr: Option<VsockStream>,
    terminal: Option<VsockStream>,
}

static FAILURES: AtomicU64 = AtomicU64::new(0);

/// Notes one check; the others go on.
fn check(what: &str, good: bool) -> Result<()> {
    println!("{} {what}", if good { "ok  " } else { "FAIL" });
    FAILURES.fetch_add(u64::from(!good), Ordering::Relaxed);
    Ok(())
}

impl Driver {
    async fn connect(cid: u32) -> Result<Self> {
        let start = Instant::now();
        let client = loop {
            match Client::connect(&format!("vsock://{cid}:{AGENT_PORT}")).await {
                Ok(client) => break client,
                Err(error) if start.elapsed() > Duration::from_secs(120) => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        Ok(Self {
            cid,
            client: AgentClient::new(client),
            tokens: AtomicU64::new(1 + u64::from(std::process::id()) * 1000),
        })
    }

    fn token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    async fn stream(&self, token: u64) -> Result<Option<VsockStream>> {
        if token == 0 {
            return Ok(None);
        }
        let mut stream = VsockStream::connect(VsockAddr::new(self.cid, STREAM_PORT)).await?;
        stream.write_all(&token.to_le_bytes()).await?;
        Ok(Some(stream))
    }

    async fn streams(&self, stdio: &Stdio) -> Result<Streams> {
        Ok(Streams {
            stdin: self.stream(stdio.stdin_token).await?,
            stdout: self.stream(stdio.stdout_token).await?,
            stderr: self.stream(stdio.stderr_token).await?,
            terminal: self.stream(stdio.terminal_token).await?,
        })
    }

    fn pipes(&self) -> Stdio {
        Stdio {
            stdin_token: self.token(),
            stdout_token: self.token(),
            stderr_token: self.token(),
            ..Default::default()
        }
    }

    fn terminal(&self) -> Stdio {
        Stdio { terminal: true, terminal_token: self.token(), rows: 33, columns: 101, ..Default::default() }
    }

    async fn create(&self, id: &str, spec: &Value, stdio: Stdio) -> Result<(u32, Streams)> {
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            spec: spec.to_string().into_bytes(),
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        };
        let pid = self.client.create_container(within(60), &request).await?.pid;
        Ok((pid, self.streams(&stdio).await?))
    }

    async fn start(&self, id: &str) -> ttrpc::Result<Empty> {
        self.client.start_container(within(60), &container(id)).await
    }

    async fn delete(&self, id: &str) -> ttrpc::Result<Empty> {
        self.client.delete_container(within(60), &container(id)).await
    }

    async fn exec(&self, id: &str, exec: &str, process: &Value, stdio: Stdio) -> Result<Streams> {
        let request = ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            process: process.to_string().into_bytes(),
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        };
        self.client.exec_process(within(60), &request).await?;
        self.streams(&stdio).await
    }

    async fn wait(&self, id: &str, exec: &str) -> Result<WaitProcessResponse> {
        Ok(self.client.wait_process(within(120), &process(id, exec)).await?)
    }

    /// Runs one container to its end; returns what it wrote and how it ended.
    async fn run(
        &self,
        id: &str,
        spec: &Value,
        input: &[u8],
    ) -> Result<(String, String, WaitProcessResponse)> {
        let (_, mut streams) = self.create(id, spec, self.pipes()).await?;
        self.start(id).await?;
        if let Some(mut stdin) = streams.stdin.take() {
            stdin.write_all(input).await?;
            stdin.shutdown(std::net::Shutdown::Write)?;
        }
        let (out, err) = tokio::join!(read_all(streams.stdout), read_all(streams.stderr));
        let exit = self.wait(id, "").await?;
        self.delete(id).await?;
        Ok((out?, err?, exit))
    }

    async fn output(&self, id: &str, exec: &str, args: &[&str]) -> Result<(String, WaitProcessResponse)> {
        let streams = self.exec(id, exec, &process_json(args), self.pipes()).await?;
        drop(streams.stdin);
        let out = read_all(streams.stdout).await?;
        Ok((out, self.wait(id, exec).await?))
    }

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
            ("network", self.network().await),
        ] {
            if let Err(error) = result {
                check(&format!("{name}: {error}"), false)?;
            }
        }
        let failures = FAILURES.load(Ordering::Relaxed);
        println!("{failures} checks failed");
        if failures == 0 { Ok(()) } else { Err("not every check passed".into()) }
    }

    async fn guest(&self) -> Result<()> {
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

    async fn plain(&self) -> Result<()> {
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

    async fn failures(&self) -> Result<()> {
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

    async fn long_running(&self) -> Result<()> {
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
        let more =
            UpdateContainerRequest { resources: br#"{"memory":{"limit":134217728}}"#.to_vec(), ..update };
        self.client.update_container(within(30), &more).await?;
        self.signal("long", libc::SIGTERM, false).await?;
        let exit = self.wait("long", "").await?;
        check("a signal with a trap", exit.exit_status == 7 && exit.signal == 0)?;
        check("waiting again gives the same", self.wait("long", "").await? == exit)?;
        self.delete("long").await?;
        check("it is gone", self.wait("long", "").await.is_err())
    }

    async fn signal(&self, id: &str, signal: i32, all: bool) -> ttrpc::Result<Empty> {
        let request = SignalProcessRequest {
            container_id: id.to_owned(),
            signal: signal as u32,
            all,
            ..Default::default()
        };
        self.client.signal_process(within(30), &request).await
    }

    async fn terminals(&self) -> Result<()> {
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

    async fn seccomp(&self) -> Result<()> {
        let mut seccomp =
            spec(&["sh", "-c", "mkdir /tmp/x; echo $?; grep Seccomp: /proc/self/status; sleep 100"]);
        seccomp["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
        });
        let (_, mut streams) = self.create("sec", &seccomp, self.pipes()).await?;
        self.start("sec").await?;
        let mut text = vec![0; 13];
        streams.stdout.as_mut().ok_or("stdout")?.read_exact(&mut text).await?;
        check("seccomp on the first process", text == b"1\nSeccomp:\t2\n")?;
        let (out, _) = self.output("sec", "e", &["sh", "-c", "mkdir /tmp/y; echo $?"]).await?;
        check("seccomp on a later process", out == "1\n")?;
        let (out, _) = self.output("sec", "f", &["cat", "/proc/self/oom_score_adj"]).await?;
        check("the agent's oom score is not inherited", out == "0\n")?;
        self.signal("sec", libc::SIGKILL, true).await?;
        check("killed", self.wait("sec", "").await?.exit_status == 137)?;
        self.delete("sec").await?;
        Ok(())
    }

    async fn features(&self) -> Result<()> {
        let mut user = spec(&[
            "sh",
            "-c",
            "cat /proc/self/uid_map; id -u; touch /tmp/f; ls -ln /tmp/f; echo x >/dev/stdout",
        ]);
        user["linux"]["namespaces"].as_array_mut().ok_or("namespaces")?.push(json!({"type": "user"}));
        user["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
        user["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
        let (out, err, exit) = self.run("userns", &user, b"").await?;
        println!("     user namespace: {out:?} {err:?} {}", exit.exit_status);
        check("a user namespace", exit.exit_status == 0 && out.ends_with("x\n"))?;

        let mut net = spec(&[
            "sh",
            "-c",
            "ip -o link | wc -l; ip link show lo; cat /proc/sys/kernel/shmmax /proc/sys/vm/max_map_count",
        ]);
        net["linux"]["namespaces"].as_array_mut().ok_or("namespaces")?.push(json!({"type": "network"}));
        net["linux"]["sysctl"] = json!({"kernel.shmmax": "4242", "vm.max_map_count": "300000"});
        let (out, ..) = self.run("net", &net, b"").await?;
        check(
            &format!("own network, sysctls: {out:?}"),
            out.contains("LOOPBACK,UP") && out.ends_with("4242\n300000\n"),
        )?;

        let mut odd = spec(&[
            "sh",
            "-c",
            "cat /proc/uptime; cat /proc/self/personality; cat /proc/self/oom_score_adj; mount | grep -c ' /tmp '; cat /proc/keys; touch /proc/sys/x; ulimit -n",
        ]);
        odd["process"]["oomScoreAdj"] = json!(-500);
        odd["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 100}]);
        odd["linux"]["namespaces"].as_array_mut().ok_or("namespaces")?.push(json!({"type": "time"}));
        odd["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1000000}});
        odd["linux"]["personality"] = json!({"domain": "LINUX32"});
        odd["linux"]["maskedPaths"] = json!(["/proc/keys"]);
        odd["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
        odd["root"]["readonly"] = json!(true);
        let (out, err, _) = self.run("odd", &odd, b"").await?;
        println!("     {out:?} {err:?}");
        check(
            "time offset, personality, scores, rlimits",
            out.starts_with("10000") && out.ends_with("00000008\n-500\n1\n99\n"),
        )?;
        Ok(())
    }

    async fn more(&self) -> Result<()> {
        let (out, ..) =
            self.run("sig", &spec(&["sh", "-c", "grep -E 'Sig(Ign|Blk)' /proc/self/status"]), b"").await?;
        let zero = "0000000000000000";
        check(&format!("no signal is ignored or blocked: {out:?}"), out.matches(zero).count() == 2)?;

        let mut copied = spec(&[
            "sh",
            "-c",
            "cat /etc/passwd | head -1; echo x > /etc/new && ls /etc/new; stat -f -c %T /etc",
        ]);
        copied["mounts"].as_array_mut().ok_or("mounts")?.push(
            json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=1m", "nosuid"]}),
        );
        let (out, err, _) = self.run("copyup", &copied, b"").await?;
        check(
            &format!("tmpcopyup: {out:?} {err:?}"),
            out.starts_with("root:") && out.ends_with("/etc/new\ntmpfs\n"),
        )?;

        let mut shared = spec(&["sh", "-c", "grep -E 'VmRSS|VmHWM|Threads' /proc/1/status"]);
        shared["linux"]["namespaces"] = json!([{"type": "mount"}]);
        shared["hostname"] = Value::Null;
        let (out, err, _) = self.run("shared", &shared, b"").await?;
        check(&format!("without namespaces; the agent has {out:?} {err:?}"), out.contains("VmRSS"))?;

        let (_, _streams) = self.create("two", &spec(&["sleep", "1000"]), self.pipes()).await?;
        self.start("two").await?;
        let mut shell = process_json(&["sh"]);
        shell["terminal"] = json!(true);
        shell["user"] = json!({"uid": 1000, "gid": 1000});
        shell["consoleSize"] = json!({"height": 20, "width": 70});
        let mut streams =
            self.exec("two", "tty", &shell, Stdio { rows: 0, columns: 0, ..self.terminal() }).await?;
        let terminal = streams.terminal.as_mut().ok_or("terminal")?;
        terminal.write_all(b"PS1=; stty size; echo again > /dev/stdout; id -u; exit 6\n").await?;
        let out = read_all(streams.terminal).await?;
        check(
            &format!("a terminal for a later process: {out:?}"),
            out.contains("20 70\r\nagain\r\n1000\r\n"),
        )?;
        check("its status", self.wait("two", "tty").await?.exit_status == 6)?;
        let mut streams = self.exec("two", "cat", &process_json(&["cat"]), self.pipes()).await?;
        streams.stdin.as_mut().ok_or("stdin")?.write_all(b"abc").await?;
        self.client.close_stdin(within(30), &process("two", "cat")).await?;
        check("CloseStdin", read_all(streams.stdout).await? == "abc")?;
        let error = status_of(self.exec("two", "no", &process_json(&["nosuch"]), self.pipes()).await)?;
        check(
            &format!("a later command that is missing: {}", error.message),
            error.message == "exec: \"nosuch\": executable file not found in $PATH",
        )?;
        let streams =
            self.exec("two", "yes", &process_json(&["sh", "-c", "yes; echo $? >&2"]), self.pipes()).await?;
        drop(streams.stdout);
        let err = read_all(streams.stderr).await?;
        check(&format!("a broken stream is a closed pipe: {err:?}"), err == "141\n")?;
        let begin = Instant::now();
        for number in 0..20 {
            let (out, exit) = self.output("two", &format!("n{number}"), &["echo", "hi"]).await?;
            if out != "hi\n" || exit.stdout_bytes != 3 || exit.exit_status != 0 {
                check(&format!("exec {number}: {out:?} {exit:?}"), false)?;
            }
        }
        println!("     20 execs took {:?}", begin.elapsed());
        self.delete("two").await?;
        check("deleting a running container", self.wait("two", "").await.is_err())?;
        Ok(())
    }

    async fn network(&self) -> Result<()> {
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

    async fn systemd(&self) -> Result<()> {
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

fn container(id: &str) -> ContainerRequest {
    ContainerRequest { container_id: id.to_owned(), ..Default::default() }
}

fn process(id: &str, exec: &str) -> ProcessRequest {
    ProcessRequest { container_id: id.to_owned(), exec_id: exec.to_owned(), ..Default::default() }
}

async fn read_all(stream: Option<VsockStream>) -> Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut bytes)).await??;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn code_of<T>(result: &ttrpc::Result<T>) -> Option<ttrpc::Code> {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => Some(status.code()),
        _ => None,
    }
}

fn status_of<T>(result: Result<T>) -> Result<ttrpc::Status> {
    match result {
        Ok(_) => Err("it was accepted".into()),
        Err(error) => match error.downcast_ref::<ttrpc::Error>() {
            Some(ttrpc::Error::RpcStatus(status)) => Ok(status.clone()),
            _ => Err(error),
        },
    }
}

fn process_json(args: &[&str]) -> Value {
    const CAPABILITIES: &[&str] = &[
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
        "CAP_SYS_ADMIN",
        "CAP_NET_ADMIN",
        "CAP_SYS_RESOURCE",
    ];
    json!({
        "args": args, "cwd": "/", "user": {"uid": 0, "gid": 0},
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=1=2"],
        "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES},
    })
}

/// Like Docker's default specification.
fn spec(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.2.0", "hostname": "box", "root": {"path": ROOT}, "process": process_json(args),
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["rprivate", "mode=1777"]},
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "ipc"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore", "/sys/firmware"], "readonlyPaths": ["/proc/bus", "/proc/sys"],
        },
    })
}
