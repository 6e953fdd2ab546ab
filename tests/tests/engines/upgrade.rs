//! The runtime is replaced by another build while containers run.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use pouch_tests::installation::{is_replaced, replace};
use pouch_tests::{Engine, EngineContainer, engine_tests, has_vm, invocation, processes};

engine_tests! {
    both_long: containers_of_the_build_before;
}

/// Whether a container's processes on the host are of the build before. Without a VM there are none.
#[track_caller]
fn is_of_the_build_before(container: &EngineContainer, expected: bool) {
    if has_vm() {
        let host = container.pid();
        for pid in processes::vmm_of(host).into_iter().chain([host]) {
            assert_eq!(is_replaced(pid), expected, "{:?}", processes::find(pid));
        }
    }
}

fn containers_of_the_build_before(engine: Engine) {
    let network = engine.network(&[]);
    let option = ["--network", &network.name];
    let old = engine.start_idle(&[&option[..], &["--network-alias", "old", "--memory", "128m"]].concat());
    let script = "import os, time\nwhile not os.path.exists('/go'): time.sleep(0.5)\n\
        blocks = []\nwhile True: blocks.append(bytearray(b'x' * 1000000))";
    let hungry = engine.start(&["--memory", "64m"], "python", &["python3", "-c", script]);
    let begun = old.exec_invocation(&["-i"], &["sh", "-c", "echo ready; read word; echo $word; exit 9"]);
    let mut begun = begun.into_command().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(begun.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        line
    };
    assert_eq!(line(), "ready\n");

    replace();
    is_of_the_build_before(&old, true);

    // What was begun goes on, and what the new build asks of the old container is done.
    begun.stdin.take().unwrap().write_all(b"after\n").unwrap();
    assert_eq!(line(), "after\n");
    assert_eq!(invocation::code(begun.wait().unwrap()), 9);
    assert_eq!(old.sh("echo from the new build"), "from the new build");
    old.ok(&["pause"]);
    assert_eq!(old.status(), "paused");
    old.ok(&["unpause"]);
    old.ok(&["update", "--pids-limit", "50"]);
    assert_eq!(old.sh("cat /sys/fs/cgroup/pids.max"), "50");

    // Containers of both builds reach each other.
    let new = engine.start_idle(&[&option[..], &["--network-alias", "new"]].concat());
    is_of_the_build_before(&new, false);
    old.sh("ping -c 1 -W 60 new >/dev/null");
    new.sh("ping -c 1 -W 60 old >/dev/null");

    // The old one's end is told as ever, and its next life is of the new build.
    hungry.go();
    assert_eq!(hungry.wait(), 137);
    assert_eq!(hungry.inspect("{{.State.OOMKilled}}"), "true");
    old.ok(&["stop"]);
    assert_eq!(old.inspect("{{.State.Status}} {{.State.ExitCode}}"), "exited 0");
    old.ok(&["start"]);
    is_of_the_build_before(&old, false);
    old.sh("ping -c 1 -W 60 new >/dev/null");
    hungry.ok(&["rm"]);
}
