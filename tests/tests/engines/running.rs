//! `run`: what goes in, what comes out, and who the process is.

use pouch_tests::{Difference, Engine, engine_tests};

engine_tests! {
    both: output_and_status, identity;
    both_long: input_to_its_end, detached, not_found_and_not_executable, names_and_addresses, privileges,
        what_programs_look_at, privileges_of_a_file, init, image_settings, four_at_once;
}

fn output_and_status(engine: Engine) {
    let output = engine.sh(&[], "echo out; echo error >&2; exit 7");
    output.fails(7);
    assert_eq!((output.text().as_str(), output.errors().as_str()), ("out", "error"));
    let output = engine.sh(&[], "kill -9 $$; sh -c 'kill -9 $$'; echo $?; uname -r");
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let (status, kernel) = output.text().split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    assert_eq!(status, "137", "{output}");
    assert_eq!(kernel == host.trim_end(), !Difference::Kernel.with_vm(), "{output}");
}

fn input_to_its_end(engine: Engine) {
    let arguments = ["sh", "-c", "sha256sum; echo end"];
    let input: Vec<u8> = (0..3_000_000u32).map(|number| (number % 251) as u8).collect();
    let output = engine.with_runtime("run", &["--rm", "-i"], "debian", &arguments).stdin(input.clone()).run();
    let host = pouch_tests::Invocation::of("sha256sum", [""; 0]).stdin(input).run().ok();
    assert_eq!(output.ok(), format!("{host}\nend"));
}

fn detached(engine: Engine) {
    let container = engine.start_sh(&[], "echo begun; sleep 1; echo done; exit 9");
    assert_eq!(container.wait(), 9);
    assert_eq!(container.logs(), "begun\ndone");
    assert_eq!(
        container.inspect("{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}"),
        "exited 9 false"
    );
    assert_eq!(container.ok(&["rm"]), container.name);
}

fn not_found_and_not_executable(engine: Engine) {
    for (program, status, word) in [
        ("no-such-program", 127, "not found"),
        ("/no/such/program", 127, "no such file"),
        ("/etc/passwd", 126, "denied"),
        ("/etc", 126, "/etc"),
    ] {
        let output = engine.run(&[], "debian", &[program]);
        output.fails(status).fails_naming(&[program, word]);
    }
}

/// Small things by which programs decide what they do.
fn what_programs_look_at(engine: Engine) {
    let folder = tempfile::Builder::new().prefix("pouch-volume-").tempdir_in("/var/tmp").unwrap();
    let script = "import ctypes, os\n\
        call = ctypes.CDLL(None, use_errno=True).syscall\n\
        def errno(*numbers):\n\
        \x20   call(*map(ctypes.c_long, numbers))\n\
        \x20   return ctypes.get_errno()\n\
        print(os.readlink('/proc/self/fd/0'), oct(os.stat('/root').st_mode), os.getcwd())\n\
        # One that no kernel has, and clone() with a new user namespace, which Docker's profile refuses.\n\
        print(errno(900), errno(56, 0x10000011, 0, 0, 0, 0) if os.getcwd() == '/data/sub' else 1)";
    let volume = format!("{}:/data", folder.path().display());
    // Podman wants the working directory to be there.
    let directory = if engine.is_docker() { "/data/sub" } else { "/data" };
    let options = ["-v", &volume, "-w", directory, "--tmpfs", "/root"];
    let output = engine.run(&options, "python", &["python3", "-c", script]);
    assert_eq!(output.ok(), format!("/dev/null 0o40700 {directory}\n38 1"));
}

fn identity(engine: Engine) {
    let script = "id -u; id -g; id -G; pwd; echo $GREETING; hostname; cat /etc/hostname; umask";
    let options =
        ["-u", "nobody:daemon", "--group-add", "1234", "-w", "/var/tmp", "-e", "GREETING=a b", "-h", "box"];
    let output = engine.sh(&options, script);
    assert_eq!(output.ok(), "65534\n1\n1 1234\n/var/tmp\na b\nbox\nbox\n0022");
    // A user by number needs no entry. A working directory that is missing is made; Podman wants it there, and
    // makes an entry whose home it is.
    let (folder, home) = if engine.is_docker() { ("/made/for/it", "/") } else { ("/var/lib", "/var/lib") };
    let output = engine.sh(&["-u", "4711:12", "-w", folder], "id -u; id -g; pwd; echo $HOME");
    assert_eq!(output.ok(), format!("4711\n12\n{folder}\n{home}"));
    engine.sh(&["-u", "stranger"], "true").fails_naming(&["stranger"]);
}

