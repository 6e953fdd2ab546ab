//! config.md, "Process": what the container's process is given.

use pouch_tests::terminal::ConsoleSocket;
use pouch_tests::{Bundle, Container, Output};
use serde_json::{Value, json};

use crate::requirements::{Section, not_pouch, not_runc};

const DOCUMENT: &str = "config.md";

fn run(pointer: &str, value: Value, script: &str) -> Output {
    Bundle::debian().sh(script).set(pointer, value).run()
}

/// config.md, "Process".
#[test]
fn process() {
    let mut section = Section::new(DOCUMENT, "Process");
    section.must("cwd is the process's working directory", || {
        assert_eq!(run("/process/cwd", json!("/usr/share"), "pwd").ok(), "/usr/share");
    });
    section.must("a cwd that is not absolute is an error", || {
        run("/process/cwd", json!("usr"), "pwd").fails_naming(&[]);
    });
    section.must("args without an entry is an error", || {
        Bundle::debian().set("/process/args", json!([])).run().fails_naming(&[]);
    });
    section.must("the first of args is looked up in PATH as execvp does", || {
        assert_eq!(Bundle::debian().args(["echo", "found"]).run().ok(), "found");
        Bundle::debian()
            .args(["echo", "x"])
            .set("/process/env", json!(["PATH=/nowhere"]))
            .run()
            .fails_naming(&["echo"]);
    });
    section.must("env is the process's environment", || {
        let output = run("/process/env", json!(["PATH=/usr/bin:/bin", "A=1 2", "B="]), "env");
        let text = output.ok();
        assert!(text.contains("A=1 2") && text.lines().any(|line| line == "B="), "{text}");
    });
    section.must("without terminal there is none, and consoleSize is ignored", || {
        let size = json!({"height": 0, "width": 9});
        assert_eq!(run("/process/consoleSize", size, "test -t 0 || echo none").ok(), "none");
    });
    section.must("with terminal the standard streams are a pseudo-terminal, with consoleSize", || {
        let bundle = Bundle::debian().sh("test -t 0 && test -t 1 && test -t 2 && stty size");
        let bundle = bundle.set("/process/terminal", json!(true));
        let bundle = bundle.set("/process/consoleSize", json!({"height": 17, "width": 63}));
        let path = bundle.path().join("console.sock");
        let socket = ConsoleSocket::bind(&path);
        let container = Container::create(bundle, &["--console-socket", path.to_str().unwrap()]);
        let terminal = socket.receive();
        container.start();
        terminal.await_text("17 63");
    });
}

/// config.md, "POSIX process": resource limits.
#[test]
fn rlimits() {
    let mut section = Section::new(DOCUMENT, "POSIX process");
    section.must("getrlimit of each type gives what is configured", || {
        let names = ["AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE"];
        let names = [&names[..], &["NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK"]].concat();
        let value = |name: &str| match name {
            "NICE" | "RTPRIO" => (10, 20),
            _ => (1_000_000_000, 1_000_000_001),
        };
        let value = |name: &str| if name == "NOFILE" { (300, 301) } else { value(name) };
        let limits: Vec<Value> = names
            .iter()
            .map(|name| {
                let (soft, hard) = value(name);
                json!({"type": format!("RLIMIT_{name}"), "soft": soft, "hard": hard})
            })
            .collect();
        let script = "prlimit --noheadings --raw -o RESOURCE,SOFT,HARD";
        let output = run("/process/rlimits", json!(limits), script).ok();
        for name in names {
            let (soft, hard) = value(name);
            let line = format!("{name} {soft} {hard}");
            assert!(output.lines().any(|shown| shown == line), "no {line} in {output}");
        }
    });
    section.must("a type that the kernel does not have is an error", || {
        let limits = json!([{"type": "RLIMIT_FANTASY", "soft": 1, "hard": 1}]);
        run("/process/rlimits", limits, "true").fails_naming(&[]);
    });
    let last = [not_runc("runc 1.1 takes the last")];
    section.must_but("a type that stands there twice is an error", &last, || {
        let limit = json!({"type": "RLIMIT_NOFILE", "soft": 100, "hard": 100});
        run("/process/rlimits", json!([limit, limit]), "true").fails_naming(&["rlimit"]);
    });
}

