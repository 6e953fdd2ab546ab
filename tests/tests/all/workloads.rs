//! Real programs.

use std::time::Duration;

use pouch_tests::{Bundle, Container, eventually, eventually_every};
use serde_json::json;

/// An emulator is some twenty times slower than the machine.
const LONG: Duration = Duration::from_secs(1000);

#[test]
fn python_computes_threads_and_talks() {
    const PROGRAM: &str = r#"
import hashlib, json, os, socket, sqlite3, subprocess, tempfile, threading
server = socket.create_server(("127.0.0.1", 0))
def serve():
    connection, _ = server.accept()
    data = b"".join(iter(lambda: connection.recv(65536), b""))
    connection.sendall(hashlib.sha256(data).hexdigest().encode())
    connection.close()
threading.Thread(target=serve).start()
client = socket.create_connection(server.getsockname())
data = os.urandom(3_000_000)
client.sendall(data); client.shutdown(socket.SHUT_WR)
assert client.recv(100).decode() == hashlib.sha256(data).hexdigest()
with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
    with sqlite3.connect(folder + "/db") as database:
        database.execute("create table t (a)")
        database.executemany("insert into t values (?)", [(i,) for i in range(1000)])
    assert sqlite3.connect(folder + "/db").execute("select sum(a) from t").fetchone() == (499500,)
assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
children = [os.fork() or os._exit(i) for i in range(5)]
assert sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in children) == [0, 1, 2, 3, 4]
print(json.dumps({"ok": True}))
"#;
    let bundle = Bundle::new("python").args(["python3", "-c", PROGRAM]);
    assert_eq!(bundle.run_invocation(&[]).within(LONG).run().ok(), "{\"ok\": true}");
}

#[test]
fn redis_serves_its_benchmark() {
    let bundle = Bundle::new("redis")
        .args(["redis-server", "--protected-mode", "no", "--dir", "/data"])
        .set("/process/cwd", json!("/data"));
    let container = bundle.start();
    let ping = || container.exec(&["redis-cli", "ping"]);
    eventually("redis answers", || ping().text() == "PONG");
    let arguments =
        ["redis-benchmark", "-q", "-n", "2000", "-c", "10", "-t", "ping,set,get,lpush", "-d", "200"];
    let report = container.exec_invocation(&[], &arguments).within(LONG).run().ok();
    for test in ["PING", "SET", "GET", "LPUSH"] {
        assert!(report.contains(test) && report.contains("requests per second"), "{report}");
    }
    assert_eq!(container.exec(&["redis-cli", "set", "a", "b"]).ok(), "OK");
    assert_eq!(container.exec(&["redis-cli", "save"]).ok(), "OK");
    let pid = container.pid();
    container.kill("TERM");
    assert_eq!(container.reap(pid), 0, "redis ends in peace: {}", container.stdout());
    assert!(container.bundle.rootfs().join("data/dump.rdb").exists());
}

/// It takes minutes in an emulator. The tests of engines have a database too.
mod postgres_long {
    #[test]
    fn it_serves_its_benchmark() {
        super::postgres();
    }
}

fn postgres() {
    let bundle = Bundle::new("postgres")
        .args(["postgres-entrypoint", "postgres"])
        .push("/process/env", json!("PGDATA=/var/lib/postgresql/data"))
        .push("/process/env", json!("LANG=C.UTF-8"));
    let container = bundle.start();
    let user = user(&container);
    let run = |script: &str| {
        let script = format!("export PATH=$PATH:$(echo /usr/lib/postgresql/*/bin); {script}");
        container.exec_invocation(&["-u", &user], &["sh", "-c", &script]).within(LONG).run()
    };
    // To ask costs as much as a part of making the cluster, which takes minutes in an emulator.
    eventually_every(Duration::from_secs(5), "postgres answers", || {
        run("psql -d postgres -Atc 'select 1'").text() == "1"
    });
    run("createdb bench && pgbench -q -i -s 1 bench").ok();
    let report = run("pgbench -c 2 -j 2 -T 60 bench").ok();
    assert!(report.contains("number of failed transactions: 0"), "{report}");
    let history: u64 = run("psql -d bench -Atc 'select count(*) from pgbench_history'").ok().parse().unwrap();
    assert!(history > 0, "{report}");
    let pid = container.pid();
    container.kill("INT");
    assert_eq!(container.reap(pid), 0, "postgres ends in peace: {}", container.stderr());
}

/// The number of the user postgres in the image.
fn user(container: &Container) -> String {
    container.sh("echo $(id -u postgres):$(id -g postgres)")
}

#[test]
fn systemd_reaches_running_without_privileges() {
    pouch_tests::vm_only!();
    // No more than `pouch-vm spec` writes, but for the program and the image's own variable.
    let bundle =
        Bundle::new("debian-systemd").args(["/sbin/init"]).push("/process/env", json!("container=docker"));
    let container = bundle.start();
    let pid = container.pid();
    let state = || container.exec(&["systemctl", "is-system-running"]);
    let over = ["running", "degraded", "maintenance", "stopping"];
    eventually("systemd has started everything", || over.contains(&state().text().as_str()));
    let failed = container.exec(&["systemctl", "--no-pager", "list-units", "--failed", "--all"]).text();
    assert_eq!(state().text(), "running", "{failed}\n{}", container.stdout());
    assert_eq!(container.exec(&["systemctl", "is-active", "ssh", "cron"]).text(), "active\nactive");
    assert_eq!(container.sh("cat /proc/1/comm"), "systemd");
    assert!(container.sh("ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null").contains("ssh-ed25519"));
    container.kill("SIGRTMIN+3");
    let status = container.reap(pid);
    assert!([0, 129, 130, 137, 143].contains(&status), "systemd halts: {status}");
}

#[test]
fn nginx_serves_pages() {
    let container = Bundle::new("nginx").args(["nginx", "-g", "daemon off;"]).start();
    let fetch = "exec 3<>/dev/tcp/127.0.0.1/80 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
    let get = || container.exec(&["bash", "-c", fetch]);
    eventually("nginx answers", || get().text().starts_with("HTTP/1.1 200 OK"));
    let pid = container.pid();
    container.kill("QUIT");
    assert_eq!(container.reap(pid), 0);
}
