//! What a container is to its user, whatever the host is.

use pouch_tests::{Bundle, Invocation, Leftovers, processes};
use serde_json::json;

#[test]
fn the_host_is_an_older_one() {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(release.starts_with("6.1."), "{release}");
    Invocation::new(["check"]).run().ok();
}

#[test]
fn output_and_status_come_through() {
    let output = Bundle::debian().sh("cat; echo error >&2; exit 7").run_invocation(&[]).stdin("input").run();
    output.fails(7);
    assert_eq!((output.text(), output.errors().trim().to_owned()), ("input".to_owned(), "error".to_owned()));
}

#[test]
fn volumes_networks_and_commands_work() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = Bundle::debian().args(["sleep", "1000"]).mount("/data", "bind", folder.path(), &["rbind"]);
    let container = bundle.start();
    container.sh("echo guest >/data/file; chmod 4755 /data/file; ln /data/file /data/link");
    assert_eq!(std::fs::read_to_string(folder.path().join("link")).unwrap(), "guest\n");
    assert_eq!(container.sh("ip -br link | wc -l; cat /sys/fs/cgroup/cgroup.controllers | wc -l"), "1\n1");
}

#[test]
fn nothing_left_of_a_container_whose_vmm_is_killed() {
    let before = Leftovers::picture();
    let memory = json!({"memory": {"limit": 64 << 20}});
    let container = Bundle::busybox().args(["sleep", "1000"]).set("/linux/resources", memory).start();
    let pid = container.pid();
    processes::vmm_of(pid).into_iter().for_each(processes::sigkill);
    container.await_status("stopped");
    container.reap(pid);
    container.delete();
    drop(container);
    before.check();
}
