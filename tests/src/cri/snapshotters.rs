//! The snapshotters of a [`super::Node`] that need more than a directory.

use std::fs;
use std::path::Path;

use crate::Invocation;

/// Names of snapshotters of containerd. Pods of the handler `HANDLER-NAME` use them.
pub const SNAPSHOTTERS: [&str; 4] = ["native", "blockfile", "devmapper", "erofs"];

/// The environment variable that has libdevmapper make nodes of devices itself: the testbed has no udev.
pub(super) const WITHOUT_UDEV: &str = "DM_DISABLE_UDEV";

/// The parts of containerd's configuration for them; `name` is that of the daemon.
pub(super) fn configuration(name: &str) -> String {
    let plugin = |name: &str| format!("[plugins.'io.containerd.snapshotter.v1.{name}']\n");
    let root = root(name);
    let blockfile = format!(
        "root_path = \"{root}/blockfile\"\nscratch_file = \"{root}/scratch\"\nfs_type = \"ext4\"\nmount_options = []\n"
    );
    let devmapper = format!(
        "root_path = \"{root}/devmapper\"\npool_name = \"{}\"\nbase_image_size = \"32MB\"\nfs_type = \"ext4\"\n",
        pool(name)
    );
    [plugin("blockfile"), blockfile, plugin("devmapper"), devmapper].concat()
}

/// Makes what the snapshotters of the daemon `name` need, unless it is there. `index` is 0 or 1, and its own.
#[track_caller]
pub(super) fn prepare(name: &str, index: usize) {
    let root = root(name);
    fs::create_dir_all(&root).unwrap();
    if !Path::new(&format!("{root}/scratch")).exists() {
        run("truncate", &["--size=16M", &format!("{root}/scratch")]);
        run("mkfs.ext4", &["-q", &format!("{root}/scratch")]);
    }
    let pool = pool(name);
    if !Path::new("/dev/mapper").join(&pool).exists() {
        run("modprobe", &["dm_thin_pool"]);
        // Not loop devices: containers of other tests see those of the host. A page of a RAM disk takes memory when it is
        // written. The size is in KiB.
        run("modprobe", &["brd", "rd_nr=4", "rd_size=524288"]);
        let device = |role: usize| format!("/dev/ram{}", 2 * index + role);
        let (metadata, data) = (device(0), device(1));
        // 1,048,576 sectors; blocks of 128; a low-water mark of 1024
        // (Documentation/admin-guide/device-mapper/thin-provisioning.rst).
        let table = format!("0 1048576 thin-pool {metadata} {data} 128 1024 1 skip_block_zeroing");
        run("env", &[&format!("{WITHOUT_UDEV}=1"), "dmsetup", "create", &pool, "--table", &table]);
    }
}

fn root(name: &str) -> String {
    format!("/var/lib/{name}-snapshotters")
}

fn pool(name: &str) -> String {
    format!("pool-{name}")
}

#[track_caller]
fn run(program: &str, arguments: &[&str]) -> String {
    Invocation::of(program, arguments).leaves_something_behind().run().ok()
}
