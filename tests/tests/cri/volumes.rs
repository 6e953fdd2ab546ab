//! Volumes, as the kubelet prepares and mounts them.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use k8s_cri::v1::{LinuxContainerResources, Mount, MountPropagation};
use pouch_tests::cri::{ContainerBuilder, Node, Pod};
use pouch_tests::{Invocation, eventually, has_vm, processes, vm_only};

tests! {
    both: a_projected_volume_is_updated, containers_meet_in_a_volume, block_devices;
    memory_and_disk, one_path_of_a_volume, read_only_and_propagation, a_block_device_is_used_again,
    a_block_device_of_a_privileged_container, block_devices_that_cannot_be_had, a_vm_ends_that_has_a_block_device,
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
    let container = pod.container("one").mount_read_only(&volume, "/config").start();
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

/// Sockets and pipes in an emptyDir, by which the containers of a pod reach each other: one has it read-only, and one
/// has a part of it only.
fn containers_meet_in_a_volume(node: Node) {
    let pod = node.pod("meeting").run();
    let volume = pod.volume("data");
    let part = volume.join("part");
    fs::create_dir(&part).unwrap();
    let server = pod.container("server").mount(&volume, "/shared").start();
    server.exec("ln -s /shared/part/log /dev/log; syslogd -O /shared/messages; mkfifo /shared/part/pipe");
    server.exec("cat /shared/part/pipe >/shared/piped 2>&1 </dev/null &");
    let reader = pod.container("reader").mount_read_only(&volume, "/shared").start();
    let log = |at: &str, text: &str| format!("ln -sf {at}/log /dev/log && logger '{text}'");
    reader.exec(&log("/shared/part", "of the reader"));
    let sees = |text: &str| server.exec("cat /shared/messages").contains(text);
    eventually("the socket takes what the reader says", || sees("of the reader"));
    let partial = pod.container("partial").mount(&part, "/part").start();
    partial.exec(&log("/part", "of the partial"));
    eventually("the socket takes what the other one says", || sees("of the partial"));
    partial.exec("timeout 20 sh -c 'echo through >/part/pipe'");
    eventually("the pipe leads to the server", || server.exec("cat /shared/piped") == "through");
    // What the reader has read is written by another one.
    reader.exec("cat /shared/messages >/dev/null");
    server.exec("echo first >/shared/both");
    assert_eq!(partial.exec("echo second >/part/both; cat /part/both"), "second");
    eventually("the file is there", || reader.sh("cat /shared/part/both").stdout == "second");
    // Server and reader mount the same directory.
    for name in ["one", "two", "three"] {
        assert_ne!(reader.sh(&format!("cat /shared/{name}")).status, 0);
        server.exec(&format!("echo {name} >/shared/{name}"));
        assert_eq!(reader.exec(&format!("cat /shared/{name}")), name, "a name is there at once");
    }
    partial.exec("echo third >/part/both");
    assert_eq!(
        reader.exec("cat /shared/part/both"),
        "third",
        "it is one file, which nobody has an old copy of"
    );
    partial.exec("ln /part/both /part/link && rm /part/both");
    assert_eq!(server.exec("cat /shared/part/link; stat -c %h /shared/part/link"), "third\n1");
    reader.remove();
    let again = pod.container("reader").attempt(1).mount(&volume, "/shared").start();
    again.exec(&log("/shared/part", "of the second one"));
    eventually("a container that comes later is heard", || sees("of the second one"));
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

/// A loop device over an image of a volume, as what a volume with `volumeMode: Block` is on the node.
struct Disk {
    device: String,
    image: PathBuf,
}

impl Disk {
    fn new(pod: &Pod<'_>, name: &str) -> Self {
        let image = pod.volume(name).join("image");
        fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
        let device = Invocation::of("losetup", ["--find", "--show", image.to_str().unwrap()]).run().ok();
        Disk { device, image }
    }

    /// Whether it has gone after it was told to: it stays as long as somebody has it open.
    fn goes(&self) -> bool {
        // It may have gone already.
        Invocation::of("losetup", ["--detach", &self.device]).run();
        let left = Invocation::of("losetup", ["--list", "--noheadings", "--output", "NAME"]).run().ok();
        left.lines().all(|name| name.trim() != self.device)
    }

    /// What it begins with, as the host sees it.
    fn text(&self) -> String {
        let mut bytes = [0; 64];
        fs::File::open(&self.device).unwrap().read_exact(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    }
}

/// Adds a device to a container, as the kubelet does.
fn with_device<'a>(
    container: ContainerBuilder<'a>,
    disk: &Disk,
    path: &str,
    permissions: &str,
) -> ContainerBuilder<'a> {
    container.with(|config| {
        config.devices.push(k8s_cri::v1::Device {
            container_path: path.to_owned(),
            host_path: disk.device.clone(),
            permissions: permissions.to_owned(),
        });
    })
}

/// The number of the device at this path, in a shell.
const NUMBER: &str = "number() { echo $((0x$(stat -c %t $1))):$((0x$(stat -c %T $1))); }";

/// volumeDevices.
fn block_devices(node: Node) {
    let pod = node.pod("block").run();
    let (one, two, three) = (Disk::new(&pod, "one"), Disk::new(&pod, "two"), Disk::new(&pod, "three"));
    fs::write(&three.device, "of the host").unwrap();
    let first = with_device(pod.container("first"), &one, "/dev/xvda", "mrw");
    let first = with_device(first, &three, "/dev/xvdb", "r").start();
    let second = with_device(pod.container("second"), &two, "/dev/block/data", "mrw").start();
    assert_eq!(first.exec("stat -c '%F %u:%g' /dev/xvda"), "block special file 0:0");
    let size = format!("{NUMBER}; cat /sys/dev/block/$(number /dev/xvda)/size");
    assert_eq!(first.exec(&size), "16384");
    first.exec("echo 'of one' | dd of=/dev/xvda conv=fsync 2>/dev/null");
    second.exec("echo 'of two' >/dev/block/data");
    assert!(fs::read(&one.image).unwrap().starts_with(b"of one\n"), "it was written by fsync");
    assert_eq!(first.exec("head -c 7 /dev/xvda; head -c 11 /dev/xvdb"), "of one\nof the host");
    // The last one may only be read.
    let denied = first.sh("echo x >/dev/xvdb");
    assert!(denied.status != 0 && denied.stderr.contains("not permitted"), "{denied:?}");
    if has_vm() {
        let read_only = format!("{NUMBER}; cat /sys/dev/block/$(number /dev/xvdb)/ro");
        assert_eq!(first.exec(&read_only), "1", "it is so for the guest too");
        assert_eq!(second.sh("ls /dev/xvda").status, 1);
        // Nor by its number.
        let foreign =
            format!("{NUMBER}; n=$(number /dev/block/data); mknod /dev/x b ${{n%:*}} 0; head -c 7 /dev/x");
        let foreign = second.sh(&foreign);
        assert!(foreign.stderr.contains("not permitted"), "{foreign:?}");
    }
    // New limits come with the rules of the host's devices.
    let limits = LinuxContainerResources { cpu_shares: 512, ..Default::default() };
    second.update(limits).unwrap();
    assert_eq!(second.exec("head -c 7 /dev/block/data"), "of two");
    for container in [&first, &second] {
        container.try_stop(10).unwrap();
        container.remove();
    }
    // What was not synchronised is there all the same.
    assert_eq!((one.text(), two.text()), ("of one\n".to_owned(), "of two\n".to_owned()));
    assert!(one.goes() && two.goes() && three.goes());
}

fn a_block_device_of_a_privileged_container(node: Node) {
    let pod = node.pod("privileged");
    let pod = pod.linux(|linux| linux.security_context.get_or_insert_default().privileged = true).run();
    let disk = Disk::new(&pod, "disk");
    let container = pod.container("one").security(|security| security.privileged = true);
    let container = with_device(container, &disk, "/dev/xvda", "rw").start();
    container.exec("echo 'of the privileged' >/dev/xvda");
    pod.try_stop().unwrap();
    assert_eq!(disk.text(), "of the privileged\n");
    assert!(disk.goes());
}

/// One container after another has the device, and then two at a time.
fn a_block_device_is_used_again(node: Node) {
    let pod = node.pod("again").run();
    let disk = Disk::new(&pod, "disk");
    // More often than a VM has slots.
    for round in 0..9 {
        let script = format!("head -c 2 /dev/xvda; echo {round} | dd of=/dev/xvda 2>/dev/null");
        let name = format!("round-{round}");
        let container = with_device(pod.container(&name), &disk, "/dev/xvda", "rw");
        let expected = if round == 0 { String::new() } else { (round - 1).to_string() };
        assert_eq!(container.sh(&script).run().stdout.trim_matches('\0'), expected);
    }
    let with = |name: &str| with_device(pod.container(name), &disk, "/dev/shared", "rw").start();
    let (one, two) = (with("first"), with("second"));
    one.exec("echo shared | dd of=/dev/shared conv=fsync 2>/dev/null");
    one.try_stop(10).unwrap();
    one.remove();
    assert_eq!(two.exec("head -c 7 /dev/shared"), "shared");
    if has_vm() {
        let other = node.pod("other").run();
        let refused = with_device(other.container("one"), &disk, "/dev/xvda", "rw").try_start();
        let error = refused.err().expect("it has a writer");
        assert!(error.message().contains("/dev/xvda") && error.message().contains("in use"), "{error}");
    }
    two.try_stop(10).unwrap();
    two.remove();
    assert!(disk.goes());
}

fn block_devices_that_cannot_be_had(node: Node) {
    vm_only!();
    let pod = node.pod("missing").run();
    let disk = Disk::new(&pod, "disk");
    let path = pod.volume("nodes").join("node");
    // For local use, and of no driver.
    Invocation::of("mknod", [path.to_str().unwrap(), "b", "240", "1000"]).run().ok();
    let missing = Disk { device: path.display().to_string(), image: path };
    let with = |name: &str, first: &Disk, second: &Disk| {
        with_device(with_device(pod.container(name), first, "/dev/xvda", "rw"), second, "/dev/xvdb", "rw")
    };
    let error = with("one", &disk, &missing).try_start().err().expect("it does not exist");
    assert!(error.message().contains("/dev/xvdb") && error.message().contains("240:1000"), "{error}");
    assert!(error.message().contains("does not exist"), "{error}");
    // What fails after the device has come takes it along.
    let container =
        with_device(pod.container("two"), &disk, "/dev/xvda", "rw").command(&["/no/such/program"]);
    container.try_start().err().expect("there is no such program");
    // A container without any is not affected.
    assert_eq!(pod.container("three").sh("echo runs").run().stdout, "runs");
    pod.try_stop().unwrap();
    assert!(disk.goes());
}

/// The VM ends while a container uses the device.
fn a_vm_ends_that_has_a_block_device(node: Node) {
    vm_only!();
    for killed in [true, false] {
        let pod = node.pod("ends").run();
        let disk = Disk::new(&pod, "disk");
        let container = with_device(pod.container("one"), &disk, "/dev/xvda", "rw").start();
        container.exec("echo 'before the end' >/dev/xvda");
        if killed {
            processes::vmm_of(pod.pid()).into_iter().for_each(processes::sigkill);
            eventually("the container is stopped", || !container.runs());
        } else {
            pod.try_stop().unwrap();
            assert_eq!(disk.text(), "before the end\n");
        }
        eventually("nobody has the device", || disk.goes());
        pod.remove();
    }
}
