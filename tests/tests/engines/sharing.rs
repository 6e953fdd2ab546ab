//! Files that several containers and the host use at the same time: locks hold among all of them, and what one
//! writes the others see.

use std::fs::{self, OpenOptions};
use std::time::Duration;

use pouch_tests::engine::{EngineContainer, Thing, eventually};
use pouch_tests::{Engine, engine_tests};

engine_tests! {
    both_long: locks_hold_between_containers, locks_hold_against_the_host, a_lock_is_waited_for, a_file_that_stays_open,
        a_database_of_two_containers;
}

/// Two containers with a volume at `/data`.
fn two(engine: Engine) -> (Thing, EngineContainer, EngineContainer) {
    let volume = engine.volume();
    let option = format!("{}:/data", volume.name);
    let start = || engine.start(&["-v", &option], "python", &["sleep", "100000"]);
    let (one, other) = (start(), start());
    (volume, one, other)
}

fn python(container: &EngineContainer, script: &str) -> String {
    container.exec(&[], &["python3", "-c", script]).ok()
}

/// Takes locks of both kinds, says so, and has them until there is a file `/data/enough`.
const HOLD: &str = r#"
import fcntl, os, time
f = open("/data/flock", "w"); fcntl.flock(f, fcntl.LOCK_EX)
g = open("/data/fcntl", "w"); fcntl.lockf(g, fcntl.LOCK_EX, 10, 5)
open("/data/held", "w").close()
while not os.path.exists("/data/enough"): time.sleep(0.1)
os.unlink("/data/flock")
time.sleep(1000)"#;

/// Tells which locks can be had at once.
const TRY: &str = r#"
import fcntl
def can(name, call, *more):
    try:
        call(open("/data/" + name, "a+"), fcntl.LOCK_EX | fcntl.LOCK_NB, *more)
        return "yes"
    except BlockingIOError:
        return "no"
print(can("flock", fcntl.flock), can("fcntl", fcntl.lockf, 5, 0), can("fcntl", fcntl.lockf, 1, 14), can("fcntl", fcntl.lockf))"#;

fn locks_hold_between_containers(engine: Engine) {
    let (_volume, one, other) = two(engine);
    one.exec(&["--detach"], &["python3", "-c", HOLD]).ok();
    eventually("the locks are held", || other.exec(&[], &["test", "-e", "/data/held"]).status == 0);
    assert_eq!(python(&other, TRY), "no yes no no");
    assert_eq!(python(&one, TRY), "no yes no no");
    // The process that has them tells of itself in its own container.
    let who = r#"
import fcntl, struct
ask = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(open("/data/fcntl", "r+"), fcntl.F_GETLK, ask))
name = open(f"/proc/{pid}/cmdline").read().split("\0")[0] if pid > 0 else "another machine's"
print(kind == fcntl.F_WRLCK, start, length, name)"#;
    assert_eq!(python(&one, who), "True 5 10 python3");
    assert!(python(&other, who).starts_with("True 5 10 "));
    // With the process they go, and with its container.
    one.sh("pkill -9 -f '[d]ata/held'");
    eventually("the locks are free", || python(&other, TRY) == "yes yes yes yes");
    other.exec(&["--detach"], &["python3", "-c", HOLD]).ok();
    eventually("the locks are held", || python(&one, TRY) == "no yes no no");
    other.ok(&["kill"]);
    eventually("the locks are free", || python(&one, TRY) == "yes yes yes yes");
}

fn locks_hold_against_the_host(engine: Engine) {
    let (volume, one, _other) = two(engine);
    let path = volume.inspect("{{.Mountpoint}}") + "/flock";
    fs::write(&path, "").unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.lock().unwrap();
    assert!(python(&one, TRY).starts_with("no "));
    drop(file);
    assert!(python(&one, TRY).starts_with("yes "));
    one.exec(&["--detach"], &["python3", "-c", HOLD]).ok();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    // Not kept for longer than it takes to ask.
    let is_free = || file.try_lock().is_ok_and(|()| file.unlock().is_ok());
    eventually("the container has it", || !is_free());
    // A file without a name stays locked.
    one.sh("touch /data/enough; while [ -e /data/flock ]; do sleep 0.1; done");
    assert!(!is_free());
    one.sh("pkill -9 -f '[d]ata/held'");
    eventually("it is free", is_free);
}

