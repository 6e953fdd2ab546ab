//! User namespaces under engines.

use std::fs;
use std::os::unix::fs::MetadataExt;

use pouch_tests::{Engine, engine_tests, has_vm};

engine_tests! {
    podman: a_container_with_users_of_its_own;
}

fn a_container_with_users_of_its_own(engine: Engine) {
    let folder = tempfile::Builder::new().prefix("pouch-volume-").tempdir_in("/var/tmp").unwrap();
    let (plain, mapped) = (folder.path().join("plain"), folder.path().join("mapped"));
    fs::create_dir(&plain).unwrap();
    fs::create_dir(&mapped).unwrap();
    let volume = format!("{}:/v:U", plain.display());
    let other = format!("{}:/m:idmap", mapped.display());
    let map = ["--uidmap", "0:200000:65536", "--gidmap", "0:200000:65536"];
    let mut options = [&map[..], &["--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW", "-v", &volume]].concat();
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
}
