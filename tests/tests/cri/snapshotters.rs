//! Root file systems of the snapshotters of containerd, other than overlayfs.

use pouch_tests::Invocation;
use pouch_tests::cri::{Node, Version};

tests! {
    both: ;
    native, blockfile, devmapper,
}

/// containerd has it since 2.1.
#[test]
fn erofs() {
    let node = Node::of(Version::V2_1);
    // containerd keeps the image's layer mounted, from a loop device.
    drop(node.pod("unpacked").snapshotter("erofs").run());
    crate::check(Version::V2_1, |node| roots(&node, "erofs"));
    node.remove_snapshots("erofs");
    assert_eq!(used(), 0, "containers of other tests see loop devices of the host");
}

/// Directories without layers.
fn native(node: Node) {
    roots(&node, "native");
}

/// An image file with ext4 for each container.
fn blockfile(node: Node) {
    roots(&node, "blockfile");
}

/// A block device with ext4 for each container.
fn devmapper(node: Node) {
    roots(&node, "devmapper");
}

/// The number of loop devices in use.
fn used() -> usize {
    Invocation::of("losetup", ["--list", "--noheadings"]).run().ok().lines().count()
}

/// Two containers of a pod have roots of their own, with the image's files, and can write to them.
fn roots(node: &Node, snapshotter: &str) {
    let before = used();
    let pod = node.pod("roots").snapshotter(snapshotter).run();
    let [one, other] = ["one", "other"].map(|name| pod.container(name).start());
    one.exec("mkdir /new; echo one >/new/file; mv /new/file /file; chmod 4755 /file; sync");
    assert_eq!(one.exec("cat /file; stat -c %a /file; ls /bin/busybox"), "one\n4755\n/bin/busybox");
    assert_eq!(other.sh("cat /file").status, 1);
    one.remove();
    let again = pod.container("one").attempt(1).start();
    assert_eq!(again.sh("cat /file").status, 1, "a new container has a new root");
    let read_only = pod.container("fixed").security(|security| security.readonly_rootfs = true);
    let ended = read_only.sh("cat /etc/passwd | wc -l; touch /file").run();
    assert!(ended.status == 1 && ended.stderr.contains("Read-only file system"), "{ended:?}");
    pod.try_stop().unwrap();
    pod.try_remove().unwrap();
    assert_eq!(used(), before, "loop devices are free again");
}
