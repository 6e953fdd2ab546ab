//! Other features of a specification.

use std::time::Instant;

use pouch_protocol::agent::*;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::driver::{Driver, Result, check, process, read_all, status_of, within};
use crate::spec::{process_json, spec};

impl Driver {
    pub async fn seccomp(&self) -> Result<()> {
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

    pub async fn features(&self) -> Result<()> {
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

    pub async fn more(&self) -> Result<()> {
        let (out, ..) =
            self.run("sig", &spec(&["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"]), b"").await?;
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
        Ok(())
    }

    pub async fn execs(&self) -> Result<()> {
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
}
