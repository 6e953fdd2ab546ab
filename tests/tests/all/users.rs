//! User namespaces.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use pouch_tests::{Bundle, has_vm};
use serde_json::json;

const FIRST: u32 = 100_000;

/// A container whose root is user 100000 of the host, with a volume of that user and one of root.
#[test]
fn whoever_is_in_a_user_namespace_stays_there() {
    let (volume, roots) = (folder(), folder());
    chown(volume.path(), Some(FIRST), Some(FIRST)).unwrap();
    // Two ranges, as with podman's keep-id.
    let map = json!([
        {"containerID": 0, "hostID": FIRST, "size": 1000}, {"containerID": 1000, "hostID": 1000, "size": 1}
    ]);
    let mut bundle = Bundle::busybox()
        .args(["sleep", "1000"])
        .push("/linux/namespaces", json!({"type": "user"}))
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map.clone())
        // More than a process that is not root of the host may give itself.
        .set(
            "/process/rlimits",
            json!([{"type": "RLIMIT_MEMLOCK", "soft": 1_u64 << 40, "hard": 1_u64 << 40}]),
        )
        .capable(&["CAP_NET_ADMIN", "CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"])
        .mount("/v", "none", volume.path(), &["bind"])
        .mount("/roots", "none", roots.path(), &["bind"]);
    if has_vm() {
        // runc 1.1 cannot.
        let mapped = json!({
            "destination": "/mapped", "type": "none", "source": roots.path(), "options": ["bind", "idmap"],
            "uidMappings": map, "gidMappings": map,
        });
        bundle = bundle.push("/mounts", mapped);
    }
    // Its mount points are made by whoever is root there.
    chown(bundle.rootfs(), Some(FIRST), Some(FIRST)).unwrap();
    let container = bundle.start();
    let script = "awk '{print $1, $2, $3}' /proc/self/gid_map; id -u; ulimit -H -l; touch /v/$1; touch /roots/$1 2>&1; \
                  ip addr add 10.9.9.9/32 dev lo && echo network";
    let expected = format!(
        "0 {FIRST} 1000\n1000 1000 1\n0\n{}\ntouch: /roots/x: Permission denied\nnetwork",
        1_u64 << 30
    );
    assert_eq!(container.exec(&["sh", "-c", script, "sh", "x"]).ok(), expected);
    let other = container
        .exec_with(&["--user", "5:6"], &["sh", "-c", "id -u; id -g; cat /proc/self/uid_map | wc -l"]);
    assert_eq!(other.ok(), "5\n6\n2");
    let owner = |path: std::path::PathBuf| fs::metadata(path).map(|data| (data.uid(), data.gid())).unwrap();
    assert_eq!(owner(volume.path().join("x")), (FIRST, FIRST));
    assert!(!roots.path().join("x").exists());
    if has_vm() {
        assert_eq!(container.sh("stat -c '%u %g' /mapped; touch /mapped/y; chown 7 /mapped/y"), "0 0");
        assert_eq!(owner(roots.path().join("y")), (7, 0));
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("pouch-volume-").tempdir_in("/var/tmp").unwrap()
}
