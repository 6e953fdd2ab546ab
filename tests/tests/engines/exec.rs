//! `exec`.

use pouch_tests::engine::eventually;
use pouch_tests::{Engine, HANG, engine_tests, long};

engine_tests! {
    both: streams_and_status;
    both_long: who_and_where, detached, a_process_that_is_killed, privileges, errors;
    docker_28: streams_and_status;
    docker_long: many_at_once;
    docker_28_long: who_and_where, detached, errors;
    podman_long: many_at_once;
}

fn streams_and_status(engine: Engine) {
    let container = engine.start_idle(&[]);
    let output = container.exec(&[], &["sh", "-c", "echo out; echo error >&2; exit 7"]);
    output.fails(7);
    assert_eq!((output.text().as_str(), output.errors().as_str()), ("out", "error"));
    let output =
        container.exec_invocation(&["-i"], &["sh", "-c", "wc -c; exit 8"]).stdin("x".repeat(300_000)).run();
    output.fails(8);
    assert_eq!(output.text(), "300000");
    // Without -i there is no input.
    assert_eq!(container.exec_invocation(&[], &["wc", "-c"]).stdin("lost").run().ok(), "0");
    let kinds = |options: &[&str]| {
        let look = ["sh", "-c", "readlink /proc/self/fd/0 | sed 's/[^a-z:/].*//'"];
        container.exec_invocation(options, &look).stdin("").run().ok()
    };
    assert!(kinds(&[]).ends_with("/null"), "{}", kinds(&[]));
    assert_eq!(kinds(&["-i"]), "pipe:");
    let output = container.exec(&[], &["sh", "-c", "head -c 1000000 /dev/zero; printf end"]);
    assert_eq!((output.status, output.stdout.len()), (0, 1_000_003));
}

fn who_and_where(engine: Engine) {
    let container = engine.start_idle(&["-e", "FROM=run", "-w", "/var"]);
    assert_eq!(
        container.sh("echo $FROM $TOO; pwd; id -un; cat /proc/1/comm"),
        "run \n/var\nroot\nsh".replace(" \n", "\n")
    );
    let options = ["-u", "nobody:daemon", "-w", "/tmp", "-e", "TOO=a b", "-e", "FROM=exec"];
    let script = "echo $FROM $TOO; pwd; id -u; id -g";
    assert_eq!(container.exec(&options, &["sh", "-c", script]).ok(), "exec a b\n/tmp\n65534\n1");
    assert_eq!(container.exec(&["-u", "77"], &["id", "-u"]).ok(), "77");
}

fn detached(engine: Engine) {
    let container = engine.start_idle(&[]);
    container.exec(&["-d"], &["sh", "-c", "sleep 1; echo from-exec >/result; sleep 1000"]).ok();
    eventually("the detached process writes", || {
        container.exec(&[], &["cat", "/result"]).text() == "from-exec"
    });
    // It ends with the container.
    container.ok(&["stop"]);
    assert_eq!(container.status(), "exited");
}

fn privileges(engine: Engine) {
    let container = engine.start_idle(&["--cap-drop", "NET_RAW"]);
    let effective = |options: &[&str]| {
        let text = container.exec(options, &["grep", "CapEff", "/proc/self/status"]).ok();
        u64::from_str_radix(text.split_whitespace().last().unwrap(), 16).unwrap()
    };
    let (raw, admin, chown) = (1 << 13, 1 << 21, 1);
    let plain = effective(&["--privileged=false"]);
    assert_eq!(plain & (raw | admin | chown), chown, "{plain:x}");
    let full = effective(&["--privileged"]);
    assert_eq!(full & (raw | admin | chown), raw | admin | chown, "{full:x}");
    let nobody = effective(&["-u", "nobody"]);
    assert_eq!(nobody, 0, "{nobody:x}");
}

fn errors(engine: Engine) {
    let container = engine.start_idle(&[]);
    // Docker 26 does not tell one from the other here.
    let not_found = if engine == Engine::Docker { 126 } else { 127 };
    for (options, program, status, word) in [
        (&[][..], "no-such-program", not_found, "not found"),
        (&[], "/etc/passwd", 126, "denied"),
        (&["-w", "/no/such/folder"], "true", not_found, "/no/such/folder"),
    ] {
        let output = container.exec(options, &[program]);
        // Docker gives what exec says of a command on standard output.
        let text = output.text() + &output.errors();
        assert_eq!(output.status, status, "{output}");
        assert!(text.to_lowercase().contains(word), "no {word:?}: {output}");
    }
    let output = container.exec(&["-u", "stranger"], &["true"]);
    assert!(output.status != 0 && (output.text() + &output.errors()).contains("stranger"), "{output}");
    container.ok(&["pause"]);
    container.exec(&[], &["true"]).fails_naming(&[if engine.is_docker() { "paused" } else { "improper" }]);
    container.ok(&["unpause"]);
    assert_eq!(container.sh("echo unharmed"), "unharmed");
    container.ok(&["stop"]);
    container.exec(&[], &["true"]).fails_naming(&["running"]);
}

fn a_process_that_is_killed(engine: Engine) {
    let container = engine.start_idle(&[]);
    assert_eq!(container.exec(&[], &["sh", "-c", "kill -9 $$"]).status, 137);
    let client = container.exec_invocation(&[], &["sleep", "987"]).into_command().spawn();
    let mut client = client.unwrap();
    eventually("the process runs", || {
        container.exec(&[], &["pgrep", "-x", "sleep", "-a"]).text().contains("987")
    });
    container.sh("pkill -TERM -f '^sleep 987'");
    assert_eq!(pouch_tests::invocation::code(client.wait().unwrap()), 143);
}

/// A hundred at once take too long in an emulator to be in each run, and each of Podman's takes three large
/// programs.
fn many_at_once(engine: Engine) {
    let container = engine.start_idle(&[]);
    std::thread::scope(|scope| {
        let run = |number: i32| {
            let script = format!("echo {number}; sleep 1; exit {number}");
            let invocation = container.exec_invocation(&[], &["sh", "-c", &script]);
            let output = invocation.within(6 * HANG).run();
            output.fails(number);
            assert_eq!(output.text(), number.to_string());
        };
        let ordinary = if engine.is_docker() { 20 } else { 6 };
        for number in 1..=if long() { 100 } else { ordinary } {
            scope.spawn(move || run(number));
        }
    });
    assert_eq!(container.sh("pgrep -c -x sleep"), "1", "nothing of them is left");
}
