//! User namespaces under engines.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;

use pouch_tests::bundle::unique_id;
use pouch_tests::invocation::{code, wait};
use pouch_tests::terminal::{SIZES, Terminal};
use pouch_tests::{Engine, EngineContainer, HANG, Invocation, Output, engine_tests, has_vm};

engine_tests! {
    podman: a_container_with_users_of_its_own, users_that_podman_chooses;
    docker_remapped: a_daemon_that_remaps_users;
    podman_long: a_terminal_with_users_of_its_own, the_callers_users;
}

/// Podman's options for 65,536 users from 200,000 on.
const MAP: [&str; 4] = ["--uidmap", "0:200000:65536", "--gidmap", "0:200000:65536"];

/// Adds rules by the host's iptables, with its libraries, bound at /tools.
const IPTABLES: &str = "export XTABLES_LIBDIR=/tools/lib/x86_64-linux-gnu/xtables
    rule() {
        /tools/lib64/ld-linux-x86-64.so.2 --library-path /tools/lib/x86_64-linux-gnu /tools/sbin/iptables-nft -w \"$@\"
    }
    rule -A INPUT -p tcp --dport 9 -j REJECT && rule -t nat -A POSTROUTING -j MASQUERADE && rule -S INPUT | tail -n 1";
/// The first of them, as iptables lists it.
const RULE: &str = "-A INPUT -p tcp -m tcp --dport 9 -j REJECT --reject-with icmp-port-unreachable";

fn a_container_with_users_of_its_own(engine: Engine) {
    let folder = tempfile::Builder::new().prefix("pouch-volume-").tempdir_in("/var/tmp").unwrap();
    let (plain, mapped) = (folder.path().join("plain"), folder.path().join("mapped"));
    fs::create_dir(&plain).unwrap();
    fs::create_dir(&mapped).unwrap();
    let volume = format!("{}:/v:U", plain.display());
    let other = format!("{}:/m:idmap", mapped.display());
    let mut options = [
        &MAP[..],
        &["--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW", "-v", &volume, "-v", "/usr:/tools:ro"],
        &["--tmpfs", "/new"],
        &["--health-cmd", "cat /proc/self/uid_map >/health; id -u >>/health", "--health-interval", "disable"],
    ]
    .concat();
    if has_vm() {
        // runc 1.1 cannot.
        options.extend(["-v", &other]);
    }
    let container = engine.start_idle(&options);
    let map = "0 200000 65536";
    for exec in [&[][..], &["-u", "12:34"]] {
        let text = container.exec(exec, &["sh", "-c", "cat /proc/self/uid_map | xargs; id -u"]).ok();
        let who = if exec.is_empty() { "0" } else { "12" };
        assert_eq!(text, format!("{map}\n{who}"));
    }
    let unmapped = container.exec(&["-u", "70000"], &["true"]);
    // As runc has it, or we.
    let said = ["unmapped user", "UID 70000 or GID 0 is not mapped"];
    assert!(unmapped.status != 0 && said.iter().any(|text| unmapped.errors().contains(text)), "{unmapped}");
    assert_eq!(container.sh("stat -c '%a %u:%g' /new"), "1777 0:0");
    container.ok(&["healthcheck", "run"]);
    assert_eq!(container.sh("xargs </health; stat -c %u /health"), format!("{map} 0\n0"));
    let terminal = container.exec(&["-t"], &["sh", "-c", "stat -c '%u %F' $(tty)"]).text();
    assert_eq!(terminal.trim(), "0 character special file");
    container.sh("touch /v/x; echo out >/from; ip addr add 10.9.9.9/32 dev eth0");
    let owner = |path: std::path::PathBuf| fs::metadata(path).unwrap().uid();
    assert_eq!((owner(plain.clone()), owner(plain.join("x"))), (200_000, 200_000));
    if has_vm() {
        container.sh("touch /m/y");
        assert_eq!(owner(mapped.join("y")), 0);
    }
    let file = folder.path().join("copied");
    engine.command(&["cp", &format!("{}:/from", container.name), file.to_str().unwrap()]).run().ok();
    assert_eq!(fs::read_to_string(&file).unwrap(), "out\n");
    engine.command(&["cp", file.to_str().unwrap(), &format!("{}:/to", container.name)]).run().ok();
    assert_eq!(container.sh("cat /to; stat -c %u /to"), "out\n0");
    // The way out of the container.
    let gateway = container.sh("ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'");
    container.sh(&format!("ping -c 1 {gateway}"));
    assert_eq!(container.sh(IPTABLES), RULE);
}

