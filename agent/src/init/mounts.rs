//! The guest's file systems.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use crate::modules;

const NOSUID_NOEXEC_NODEV: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// Mounts what logging and listening need: /dev, /proc. The root itself is read-only.
pub fn first() {
    // devtmpfs holds the nodes of every device, and the kernel usually has mounted it; with no
    // /dev, nothing can be reported.
    let _ = mount_at("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755,size=1m");
    let _ = mount_at("proc", "/proc", NOSUID_NOEXEC_NODEV, "");
}

/// Mounts everything else. Errors are logged and not fatal.
pub fn rest() {
    let flags = NOSUID_NOEXEC_NODEV;
    let nosuid_nodev = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    report(mount_at("sysfs", "/sys", flags, ""), "/sys");
    report(mount_at("tmpfs", "/run", nosuid_nodev, "mode=0755"), "/run");
    report(mount_at("tmpfs", "/tmp", nosuid_nodev, "mode=1777"), "/tmp");
    report(
        mount_at(
            "devpts",
            "/dev/pts",
            MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
            "gid=5,mode=0620,ptmxmode=0666",
        ),
        "/dev/pts",
    );
    report(mount_at("tmpfs", "/dev/shm", nosuid_nodev, "mode=1777"), "/dev/shm");
    report(mount_at("mqueue", "/dev/mqueue", flags, ""), "/dev/mqueue");
    let cgroup = mount_at("cgroup2", "/sys/fs/cgroup", flags, "nsdelegate,memory_recursiveprot");
    report(cgroup, "/sys/fs/cgroup");
    device_links();
}

/// Mounts a kernel file system, making its mount point if need be. An existing mount is kept.
fn mount_at(kind: &str, target: &str, flags: MsFlags, options: &str) -> nix::Result<()> {
    let _ = fs::create_dir_all(target);
    match mount(Some(kind), target, Some(kind), flags, Some(options)) {
        Err(Errno::EBUSY) => Ok(()),
        result => result,
    }
}

fn report(result: nix::Result<()>, target: &str) {
    if let Err(error) = result {
        log::error!("cannot mount {target}: {error}");
    }
}

/// The links that programs expect in /dev.
fn device_links() {
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ];
    for (to, from) in links {
        if let Err(error) = symlink(to, from)
            && !Path::new(from).exists()
        {
            log::warn!("cannot link {from}: {error}");
        }
    }
    modules::make_device_nodes();
    // A container that runs as another user opens these through its own nodes, but a bind
    // mount of the guest's /dev must work as well.
    for node in ["/dev/fuse", "/dev/net/tun"] {
        let _ = fs::set_permissions(node, fs::Permissions::from_mode(0o666));
    }
}
