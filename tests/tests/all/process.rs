//! The `process` part of the configuration: what the container's process is given.

use pouch_tests::{Bundle, has_vm};
use serde_json::{Value, json};

#[test]
fn the_environment_is_exactly_the_configurations() {
    let env = json!(["PATH=/usr/bin:/bin", "A=one two", "EMPTY=", "UNICODE=grüß"]);
    let output = Bundle::debian().args(["env"]).set("/process/env", env).run().ok();
    let mut lines: Vec<&str> = output.lines().collect();
    lines.sort_unstable();
    // HOME is the one variable that runtimes add.
    lines.retain(|line| *line != "HOME=/root");
    assert_eq!(lines, ["A=one two", "EMPTY=", "PATH=/usr/bin:/bin", "UNICODE=grüß"]);
}

#[test]
fn arguments_arrive_as_they_are() {
    let output = Bundle::debian().args(["printf", "%s|", "a b", "", "$HOME", "*", "\n", "ü"]).run();
    assert_eq!(output.ok(), "a b||$HOME|*|\n|ü|");
}

#[test]
fn the_working_directory_is_the_configurations() {
    assert_eq!(
        Bundle::debian().args(["pwd"]).set("/process/cwd", json!("/usr/share")).run().ok(),
        "/usr/share"
    );
}

#[test]
fn user_and_groups() {
    let user = json!({"uid": 1234, "gid": 5678, "additionalGids": [27, 4242]});
    let script = "id -u; id -g; id -G; cat /proc/self/status | grep CapEff; umask";
    let output = Bundle::debian().sh(script).set("/process/user", user).run().ok();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..2], ["1234", "5678"]);
    let mut groups: Vec<&str> = lines[2].split(' ').collect();
    groups.sort_unstable();
    assert_eq!(groups, ["27", "4242", "5678"]);
    assert_eq!(lines[3], "CapEff:\t0000000000000000", "a user has no capability");
    assert_eq!(lines[4], "0022");
}

#[test]
fn the_umask_is_the_users() {
    let user = json!({"uid": 0, "gid": 0, "umask": 0o077});
    assert_eq!(Bundle::debian().sh("umask").set("/process/user", user).run().ok(), "0077");
}

#[test]
fn resource_limits() {
    let limits = json!([
        {"type": "RLIMIT_NOFILE", "soft": 321, "hard": 654},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 4096},
        {"type": "RLIMIT_NPROC", "soft": 500, "hard": 700},
        {"type": "RLIMIT_STACK", "soft": 4_194_304, "hard": 16_777_216},
        {"type": "RLIMIT_FSIZE", "soft": 1_000_000, "hard": 2_000_000},
    ]);
    let names = "--nofile --core --nproc --stack --fsize";
    let script = format!("prlimit {names} --noheadings --raw -o RESOURCE,SOFT,HARD | sort");
    let output = Bundle::debian().sh(&script).set("/process/rlimits", limits).run().ok();
    let expected =
        "CORE 0 4096\nFSIZE 1000000 2000000\nNOFILE 321 654\nNPROC 500 700\nSTACK 4194304 16777216";
    assert_eq!(output, expected);
}

/// The masks in /proc/self/status of a process with these sets.
fn capability_masks(capabilities: Value) -> Vec<(String, u64)> {
    let script = "grep ^Cap /proc/self/status";
    let output = Bundle::debian().sh(script).set("/process/capabilities", capabilities).run().ok();
    let parse = |line: &str| {
        let (name, mask) = line.split_once(":\t").unwrap();
        (name.to_owned(), u64::from_str_radix(mask, 16).unwrap())
    };
    output.lines().map(parse).collect()
}