/// config.md, "Linux Process".
#[test]
fn linux_process() {
    let mut section = Section::new(DOCUMENT, "Linux Process");
    let script = "grep -E '^(Cap|NoNew)' /proc/self/status; cat /proc/self/oom_score_adj";
    let list = json!(["CAP_CHOWN", "CAP_KILL"]);
    let sets = json!({
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_SYS_TIME"], "permitted": list, "effective": ["CAP_KILL"],
        "inheritable": list, "ambient": ["CAP_KILL"],
    });
    let bundle = Bundle::debian().sh(script).set("/process/capabilities", sets);
    let bundle = bundle.set("/process/oomScoreAdj", json!(345)).set("/process/noNewPrivileges", json!(true));
    let text = bundle.run().text();
    let shows = |line: &str| assert!(text.lines().any(|shown| shown == line), "no {line:?} in {text}");
    section.must("the bounding set is as configured", || shows("CapBnd:\t0000000002000021"));
    section.must("the permitted set is as configured", || shows("CapPrm:\t0000000000000021"));
    section.must("the inheritable set is as configured", || shows("CapInh:\t0000000000000021"));
    section.must("the ambient set is as configured", || shows("CapAmb:\t0000000000000020"));
    section.must("the effective set is as configured, but for what execve adds to root's", || {
        let effective = text.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
        assert!(["0000000000000020", "0000000000000021"].contains(&effective), "{text}");
    });
    section.must("noNewPrivileges is set", || shows("NoNewPrivs:\t1"));
    section.must("oomScoreAdj is set", || shows("345"));
    section.must("a capability that does not exist is no error, but a warning", || {
        let bundle = Bundle::debian().sh("echo ran").capable(&["CAP_KILL", "CAP_FANTASY"]);
        bundle.write();
        let log = bundle.path().join("log");
        let id = pouch_tests::bundle::unique_id();
        let path = bundle.path().to_str().unwrap();
        let words = ["--log", log.to_str().unwrap(), "run", "--bundle", path, &id];
        assert_eq!(pouch_tests::Invocation::new(words).run().ok(), "ran");
        let log = std::fs::read_to_string(log).unwrap_or_default();
        assert!(log.contains("FANTASY") && log.contains("warning"), "{log}");
    });
    section.must_but(
        "without oomScoreAdj the value of whoever calls stays",
        &[not_pouch("the process is another kernel's, where nobody was before it")],
        || {
            let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
            std::fs::write("/proc/self/oom_score_adj", "77").unwrap();
            let output = Bundle::debian().sh("cat /proc/self/oom_score_adj").run();
            std::fs::write("/proc/self/oom_score_adj", own.trim()).unwrap();
            assert_eq!(output.ok(), "77");
        },
    );
}

/// config.md, "Linux Process", of version 1.2: scheduler and I/O priority.
#[test]
fn scheduling() {
    let mut section = Section::new(DOCUMENT, "Linux Process");
    let unknown = || [not_runc("runc 1.1 does not know it")];
    section.must_but("the scheduler's policy and nice value are as configured", &unknown(), || {
        let scheduler = json!({"policy": "SCHED_BATCH", "nice": 7});
        let script = "chrt -p $$ | head -1; awk '{print $19}' /proc/$$/stat";
        let text = run("/process/scheduler", scheduler, script).ok();
        assert!(text.contains("SCHED_BATCH") && text.ends_with('7'), "{text}");
    });
    section.must_but("the I/O priority is as configured", &unknown(), || {
        let priority = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 4});
        assert_eq!(run("/process/ioPriority", priority, "ionice -p $$").ok(), "idle");
    });
}

/// config.md, "POSIX-platform User".
#[test]
fn user() {
    let mut section = Section::new(DOCUMENT, "POSIX-platform User");
    let user = json!({"uid": 1234, "gid": 5678, "umask": 0o027, "additionalGids": [27, 4242]});
    let text = run("/process/user", user, "id -u; id -g; umask; id -G | tr ' ' '\\n' | sort").ok();
    let lines: Vec<&str> = text.lines().collect();
    section.must("uid is the process's user", || assert_eq!(lines[0], "1234"));
    section.must("gid is the process's group", || assert_eq!(lines[1], "5678"));
    section.must("umask is the process's", || assert_eq!(lines[2], "0027"));
    section.must("additionalGids are groups of the process", || {
        assert_eq!(lines[3..], ["27", "4242", "5678"]);
    });
}