fn a_lock_is_waited_for(engine: Engine) {
    let (_volume, one, other) = two(engine);
    one.exec(&["--detach"], &["python3", "-c", HOLD]).ok();
    eventually("the locks are held", || other.exec(&[], &["test", "-e", "/data/held"]).status == 0);
    let wait = |kind: &str, name: &str| {
        let script = format!(
            "import fcntl; f = open('/data/{kind}', 'w'); open('/data/{name}', 'w').close(); \
             fcntl.{call}(f, fcntl.LOCK_EX); open('/data/{name}.got', 'w').close()",
            call = if kind == "flock" { "flock" } else { "lockf" }
        );
        other.exec(&["--detach"], &["python3", "-c", &script]).ok();
        eventually("it waits", || other.exec(&[], &["test", "-e", &format!("/data/{name}")]).status == 0);
    };
    wait("flock", "first");
    wait("fcntl", "second");
    wait("fcntl", "third");
    // One that waits can be killed, and then nobody waits.
    other.sh("pkill -9 -f '[d]ata/third'");
    eventually("it is gone", || other.exec(&[], &["pgrep", "-f", "[d]ata/third"]).status != 0);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(other.sh("ls /data | grep -c got || true"), "0");
    one.sh("pkill -9 -f '[d]ata/held'");
    eventually("both get theirs", || {
        other.exec(&[], &["ls", "/data/first.got", "/data/second.got"]).status == 0
    });
    assert_eq!(other.sh("ls /data | grep -c third.got || true"), "0");
}

fn a_file_that_stays_open(engine: Engine) {
    let (volume, one, other) = two(engine);
    let path = volume.inspect("{{.Mountpoint}}") + "/page";
    fs::write(&path, "first ".repeat(2000)).unwrap();
    let watch = r#"
import os, time
f = os.open("/data/page", os.O_RDONLY)
log = open("/data/seen", "a", buffering=1)
last = None
while True:
    now = os.pread(f, 6, 6000).decode()
    if now != last: print(now, file=log)
    last = now
    time.sleep(0.2)"#;
    one.exec(&["--detach"], &["python3", "-c", watch]).ok();
    let seen = |text: &str| fs::read_to_string(path.replace("page", "seen")).is_ok_and(|seen| seen == text);
    eventually("it reads", || seen("first \n"));
    // In place, and as long as it was.
    python(&other, "f = open('/data/page', 'r+b'); f.seek(6000); f.write(b'second'); f.close()");
    eventually("it sees what another container wrote", || seen("first \nsecond\n"));
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(6000)).unwrap();
    std::io::Write::write_all(&mut file, b"third ").unwrap();
    eventually("it sees what the host wrote", || seen("first \nsecond\nthird \n"));
}

fn a_database_of_two_containers(engine: Engine) {
    let (_volume, one, other) = two(engine);
    let connect = "import sqlite3; db = sqlite3.connect('/data/db', timeout=300, isolation_level=None); ";
    python(
        &one,
        &format!("{connect}db.execute('create table t (n integer)'); db.execute('insert into t values (0)')"),
    );
    // Whoever reads an old page, or has no lock, loses a step.
    let count = format!(
        "{connect}
for _ in range(40):
    db.execute('begin immediate')
    n = db.execute('select n from t').fetchone()[0]
    db.execute('update t set n = ?', (n + 1,))
    db.execute('commit')"
    );
    std::thread::scope(|scope| {
        for container in [&one, &other] {
            scope.spawn(|| python(container, &count));
        }
    });
    let read = format!(
        "{connect}print(db.execute('select n from t').fetchone()[0], db.execute('pragma integrity_check').fetchone()[0])"
    );
    for container in [&one, &other] {
        assert_eq!(python(container, &read), "80 ok");
    }
}
