//! Shared files on file systems of the host that have servers of their own, and a host with few descriptors.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use pouch_tests::own_mount::{BindMount, OwnMount, Tmpfs, op};
use pouch_tests::{Bundle, Container, Invocation, eventually, long, vm_only};
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
    let shown = format!("text\n{}", OwnMount::INODE_NUMBER);
    assert_eq!(container.sh("cat /w/own/file; echo; stat -c %i /w/own/file"), shown);
    // Whatever is asked of it, more than one thread waits in the end, and the others go on.
    let asks = [
        (op::FSYNC, "sync /w/own/file", 1),
        (op::GETATTR, "stat /w/own/file", 2),
        (op::OPEN, "wc /w/own/file", 2),
        (op::READ, "cat /w/own/file", 1),
        (op::LOOKUP, "tail /w/own/file-2", 1),
    ];
    for (operation, command, count) in asks {
        mount.hang(operation);
        container.sh(&format!("setsid sh -c 'exec {command}' >/dev/null 2>&1 &").repeat(count));
        eventually(&format!("{command} waits"), || mount.held() == count);
    }
    let waiting = || container.sh("ps -C cat,sync,stat,wc,tail -o stat= | grep -vc Z || true");
    assert_eq!(waiting(), "7");
    assert_eq!(container.sh("ls /w; echo text >/tmp/f; sync /tmp/f; cat /tmp/f"), "a\nown\nz\ntext");
    // They can be killed, though nothing answers them.
    container.sh("pkill -9 -x 'cat|sync|stat|wc|tail'");
    eventually("they are gone", || waiting() == "0");
    assert_eq!(container.sh("echo more >>/tmp/f; cat /tmp/f"), "text\nmore");
    // The threads that serve the container can end.
    mount.die();
}

#[test]
fn mounts_do_not_cut_a_listing_short() {
    let folder = folder();
    let mount = OwnMount::new(&folder.path().join("own"), 0);
    let many = folder.path().join("many");
    // More than a byte can count.
    let count = if long() { 300 } else { 20 };
    let made = (0..count).map(|number| many.join(number.to_string()));
    let mounts: Vec<_> = made.map(|path| Tmpfs::new(&path)).collect();
    let container = container(folder.path());
    // Two of the names cannot be looked up.
    assert_eq!(container.sh("cat /w/own/file; ls /w/own 2>&1"), "textfile\ngone\nstale");
    // Each has a device of its own, also before a process has entered it.
    let script = "cd /w/many; stat -c %d * | sort -u | wc -l; ls | wc -l; ls -A . * | grep -c '^mark$'";
    assert_eq!(container.sh(script), format!("{count}\n{count}\n{count}"));
    mount.die();
    assert_eq!(
        container.sh("ls /w; cat /w/own/file 2>&1 | grep -o 'not connected'"),
        "a\nmany\nown\nz\nnot connected"
    );
    drop((container, mounts));
}

