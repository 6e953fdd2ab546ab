//! Volumes, as the kubelet prepares and mounts them.

use std::fs;
use std::os::unix::fs::symlink;

use k8s_cri::v1::{Mount, MountPropagation};
use pouch_tests::cri::Node;
use pouch_tests::{Invocation, eventually, vm_only};

tests! {
    both: a_projected_volume_is_updated;
    memory_and_disk, one_path_of_a_volume, read_only_and_propagation, block_devices_are_refused,
}

/// configMap, secret and projected volumes: the kubelet replaces a symbolic link.
fn a_projected_volume_is_updated(node: Node) {
    let pod = node.pod("projected").run();
    let volume = pod.volume("config");
    let publish = |version: &str, old: Option<&str>| {
        fs::create_dir(volume.join(version)).unwrap();
        fs::write(volume.join(version).join("key"), version).unwrap();
        symlink(version, volume.join("..data_tmp")).unwrap();
        fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        old.map_or(Ok(()), |old| fs::remove_dir_all(volume.join(old))).unwrap();
    };
    publish("..v1", None);
    symlink("..data/key", volume.join("key")).unwrap();
    let container = pod.container("one").with(|config| {
        config.mounts.push(Mount {
            host_path: volume.display().to_string(),
            container_path: "/config".to_owned(),
            readonly: true,
            ..Default::default()
        });
    });
    let container = container.start();
    assert_eq!(container.exec("cat /config/key"), "..v1");
    publish("..v2", Some("..v1"));
    eventually("the update is seen", || container.exec("cat /config/key") == "..v2");
    assert_eq!(container.sh("ls /config/..v1").status, 1);
}

/// emptyDir on disk and in memory.
fn memory_and_disk(node: Node) {
    let pod = node.pod("empty").run();
    let (disk, memory) = (pod.volume("disk"), pod.volume("memory"));
    let target = memory.to_str().unwrap().to_owned();
    Invocation::of("mount", ["-t", "tmpfs", "-o", "size=1M", "tmpfs", &target]).run().ok();
    let with = |name: &str| pod.container(name).mount(&disk, "/disk").mount(&memory, "/memory");
    let writer = with("writer").start();
    writer.exec("echo disk >/disk/file; echo memory >/memory/file");
    let reader = with("reader").start();
    assert_eq!(reader.exec("cat /disk/file /memory/file"), "disk\nmemory");
    let full = writer.sh("dd if=/dev/zero of=/memory/big bs=1M count=2");
    assert!(full.status != 0 && full.stderr.contains("No space left"), "{full:?}");
    pod.try_stop().unwrap();
    pod.try_remove().unwrap();
    assert_eq!(fs::read_to_string(disk.join("file")).unwrap(), "disk\n");
    Invocation::of("umount", [&target]).run().ok();
}

/// subPath: a bind mount of a file or directory of a volume that the kubelet prepares.
fn one_path_of_a_volume(node: Node) {
    let pod = node.pod("subpath").run();
    let volume = pod.volume("data");
    fs::create_dir(volume.join("part")).unwrap();
    fs::write(volume.join("part/file"), "in part\n").unwrap();
    fs::write(volume.join("secret"), "not in part").unwrap();
    let prepared = pod.volume("subpaths");
    let target = prepared.to_str().unwrap().to_owned();
    Invocation::of("mount", ["--bind", volume.join("part").to_str().unwrap(), &target]).run().ok();
    let ended = pod
        .container("one")
        .mount(&prepared, "/data")
        .sh("cat /data/file; ls /data/..data /data/secret; ls /data")
        .run();
    assert_eq!(ended.stdout, "in part\nfile", "{ended:?}");
    Invocation::of("umount", [&target]).run().ok();
}

fn read_only_and_propagation(node: Node) {
    let pod = node.pod("flags").run();
    let volume = pod.volume("data");
    fs::create_dir(volume.join("later")).unwrap();
    let mount = |readonly: bool, propagation: MountPropagation, path: &str| Mount {
        host_path: volume.display().to_string(),
        container_path: path.to_owned(),
        readonly,
        propagation: propagation as i32,
        ..Default::default()
    };
    let container = pod.container("one").with(|config| {
        config.mounts.push(mount(true, MountPropagation::PropagationPrivate, "/read"));
        config.mounts.push(mount(false, MountPropagation::PropagationHostToContainer, "/follow"));
    });
    let container = container.start();
    let failed = container.sh("echo x >/read/file");
    assert!(failed.stderr.contains("Read-only file system"), "{failed:?}");
    container.exec("echo x >/follow/file");
    // Of one mount it is known for a second that there was no file (docs/limits.md).
    eventually("the other mount shows the file", || container.sh("cat /read/file").stdout == "x");
}

/// volumeDevices: the guest has a loop device with the same number, which is another.
fn block_devices_are_refused(node: Node) {
    vm_only!();
    let pod = node.pod("block").run();
    let image = pod.volume("disk").join("image");
    fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
    let device = Invocation::of("losetup", ["--find", "--show", image.to_str().unwrap()]).run().ok();
    let container = pod.container("one").with(|config| {
        config.devices.push(k8s_cri::v1::Device {
            container_path: "/dev/xvda".to_owned(),
            host_path: device.clone(),
            permissions: "mrw".to_owned(),
        });
    });
    let refused = container.try_start();
    Invocation::of("losetup", ["--detach", &device]).run().ok();
    let error = refused.err().expect("it is refused");
    assert!(error.message().contains("linux.devices[") && error.message().contains("/dev/xvda"), "{error}");
}