fn a_terminal_with_users_of_its_own(engine: Engine) {
    let name = unique_id();
    let _removed = EngineContainer::named(engine, &name);
    let options = [&MAP[..], &["--name", &name]].concat();
    let (mut terminal, mut child) = engine.run_on_terminal(&options, &["perl", "-e", SIZES], (33, 111));
    terminal.await_text("size 33 111");
    terminal.resize(44, 99);
    terminal.await_text("size 44 99");
    let owner = engine.command(&["exec", &name, "stat", "-c", "%u %F", "/proc/1/fd/0", "-L"]).run().ok();
    assert_eq!(owner, "0 character special file");
    let attach = engine.command(&["attach", &name]).into_command();
    let (mut other, mut attached) = Terminal::spawn(attach, 20, 70);
    other.await_text("size 20 70");
    other.type_in("hello\r");
    terminal.await_text("got <hello>");
    terminal.type_in("end\r");
    assert_eq!(code(wait(&mut child, "run", HANG)), 6);
    wait(&mut attached, "attach", HANG);
}

/// Root has no other users to keep, so Podman refuses or does what it does without these.
fn the_callers_users(engine: Engine) {
    for mode in ["keep-id", "keep-id:uid=7,gid=8", "nomap"] {
        let option = format!("--userns={mode}");
        let script = "cat /proc/self/uid_map /proc/self/gid_map | xargs; id; stat -c %u:%g /bin";
        let run = |runtime: &str| {
            let command = ["--runtime", runtime, "run", "--rm", "--net=none", &option, "pouch-test/busybox"];
            engine.command(&[&command[..], &["sh", "-c", script]].concat()).run()
        };
        let (runc, ours) = (run("runc"), run(&pouch_tests::runtime()));
        let seen = |output: &Output| (output.status, output.text(), output.errors());
        assert_eq!(seen(&ours), seen(&runc), "{mode}");
    }
}

fn users_that_podman_chooses(engine: Engine) {
    let output = engine
        .sh(&["--userns=auto:size=4096"], "cat /proc/self/uid_map | xargs; id -u; touch /x; stat -c %u /x")
        .ok();
    let lines: Vec<&str> = output.lines().collect();
    let map: Vec<u32> = lines[0].split(' ').map(|number| number.parse().unwrap()).collect();
    assert_eq!((map[0], map[2], &lines[1..]), (0, 4096, &["0", "0"][..]), "{output}");
    // From the range of the user "containers" in /etc/subuid.
    assert!(map[1] >= 1_000_000, "{output}");
}

fn a_daemon_that_remaps_users(engine: Engine) {
    // A daemon has its own images.
    let load =
        "docker save pouch-test/busybox | DOCKER_HOST=unix:///run/docker-remapped/docker.sock docker load";
    Invocation::of("sh", ["-c", load]).run().ok();
    let folder = tempfile::Builder::new().prefix("pouch-volume-").tempdir_in("/var/tmp").unwrap();
    std::os::unix::fs::chown(folder.path(), Some(100_000), Some(100_000)).unwrap();
    let volume = format!("{}:/v", folder.path().display());
    let network = engine.network(&[]);
    let options =
        ["--network", &network.name, "--cap-add", "NET_ADMIN", "-v", &volume, "-v", "/usr:/tools:ro"];
    let container = engine.start(&options, "busybox", &["sleep", "inf"]);
    let map = "0 100000 65536";
    for exec in [&[][..], &["-u", "12:34"]] {
        let text =
            container.exec(exec, &["sh", "-c", "cat /proc/self/uid_map /proc/1/uid_map | xargs; id -u"]).ok();
        let who = if exec.is_empty() { "0" } else { "12" };
        assert_eq!(text, format!("{map} {map}\n{who}"));
    }
    container.sh("touch /v/x; echo out >/from");
    assert_eq!(fs::metadata(folder.path().join("x")).unwrap().uid(), 100_000);
    let file = folder.path().join("copied");
    engine.command(&["cp", &format!("{}:/from", container.name), file.to_str().unwrap()]).run().ok();
    engine.command(&["cp", file.to_str().unwrap(), &format!("{}:/to", container.name)]).run().ok();
    assert_eq!(container.sh("cat /to; stat -c %u /to"), "out\n0");
    assert_eq!(container.sh(IPTABLES), RULE);
    // Another container finds it by its name, and talks through its streams.
    let ping = format!("read word; ping -c 1 {} >/dev/null && echo \"$word\"", container.name);
    let other = engine.start(&["-i", "--network", &network.name], "busybox", &["sh", "-c", &ping]);
    let mut command = other.command(&["attach"]).into_command();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"reached\n").unwrap();
    assert_eq!(code(wait(&mut child, "attach", HANG)), 0);
    assert_eq!(other.logs().trim(), "reached");
    let terminal = container.exec(&["-t"], &["sh", "-c", "stat -c '%u %F' $(tty)"]).text();
    assert_eq!(terminal.trim(), "0 character special file");
}
