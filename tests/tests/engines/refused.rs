//! What cannot be had is refused: the error names it, and no container is left half-made.

use pouch_tests::{Difference, Engine, engine_tests};

engine_tests! {
    both_long: files_that_are_not_there, a_name_in_use, values_that_make_no_sense, the_hosts_processes, a_port_in_use;
}

fn values_that_make_no_sense(engine: Engine) {
    for (options, words) in [
        (&["--tmpfs", "/scratch:size=nonsense"][..], &["/scratch"][..]),
        (&["--sysctl", "net.no.such=1"], &["net"]),
        (&["--cpuset-cpus", "63"], &["63"]),
        (&["--cpuset-cpus", "nonsense"], &["nonsense"]),
        (&["--memory", "1k"], &["memory"]),
        (&["--ulimit", "nofile=nonsense"], &["nofile"]),
        (&["--cap-add", "NO_SUCH_CAP"], &["NO_SUCH_CAP"]),
        (&["--security-opt", "seccomp=/no/such/file"], &["/no/such/file"]),
        (&["--group-add", "strangers"], &["strangers"]),
        (&["--workdir", "/etc/passwd"], &["/etc/passwd"]),
    ] {
        let output = engine.run(options, "debian", &["true"]);
        output.fails_naming(words);
        assert!((125..=127).contains(&output.status), "{output}");
    }
    let left = engine.command(&["ps", "--all", "--quiet"]).run().ok();
    assert_eq!(left, "");
}

fn files_that_are_not_there(engine: Engine) {
    let mount = "type=bind,source=/no/such/source,target=/data";
    engine.run(&["--mount", mount], "debian", &["true"]).fails_naming(&["/no/such/source"]);
    engine
        .run(&["--device", "/dev/no-such-device"], "debian", &["true"])
        .fails_naming(&["/dev/no-such-device"]);
    // A file cannot be mounted over a folder, nor a folder over a file.
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    let option = format!("{}:/etc", file.path().display());
    engine.run(&["-v", &option], "debian", &["true"]).fails_naming(&["/etc"]);
    engine.run(&["-v", "/var/tmp:/etc/motd"], "debian", &["true"]).fails_naming(&["/etc/motd"]);
}

fn the_hosts_processes(engine: Engine) {
    let output = engine.sh(&["--pid", "host"], "tr '\\0' ' ' </proc/1/cmdline");
    if Difference::HostProcesses.with_vm() {
        output.fails_naming(&["pid"]);
    } else {
        assert!(output.ok().contains("init"), "{output}");
    }
}

fn a_port_in_use(engine: Engine) {
    let one = engine.start_idle(&["-p", "8090:80"]);
    let output = engine.run(&["-p", "8090:80"], "debian", &["true"]);
    output.fails_naming(&["8090"]);
    assert_eq!(one.sh("echo unharmed"), "unharmed");
    let left = engine.command(&["ps", "--all", "--format", "{{.Names}}"]).run().ok();
    assert_eq!(left, one.name);
}

fn a_name_in_use(engine: Engine) {
    let one = engine.start_idle(&[]);
    engine.run(&["--name", &one.name], "debian", &["true"]).fails_naming(&[&one.name]);
    assert_eq!(one.sh("echo unharmed"), "unharmed");
}
