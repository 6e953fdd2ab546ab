//! A host that lacks something: KVM, the guest's parts, room.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pouch_tests::bundle::unique_id;
use pouch_tests::{Bundle, Invocation, Leftovers, Output, vm_only};
use serde_json::json;
use tempfile::TempDir;

const INSTALLED: &str = "/usr/local/share/pouch-vm";

/// Runs a container and `check` under a configuration; both must fail, name the words, and leave
/// nothing.
#[track_caller]
fn refused(configuration: &str, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    fs::write(&file, configuration).unwrap();
    let bundle = Bundle::busybox().args(["true"]);
    bundle.write();
    let _ = fs::create_dir("/run/pouch-vm");
    let path = bundle.path().to_str().unwrap();
    let id = unique_id();
    for arguments in [&["run", "--bundle", path, &id][..], &["create", "--bundle", path, &id], &["check"]] {
        let before = Leftovers::picture();
        let mut output = Invocation::new(arguments).env("POUCH_VM_CONFIG", &file).run();
        // What `check` finds is its result, and so on standard output.
        if arguments == ["check"] {
            let verdict = std::mem::take(&mut output.stdout);
            output.stderr.extend(verdict);
        }
        output.fails_naming(words);
        before.check();
    }
}

/// A copy of a part, changed.
fn damaged(part: &str, folder: &TempDir, damage: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = fs::read(Path::new(INSTALLED).join(part)).unwrap();
    damage(&mut bytes);
    let path = folder.path().join(part);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn nothing_left_without_a_kernel() {
    vm_only!();
    refused("kernel = \"/no/such/kernel\"", &["/no/such/kernel"]);
    refused("kernel = \"/etc\"", &["/etc"]);
    refused("kernel = \"/etc/passwd\"", &["/etc/passwd"]);
    refused("kernel = \"/dev/null\"", &["/dev/null"]);
}

#[test]
fn nothing_left_with_a_damaged_kernel() {
    vm_only!();
    let folder = tempfile::tempdir().unwrap();
    let path = damaged("vmlinux", &folder, |bytes| bytes.truncate(1 << 20));
    refused(&format!("kernel = {path:?}"), &["kernel"]);
    let path = damaged("vmlinux", &folder, |bytes| bytes[..64].fill(0xff));
    refused(&format!("kernel = {path:?}"), &["kernel"]);
    // The code is gone: the guest ends at once, or never answers.
    let path = damaged("vmlinux", &folder, |bytes| bytes[0x2000..].fill(0));
    refused(&format!("kernel = {path:?}\nboot_timeout_seconds = 20"), &["guest"]);
}

#[test]
fn nothing_left_without_a_guest_root() {
    vm_only!();
    refused("guest_root = \"/no/such/root\"", &["/no/such/root"]);
    refused("guest_root = \"/etc\"", &["/etc"]);
}

#[test]
fn nothing_left_with_a_damaged_guest_root() {
    vm_only!();
    let folder = tempfile::tempdir().unwrap();
    let path = damaged("guest-root.erofs", &folder, |bytes| bytes.truncate(bytes.len() / 2));
    refused(&format!("guest_root = {path:?}\nboot_timeout_seconds = 30"), &["guest"]);
    let path = damaged("guest-root.erofs", &folder, |bytes| bytes.fill(0));
    refused(&format!("guest_root = {path:?}\nboot_timeout_seconds = 30"), &["guest"]);
    let path = damaged("guest-root.erofs", &folder, Vec::clear);
    refused(&format!("guest_root = {path:?}\nboot_timeout_seconds = 30"), &["guest"]);
}

#[test]
fn nothing_left_without_a_vmm() {
    vm_only!();
    refused("vmm = \"/no/such/vmm\"", &["/no/such/vmm"]);
    refused("vmm = \"/bin/false\"", &["VMM"]);
    refused("vmm = \"/etc/passwd\"", &["/etc/passwd"]);
}

#[test]
fn nothing_left_without_kvm() {
    vm_only!();
    refused("kvm = \"/dev/no-such-kvm\"", &["/dev/no-such-kvm"]);
    // A device that is something else.
    refused("kvm = \"/dev/null\"", &["/dev/null"]);
    refused("kvm = \"/etc/passwd\"", &["/etc/passwd"]);
}

#[test]
fn nothing_left_without_memory_for_the_guest() {
    vm_only!();
    let _ = fs::create_dir("/run/pouch-vm");
    let bundle =
        Bundle::busybox().args(["true"]).set("/linux/resources/memory", json!({"limit": 2_u64 << 30}));
    bundle.write();
    let before = Leftovers::picture();
    // Less than the guest's memory, and more than all else.
    let script =
        format!("ulimit -v 1500000; exec pouch-vm run --bundle {} {}", bundle.path().display(), unique_id());
    Invocation::of("sh", ["-c", &script]).run().fails_naming(&["guest memory"]);
    before.check();
}

#[test]
fn nothing_left_where_kvm_is_not_permitted() {
    vm_only!();
    let _ = fs::create_dir("/run/pouch-vm");
    let bundle = Bundle::busybox().args(["true"]);
    bundle.write();
    let before = Leftovers::picture();
    // Root without the capability to pass over permissions, and a device that it may not open. It
    // could not make a cgroup in the topmost one either.
    fs::create_dir("/sys/fs/cgroup/pouch-vm").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (device, file) = (folder.path().join("kvm"), folder.path().join("config.toml"));
    let path = device.to_str().unwrap();
    Invocation::of("mknod", ["--mode=0", path, "c", "10", "232"]).run().ok();
    fs::write(&file, format!("kvm = {path:?}")).unwrap();
    let drop = ["--drop=cap_dac_override,cap_dac_read_search", "--", "-c"];
    let command = format!("exec pouch-vm run --bundle {} {}", bundle.path().display(), unique_id());
    let output = Invocation::of("capsh", drop.iter().copied().chain([command.as_str()]))
        .env("POUCH_VM_CONFIG", &file)
        .run();
    output.fails_naming(&[path, "permission denied"]);
    std::mem::drop(folder);
    let _ = fs::remove_dir("/sys/fs/cgroup/pouch-vm");
    before.check();
}

#[test]
fn nothing_left_of_a_wrong_configuration() {
    vm_only!();
    refused("no_such_key = 1", &["config.toml", "no_such_key"]);
    refused("default_vcpus = 0", &["default_vcpus"]);
    refused("default_memory_mib = \"many\"", &["config.toml"]);
    refused("not toml", &["config.toml"]);
}

#[test]
fn nothing_left_of_a_vm_too_small_for_its_kernel() {
    vm_only!();
    refused("default_memory_mib = 8", &["default_memory_mib"]);
    let bundle = Bundle::busybox().args(["true"]).set("/linux/resources/memory", json!({"limit": 1 << 20}));
    let before = Leftovers::picture();
    bundle.run().fails_naming(&["memory"]);
    before.check();
}

/// A file system of this many KiB, mounted as long as it lives.
struct Small(TempDir);

impl Small {
    fn new(kib: usize) -> Self {
        let folder = tempfile::Builder::new().prefix("small-").tempdir_in("/var/tmp").unwrap();
        let options = format!("size={kib}k");
        mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Small(folder)
    }

    fn fill(&self) {
        let _ = fs::write(self.0.path().join("filler"), vec![1; 64 << 20]);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

#[test]
fn nothing_left_where_the_state_has_no_room() {
    vm_only!();
    let small = Small::new(16);
    small.fill();
    let bundle = Bundle::busybox().args(["true"]);
    bundle.write();
    let before = Leftovers::picture();
    let (root, path) = (small.0.path().to_str().unwrap(), bundle.path().to_str().unwrap());
    for operation in ["create", "run"] {
        let output = Invocation::new(["--root", root, operation, "--bundle", path, "no-room"]).run();
        output.fails_naming(&["no space left", root]);
        assert_eq!(fs::read_dir(root).unwrap().count(), 1, "only the filler is there");
    }
    before.check();
}

#[test]
fn a_full_disk_is_the_containers_to_see() {
    let small = Small::new(2048);
    let script =
        "head -c 10M /dev/zero >/data/x; echo status $?; rm /data/x; echo fine >/data/y; cat /data/y";
    let bundle = Bundle::debian().sh(script).mount("/data", "bind", small.0.path(), &["rbind"]);
    let output: Output = bundle.run();
    assert_eq!(output.ok(), "status 1\nfine");
    assert!(output.errors().contains("No space left on device"), "{output}");
}

#[test]
fn a_full_disk_below_a_block_image_is_an_error_inside() {
    vm_only!();
    let small = Small::new(80 << 10);
    let image = small.0.path().join("root.ext4");
    Invocation::of(
        "cp",
        ["--sparse=always", "/var/lib/pouch-test/images/busybox/rootfs.ext4", image.to_str().unwrap()],
    )
    .run()
    .ok();
    small.fill();
    let bundle = Bundle::without_root().set("/root", json!({"path": image, "readonly": false}));
    let script = "dd if=/dev/zero of=/x bs=1M count=40 conv=fsync; echo status $?";
    let output = bundle.sh(script).run();
    assert!(output.text().contains("status 1"), "{output}");
}
