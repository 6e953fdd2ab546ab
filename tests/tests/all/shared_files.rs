//! Shared files on file systems of the host that have servers of their own, and a host with few descriptors.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pouch_tests::own_mount::OwnMount;
use pouch_tests::{Bundle, Container, Invocation, eventually, vm_only};
use serde_json::json;

/// A folder with a directory to mount on and two files beside it.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(folder.path().join("own")).unwrap();
    for name in ["a", "z"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    folder
}

fn container(folder: &Path) -> Container {
    Bundle::debian().args(["sleep", "100000"]).mount("/w", "bind", folder, &["rbind"]).start()
}

#[test]
fn a_mount_that_hangs_holds_up_nobody_else() {
    let folder = folder();
    let mount = OwnMount::new(&folder.path().join("own"), 0);
    let container = container(folder.path());
    assert_eq!(container.sh("cat /w/own/file; ls /w/own"), "textfile");
    mount.hang();
    // More than one thread waits, and the others go on.
    container
        .exec(&["sh", "-c", "for n in 1 2 3; do setsid sh -c 'exec cat /w/own/file' >/dev/null 2>&1 & done"])
        .ok();
    let waiting = || container.sh("ps -C cat -o stat= | grep -vc Z || true");
    eventually("three wait", || waiting() == "3");
    assert_eq!(container.sh("ls /w; echo text >/tmp/f; cat /tmp/f"), "a\nown\nz\ntext");
    // They can be killed, though nothing answers them.
    container.sh("pkill -9 -x cat");
    eventually("they are gone", || waiting() == "0");
    assert_eq!(container.sh("echo more >>/tmp/f; cat /tmp/f"), "text\nmore");
}

#[test]
fn a_dead_mount_does_not_cut_a_listing_short() {
    let folder = folder();
    let mount = OwnMount::new(&folder.path().join("own"), 0);
    let container = container(folder.path());
    assert_eq!(container.sh("cat /w/own/file"), "text");
    mount.die();
    assert_eq!(
        container.sh("ls /w; cat /w/own/file 2>&1 | grep -o 'not connected'"),
        "a\nown\nz\nnot connected"
    );
}

#[test]
fn a_users_own_mount_is_that_users() {
    let folder = folder();
    let _mount = OwnMount::new(&folder.path().join("own"), 1000);
    let container = container(folder.path());
    let read = |user: &str| container.exec_with(&["--user", user], &["cat", "/w/own/file"]).text();
    assert_eq!([read("1000:1000"), read("0:0"), read("1001:1001"), read("1000:1001")], ["text", "", "", ""]);
}

#[test]
fn a_low_limit_of_open_files_is_shared_out() {
    // Under runc the container's limit is its own.
    vm_only!();
    let script = "find /usr -xdev | wc -l; find /usr -xdev -type d | wc -l; echo ready; exec sleep 100000";
    let limit = json!([{"type": "RLIMIT_NOFILE", "soft": 4096, "hard": 4096}]);
    let bundle = Bundle::debian().sh(script).set("/process/rlimits", limit);
    bundle.write();
    let id = pouch_tests::bundle::unique_id();
    let path = bundle.path().to_str().unwrap().to_owned();
    let runtime = pouch_tests::runtime();
    let host = |command: &str| {
        Invocation::of(command.split(' ').next().unwrap(), command.split(' ').skip(1))
            .leaves_something_behind()
            .run()
    };
    let found = host(&format!("find {}/usr -xdev", bundle.rootfs().display())).ok().lines().count();
    host(&format!("prlimit --nofile=1024:1024 {runtime} run --detach --bundle {path} {id}")).ok();
    let exec = |script: &str| Invocation::new(["exec", &id, "sh", "-c", script]).run();
    assert_eq!(exec("find /usr -xdev | wc -l").ok(), found.to_string());
    // What is open uses the limit up; other containers and further processes are not hurt.
    let hold = "cd /tmp; i=0; while [ $i -lt 2000 ]; do eval \"exec {fd}>f$i\" || break; i=$((i+1)); done 2>/tmp/error; sleep 1000";
    exec(&format!("setsid bash -c '{hold}' >/dev/null 2>&1 </dev/null & true")).ok();
    eventually("it has them open", || {
        exec("grep -c 'Too many open files in system' /tmp/error").text() == "1"
    });
    assert_eq!(exec("echo works").ok(), "works");
    Invocation::new(["delete", "--force", &id]).run().ok();
}