fn names_and_addresses(engine: Engine) {
    let options =
        ["--add-host", "far:10.9.8.7", "--dns", "10.1.2.3", "--dns-search", "example.org", "-h", "box"];
    let script =
        "getent hosts far; cat /etc/resolv.conf; getent hosts box | wc -l; findmnt -n -o TARGET /etc/hosts";
    let text = engine.sh(&options, script).ok();
    assert!(text.contains("10.9.8.7"), "{text}");
    assert!(text.contains("nameserver 10.1.2.3") && text.contains("search example.org"), "{text}");
    assert!(text.ends_with("1\n/etc/hosts"), "{text}");
}

fn privileges(engine: Engine) {
    let script =
        "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; chown 1:1 /root 2>/dev/null; echo $?";
    let options =
        ["--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE", "--security-opt", "no-new-privileges"];
    let text = engine.sh(&options, script).ok();
    assert_eq!(text, "CapEff:\t0000000000000400\nNoNewPrivs:\t1\nSeccomp:\t2\n1");
    // The engines' own profile lets nobody mount; a privileged container has every capability.
    let script = "grep CapEff /proc/self/status; mount -t tmpfs x /mnt && findmnt -n -o FSTYPE /mnt";
    let output = engine.sh(&[], script);
    output.fails(if output.errors().is_empty() { 0 } else { 32 });
    assert!(output.errors().contains("mount"), "{output}");
    let text = engine.sh(&["--privileged"], script).ok();
    assert!(text.starts_with("CapEff:\t000001ffffffffff") && text.ends_with("tmpfs"), "{text}");
    let output = engine.sh(&["--sysctl", "net.core.somaxconn=1234"], "cat /proc/sys/net/core/somaxconn");
    assert_eq!(output.ok(), "1234");
}

/// On the root file system and on a volume. Podman mounts volumes without such privileges.
fn privileges_of_a_file(engine: Engine) {
    let script = "set -e; cd $FOLDER; cp /usr/bin/id id; chmod 4755 id; cp /usr/bin/grep grep
        setcap cap_net_bind_service+ep grep; setpriv='setpriv --reuid 1000 --regid 1000 --clear-groups'
        $setpriv ./id -u; $setpriv ./grep CapEff /proc/self/status";
    let (with, without) = ("0\nCapEff:\t0000000000000400", "1000\nCapEff:\t0000000000000000");
    for (folder, expected) in [("/srv", with), ("/data", if engine.is_docker() { with } else { without })] {
        let output = engine.sh(&["-v", "/data", "-e", &format!("FOLDER={folder}")], script);
        assert_eq!(output.ok(), expected, "{folder}");
    }
}

fn init(engine: Engine) {
    let script = "cat /proc/1/comm; (true &); sh -c 'sleep 0.1 & exec true'; sleep 1; \
        grep -l '^State:.Z' /proc/[0-9]*/status; exit 4";
    // Podman's own init is a package that the testbed has not; Docker's does as well.
    let (options, name) = match engine {
        Engine::Docker | Engine::Docker28 | Engine::DockerRemapped => (&["--init"][..], "docker-init"),
        Engine::Podman => (&["--init", "--init-path", "/usr/bin/tini-static"][..], "podman-init"),
    };
    let output = engine.sh(options, script);
    output.fails(4);
    // Whatever loses its parent goes to the init, which reaps it.
    assert_eq!(output.text(), name, "{output}");
    let container = engine.start(options, "debian", &["sleep", "1000"]);
    container.ok(&["stop"]);
    assert_eq!(container.inspect("{{.State.ExitCode}}"), "143", "the signal was passed on");
}

fn image_settings(engine: Engine) {
    // The image's working directory and volume, and its command replaced.
    let options = ["--entrypoint", "/bin/sh"];
    let output = engine.run(&options, "redis", &["-c", "pwd; findmnt -n -o TARGET /data; echo $0 $PATH"]);
    let text = output.ok();
    assert!(text.starts_with("/data\n/data\n/bin/sh /usr/local/sbin:"), "{text}");
    // And its entry point with its own command, which is a server.
    let container = engine.start(&[], "redis", &[]);
    container.await_logs("Ready to accept connections");
    assert_eq!(container.exec(&[], &["redis-cli", "ping"]).ok(), "PONG");
    container.ok(&["stop"]);
    assert_eq!(container.inspect("{{.State.ExitCode}}"), "0");
}

fn four_at_once(engine: Engine) {
    std::thread::scope(|scope| {
        let run = |number: i32| {
            let output = engine.sh(&[], &format!("echo {number}; exit {number}"));
            output.fails(number);
            assert_eq!(output.text(), number.to_string());
        };
        for number in 1..=4 {
            scope.spawn(move || run(number));
        }
    });
}