/// What a process does with a file that it sees on two mounts.
const SEEN_TWICE: &str = r#"
import fcntl, os
first, second = open("/one/a", "r+"), open("/two/a", "r+")
fcntl.lockf(first, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
fcntl.lockf(second, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 5)
print("locked twice", flush=True)
if os.fork() == 0:
    try: fcntl.lockf(open("/two/a", "r+"), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except OSError as error: print(error.strerror, flush=True)
    os._exit(0)
os.wait()
same = lambda *paths: len({os.stat(path).st_dev for path in paths}) == 1
print(same("/one", "/two", "/file", "/one/inner"), same("/one", "/other"), same("/one", "/"))"#;

#[test]
fn a_file_that_is_seen_twice_is_recognised() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("a"), "text\n").unwrap();
    let other = Tmpfs::new(&path("other"));
    // A directory of the host on another of the same file system.
    fs::create_dir_all(path("inner")).unwrap();
    let inner = BindMount::new(&path("own"), &path("inner"));
    fs::write(path("own/leaf"), "").unwrap();
    let script = format!(
        "for pair in '/one/a /two/a' '/two/a /one/a' '/one/a /file' '/file /two/a'; do
             cp $pair 2>&1 | grep -o 'are the same file'; done
         mv /one/a /two/a 2>&1 | grep -o 'are the same file'; [ /two/a -ef /file ] && cat /file /one/a
         ln /one/a /two/b 2>&1 | grep -o 'cross-device'; ls /two
         find /one -xdev -name leaf | sort; ls -di /two/inner /one/own | cut -d' ' -f1 | sort -u | wc -l
         exec python3 -c '{SEEN_TWICE}'"
    );
    let bundle = Bundle::new("python").sh(&script);
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    let of_root = if device(&bundle.rootfs()) == device(folder.path()) { "True" } else { "False" };
    let bundle = bundle
        .mount("/one", "bind", folder.path(), &["rbind"])
        .mount("/two", "bind", folder.path(), &["rbind"])
        .mount("/file", "bind", path("a"), &["bind"])
        .mount("/other", "bind", path("other"), &["bind"]);
    let expected = "are the same file\n".repeat(5)
        + "text\ntext\ncross-device\na\ninner\nother\nown\nz\n/one/inner/leaf\n/one/own/leaf\n1\n"
        + "locked twice\nResource temporarily unavailable\nTrue False "
        + of_root;
    let output = bundle.run();
    assert_eq!(output.ok(), expected, "{output}");
    drop((inner, other));
}

/// Changes that a user may make to a file system that belongs to it.
const CHANGES: &str = r#"
import errno, os
os.chdir("/")
def t(name, f, *arguments):
    try: f(*arguments); print(name, "ok")
    except OSError as e: print(name, errno.errorcode[e.errno])
d = "/w/own/"
t("readdir", os.listdir, d)
t("chmod", os.chmod, d + "file", 0o600)
t("truncate", os.truncate, d + "file", 4)
t("setxattr", os.setxattr, d + "file", "user.x", b"y")
t("mkdir", os.mkdir, d + "new")
t("link", os.link, d + "file", d + "linked")
t("rename", os.rename, d + "file", d + "renamed")
t("unlink", os.unlink, d + "file")"#;

#[test]
fn a_users_own_mount_is_that_users() {
    let folder = folder();
    let mount = OwnMount::new(&folder.path().join("own"), 1000);
    let rights = ["CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_CHOWN", "CAP_DAC_READ_SEARCH"];
    let bundle = Bundle::new("python").args(["sleep", "100000"]).capable(&rights);
    let container = bundle.mount("/w", "bind", folder.path(), &["rbind"]).start();
    let run = |user: &str, command: &[&str]| container.exec_with(&["--user", user], command).text();
    let read = |user: &str| run(user, &["cat", "/w/own/file"]);
    assert_eq!([read("1000:1000"), read("0:0"), read("1001:1001"), read("1000:1001")], ["text", "", "", ""]);
    assert_eq!(run("1000:1000", &["flock", "/w/own/file", "echo", "locked"]), "locked");
    let change = |user: &str| run(user, &["python3", "-c", CHANGES]);
    let all = |word: &str| {
        let names = ["readdir", "chmod", "truncate", "setxattr", "mkdir", "link", "rename", "unlink"];
        names.map(|name| format!("{name} {word}")).join("\n")
    };
    mount.asked();
    assert_eq!(change("1000:1000"), all("ok"));
    // Each was done, and by this user.
    let asked = mount.asked();
    for operation in [op::READDIR, op::SETATTR, op::SETXATTR, op::MKDIR, op::LINK, op::RENAME, op::UNLINK] {
        assert!(asked.contains(&(operation, 1000)), "{operation} in {asked:?}");
    }
    // Linux itself asks for these, as root.
    let by_linux =
        |operation: u32| matches!(operation, op::RELEASE | op::RELEASEDIR | op::FORGET | op::BATCH_FORGET);
    assert!(asked.iter().all(|(operation, user)| *user == 1000 || by_linux(*operation)), "{asked:?}");
    assert_eq!(change("0:0"), all("EACCES"));
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