#[test]
fn capabilities_are_exactly_the_configurations() {
    let (chown, kill, net_bind) = (1 << 0, 1 << 5, 1 << 10);
    let list = json!(["CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let some = json!(["CAP_CHOWN", "CAP_KILL"]);
    let masks = capability_masks(json!({
        "bounding": list, "permitted": list, "effective": list, "inheritable": some, "ambient": some,
    }));
    let (all, less) = (chown | kill | net_bind, chown | kill);
    let expected = [("CapInh", less), ("CapPrm", all), ("CapEff", all), ("CapBnd", all), ("CapAmb", less)];
    assert_eq!(masks, expected.map(|(name, mask)| (name.to_owned(), mask)));
}

#[test]
fn no_capabilities_means_none() {
    let none = json!({"bounding": [], "permitted": [], "effective": [], "inheritable": [], "ambient": []});
    assert!(capability_masks(none).iter().all(|(_, mask)| *mask == 0));
}

#[test]
fn a_missing_capability_is_missed() {
    let none = json!({"bounding": [], "permitted": [], "effective": []});
    let output = Bundle::debian().sh("chown 1 /tmp").set("/process/capabilities", none).run();
    output.fails(1);
    assert!(output.errors().contains("Operation not permitted"), "{output}");
}

#[test]
fn no_new_privileges() {
    for (wanted, shown) in [(true, "1"), (false, "0")] {
        let bundle = Bundle::debian().sh("sed -n 's/^NoNewPrivs:\\t//p' /proc/self/status");
        assert_eq!(bundle.set("/process/noNewPrivileges", json!(wanted)).run().ok(), shown);
    }
}

#[test]
fn the_oom_score_adjustment() {
    let bundle = Bundle::debian().sh("cat /proc/self/oom_score_adj");
    assert_eq!(bundle.set("/process/oomScoreAdj", json!(321)).run().ok(), "321");
}

/// A filter that lets everything pass except for some calls.
fn seccomp(rules: Value) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": rules})
}

#[test]
fn a_seccomp_filter_refuses_with_the_error_asked_for() {
    const ENOSPC: i32 = 28;
    let rules = json!([
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSPC},
    ]);
    let script = "mkdir /tmp/a; ln -s a /tmp/b; grep ^Seccomp: /proc/self/status";
    let output = Bundle::debian().sh(script).set("/linux/seccomp", seccomp(rules)).run();
    assert_eq!(output.ok(), "Seccomp:\t2");
    let errors = output.errors();
    assert!(
        errors.contains("cannot create directory") && errors.contains("Operation not permitted"),
        "{output}"
    );
    assert!(errors.contains("symbolic link") && errors.contains("No space left"), "{output}");
}

#[test]
fn a_seccomp_filter_looks_at_arguments_and_can_kill() {
    // personality(0x20008) is the one that setarch --addr-no-randomize asks for; the others pass.
    let rules = json!([{
        "names": ["personality"], "action": "SCMP_ACT_KILL_PROCESS",
        "args": [{"index": 0, "value": 0x0040000, "valueTwo": 0x0040000, "op": "SCMP_CMP_MASKED_EQ"}],
    }]);
    let script = "setarch x86_64 true && echo passes; setarch x86_64 -R true; echo $?";
    let output = Bundle::debian().sh(script).set("/linux/seccomp", seccomp(rules)).run().ok();
    assert_eq!(output, format!("passes\n{}", 128 + libc::SIGSYS));
}

#[test]
fn without_a_filter_there_is_none() {
    let bundle = Bundle::debian().sh("grep ^Seccomp: /proc/self/status");
    assert_eq!(bundle.set("/linux/seccomp", Value::Null).run().ok(), "Seccomp:\t0");
}

#[test]
fn the_process_is_the_first_of_its_namespace() {
    let output = Bundle::debian().sh("echo $$; ps -e -o pid= | wc -l; ls /proc/1/fd").run().ok();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "1");
    // The shell, ps and wc: nobody else is seen.
    assert_eq!(lines[1], "3");
    assert_eq!(lines[2..], ["0", "1", "2"], "only the standard streams are open");
}

#[test]
fn orphans_are_reaped_by_the_containers_init_alone() {
    let script = "(sleep 0.1; echo orphan) & exec sleep 1";
    assert_eq!(Bundle::debian().sh(script).run().ok(), "orphan");
}

#[test]
fn the_guest_has_a_kernel_of_its_own() {
    let inside = Bundle::busybox().args(["uname", "-r"]).run().ok();
    let outside = pouch_tests::Invocation::of("uname", ["-r"]).run().ok();
    assert_eq!(has_vm(), inside != outside, "inside {inside}, outside {outside}");
}
