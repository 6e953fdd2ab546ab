//! Mounts of the configuration, and roots that are not folders.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use pouch_tests::bundle::image_file;
use pouch_tests::{Bundle, Invocation, eventually, processes, vm_only};
use serde_json::json;

/// A folder of the host with a file in it.
fn host_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("pouch-volume-").tempdir_in("/var/tmp").unwrap();
    fs::write(folder.path().join("file"), "of the host\n").unwrap();
    folder
}

#[test]
fn a_bind_mount_is_read_and_written() {
    let folder = host_folder();
    let script = "cat /data/file; echo of the guest >/data/new; mkdir /data/sub; rm /data/file; ls /data";
    let bundle = Bundle::debian().sh(script).mount("/data", "bind", folder.path(), &["rbind", "rw"]);
    assert_eq!(bundle.run().ok(), "of the host\nnew\nsub");
    assert_eq!(fs::read_to_string(folder.path().join("new")).unwrap(), "of the guest\n");
    assert!(!folder.path().join("file").exists());
}

#[test]
fn a_read_only_bind_mount_is_not_written() {
    let folder = host_folder();
    let script = "cat /data/file; echo x >/data/file; rm /data/file; chmod 777 /data; touch /data/x; id -u";
    let bundle = Bundle::debian().sh(script).mount("/data", "bind", folder.path(), &["rbind", "ro"]);
    let output = bundle.run();
    assert_eq!(output.ok(), "of the host\n0");
    assert_eq!(output.errors().matches("Read-only file system").count(), 4, "{output}");
    assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "of the host\n");
}

#[test]
fn a_group_that_is_not_the_first_may_make_files() {
    let folder = host_folder();
    std::os::unix::fs::chown(folder.path(), Some(0), Some(4242)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o775)).unwrap();
    let user = json!({"uid": 1234, "gid": 5678, "additionalGids": [4242]});
    let script = "cd /data; echo x >new; mkdir sub; ln -s new link; mkfifo pipe; stat -c '%n %u:%g %a' new sub link pipe";
    let shared = |bundle: Bundle| bundle.mount("/data", "bind", folder.path(), &["rbind", "rw"]);
    let output = shared(Bundle::debian().sh(script).set("/process/user", user)).run().ok();
    assert_eq!(output, "new 1234:5678 644\nsub 1234:5678 755\nlink 1234:5678 777\npipe 1234:5678 644");
    assert_eq!(fs::metadata(folder.path().join("new")).unwrap().uid(), 1234);
    // Who is in no such group may not.
    let stranger = json!({"uid": 1234, "gid": 5678});
    let output = shared(Bundle::debian().sh("touch /data/other").set("/process/user", stranger)).run();
    assert!(output.status == 1 && output.errors().contains("Permission denied"), "{output}");
}

#[test]
fn a_single_file_can_be_mounted() {
    let folder = host_folder();
    let file = folder.path().join("file");
    let bundle = Bundle::debian()
        .sh("cat /etc/resolv.conf /read-only; echo more >>/etc/resolv.conf; echo no >/read-only; ls -d /new/place/file")
        .mount("/etc/resolv.conf", "bind", &file, &["bind"])
        .mount("/read-only", "bind", &file, &["bind", "ro"])
        .mount("/new/place/file", "bind", &file, &["bind"]);
    let output = bundle.run();
    assert_eq!(output.ok(), "of the host\nof the host\n/new/place/file");
    assert!(output.errors().contains("Read-only file system"), "{output}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "of the host\nmore\n");
}

#[test]
fn mount_options_are_honoured() {
    let folder = host_folder();
    fs::copy("/bin/true", folder.path().join("program")).unwrap();
    let options = ["rbind", "nosuid", "nodev", "noexec", "nosymfollow"];
    symlink("file", folder.path().join("link")).unwrap();
    let bundle = Bundle::debian().sh("/data/program; cat /data/link; findmnt -n -o OPTIONS /data").mount(
        "/data",
        "bind",
        folder.path(),
        &options[..4],
    );
    let output = bundle.run();
    let text = output.ok();
    for option in ["nosuid", "nodev", "noexec"] {
        assert!(text.contains(option), "no {option}: {output}");
    }
    assert!(output.errors().contains("Permission denied"), "{output}");
}

#[test]
fn a_link_cannot_lead_out_of_the_volume() {
    let (folder, outside) = (host_folder(), host_folder());
    symlink(outside.path().join("file"), folder.path().join("out")).unwrap();
    symlink("../../../../../../../../etc/hostname", folder.path().join("up")).unwrap();
    let script =
        "cat /data/out; cat /data/up; cat /data/../../../../etc/debian_version >/dev/null && echo root";
    let output = Bundle::debian().sh(script).mount("/data", "bind", folder.path(), &["rbind"]).run();
    assert!(!output.text().contains("of the host"), "{output}");
    assert!(output.text().contains("root"), "{output}");
}

#[test]
fn a_link_in_the_root_is_no_way_out_for_a_mount() {
    let (folder, outside) = (host_folder(), host_folder());
    let bundle = Bundle::debian().sh("cat /trap/inside/file; echo done");
    symlink(outside.path(), bundle.rootfs().join("trap")).unwrap();
    let output = bundle.mount("/trap/inside", "bind", folder.path(), &["rbind"]).run();
    // The link's target is taken as a path inside the root, or the mount is refused.
    assert!(!outside.path().join("inside").exists(), "a mount point was made on the host: {output}");
}

#[test]
fn a_tmpfs_has_its_size_and_mode() {
    let bundle = Bundle::debian()
        .sh("findmnt -n -o FSTYPE,SIZE /scratch; stat -c %a /scratch; head -c 2M /dev/zero >/scratch/x; stat -c %s /scratch/x")
        .mount("/scratch", "tmpfs", "tmpfs", &["size=1m", "mode=1750", "noexec"]);
    let output = bundle.run();
    assert_eq!(output.ok(), "tmpfs    1M\n1750\n1048576");
    assert!(output.errors().contains("No space left"), "{output}");
}

#[test]
fn mounts_are_made_in_their_order() {
    let folder = host_folder();
    let bundle = Bundle::debian().sh("ls /a; ls /a/b; ls /a/b/c").mount("/a", "tmpfs", "tmpfs", &[]).mount(
        "/a/b",
        "bind",
        folder.path(),
        &["rbind", "ro"],
    );
    fs::create_dir(folder.path().join("c")).unwrap();
    let bundle = bundle.mount("/a/b/c", "tmpfs", "tmpfs", &[]);
    assert_eq!(bundle.run().ok(), "b\nc\nfile");
}

/// The VMM has a descriptor for each file of the host that the guest knows, and the host's kernel memory for it.
#[test]
fn a_guest_that_has_seen_many_files_keeps_few_of_them_open() {
    vm_only!();
    // 64 MiB of the container's and some 50 of the guest's: 8192 files and 16 more for each MiB.
    const KEPT: usize = 8192 + 16 * 120;
    const ALL: usize = 16_000;
    let folder = tempfile::tempdir().unwrap();
    for number in 0..ALL {
        fs::write(folder.path().join(format!("{number}")), "x").unwrap();
    }
    let bundle = Bundle::debian().args(["sleep", "1000"]).mount("/data", "bind", folder.path(), &["rbind"]);
    let container = bundle.set("/linux/resources/memory", json!({"limit": 64 << 20})).start();
    for _ in 0..2 {
        assert_eq!(container.sh("find /data -type f -size 1 | wc -l"), ALL.to_string());
        let open = |pid: &i32| fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        let most = processes::vmm_of(container.pid()).iter().map(open).max().unwrap();
        assert!((KEPT / 2..KEPT + 200).contains(&most), "{most} files are open");
    }
    // One that the guest has forgotten is found and written as ever.
    assert_eq!(
        container.sh("cd /data; echo y >>15999; cat 15999; mv 1 moved; rm 2; ls | wc -l"),
        "xy\n15999"
    );
    assert_eq!(fs::read_to_string(folder.path().join("moved")).unwrap(), "x");
}

/// Without rslave, a mount that the host makes later is none of the container's.
#[test]
fn later_mounts_of_the_host_stay_out() {
    let folder = host_folder();
    let late = folder.path().join("late");
    fs::create_dir(&late).unwrap();
    let own = CString::new(folder.path().to_str().unwrap()).unwrap();
    mount(Some(own.as_c_str()), own.as_c_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    mount(None::<&str>, own.as_c_str(), None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    let bundle = Bundle::debian().args(["sleep", "1000"]);
    let bundle = bundle.mount("/plain", "bind", folder.path(), &["rbind", "ro"]);
    let container = bundle.mount("/following", "bind", folder.path(), &["rbind", "rslave"]).start();
    mount(Some("tmpfs"), &late, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write(late.join("secret"), "").unwrap();
    let seen = container.exec(&["ls", "/plain/late", "/following/late"]).text();
    container.delete_by_force();
    umount2(&late, MntFlags::MNT_DETACH).unwrap();
    umount2(own.as_c_str(), MntFlags::MNT_DETACH).unwrap();
    assert_eq!(seen, "/following/late:\nsecret\n\n/plain/late:");
}

/// inode(7): a write or a truncation by a user without CAP_FSETID takes them; root's leaves them.
#[test]
fn set_id_bits_go_when_another_user_writes() {
    let script = r#"cd /srv; mode() { stat --cached=never -c %a f; }
        cp /bin/true f; chmod 6777 f; mode
        echo root >>f; truncate -s 100 f; truncate -s 0 f; : >f; mode
        setpriv --reuid 1000 --clear-groups sh -c 'echo user >>f'; mode
        chmod 6777 f; setpriv --reuid 1000 --clear-groups sh -c ': >f'; mode
        chmod 6777 f; chown 1000 f; mode"#;
    let capabilities =
        ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_SETUID", "CAP_SETGID"];
    let output = Bundle::debian().sh(script).capable(&capabilities).run();
    assert_eq!(output.ok(), "6777\n6777\n777\n777\n777");
}

/// Engines fill `/etc/hosts` and `/etc/resolv.conf` so late, in files that are there already.
#[test]
fn a_file_that_is_filled_between_create_and_start_is_whole() {
    let folder = host_folder();
    let file = folder.path().join("empty");
    fs::write(&file, "").unwrap();
    let bundle = Bundle::debian().sh("cat /etc/hosts; stat -c %s /etc/hosts");
    let container = bundle.mount("/etc/hosts", "bind", &file, &["bind"]).create();
    fs::write(&file, "192.0.2.1 late\n").unwrap();
    container.start();
    container.await_status("stopped");
    assert_eq!(container.stdout(), "192.0.2.1 late\n15\n");
}

#[test]
fn what_the_host_changes_is_seen_inside() {
    let folder = host_folder();
    let bundle = Bundle::debian().args(["sleep", "1000"]).mount("/data", "bind", folder.path(), &["rbind"]);
    let container = bundle.start();
    assert_eq!(container.sh("cat /data/file"), "of the host");
    fs::write(folder.path().join("file"), "changed\n").unwrap();
    fs::write(folder.path().join("later"), "later\n").unwrap();
    assert_eq!(container.sh("cat /data/file /data/later"), "changed\nlater");
    container.sh("chmod 640 /data/later");
    assert_eq!(fs::metadata(folder.path().join("later")).unwrap().mode() & 0o777, 0o640);
}

#[test]
fn a_shared_socket_file_is_visible() {
    let folder = host_folder();
    let _listener = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
    let bundle =
        Bundle::debian().sh("stat -c %F /data/socket").mount("/data", "bind", folder.path(), &["rbind"]);
    assert_eq!(bundle.run().ok(), "socket");
}

#[test]
fn an_ext4_image_is_a_root_that_can_be_written() {
    vm_only!();
    let folder = host_folder();
    let image = folder.path().join("root.ext4");
    fs::copy(image_file("debian", "rootfs.ext4"), &image).unwrap();
    let bundle = Bundle::without_root().set("/root", json!({"path": image, "readonly": false}));
    let bundle = bundle.sh("stat -f -c %T /; echo kept >/kept; cat /kept; df --output=source / | tail -1");
    let text = bundle.run().ok();
    assert!(text.starts_with("ext2/ext3\nkept\n"), "{text}");
    let again = bundle.sh("cat /kept").run();
    assert_eq!(again.ok(), "kept");
    // Two that write to it would destroy it.
    let first = Bundle::without_root().set("/root", json!({"path": image, "readonly": false}));
    let first = first.args(["sleep", "100000"]).start();
    for read_only in [false, true] {
        let second = Bundle::without_root().set("/root", json!({"path": image, "readonly": read_only}));
        let refused = second.sh("true").run();
        assert_ne!(refused.status, 0, "{refused}");
        assert!(refused.errors().contains("is in use by another container"), "{refused}");
    }
    drop(first);
    let check = Invocation::of("e2fsck", ["-fn", image.to_str().unwrap()]).run();
    assert_eq!(check.status, 0, "the file system is whole: {check}");
}

#[test]
fn an_ext4_image_can_be_read_only() {
    vm_only!();
    let image = image_file("debian", "rootfs.ext4");
    let before = fs::metadata(&image).unwrap().mtime();
    let bundle = Bundle::without_root().set("/root", json!({"path": image, "readonly": true}));
    let sharing = Bundle::without_root().set("/root", json!({"path": image, "readonly": true}));
    let _sharing = sharing.args(["sleep", "100000"]).start();
    let output = bundle.sh("touch /x; cat /etc/debian_version >/dev/null && echo read").run();
    assert_eq!(output.ok(), "read");
    assert!(output.errors().contains("Read-only file system"), "{output}");
    assert_eq!(fs::metadata(&image).unwrap().mtime(), before);
}

#[test]
fn an_erofs_image_is_a_read_only_root() {
    vm_only!();
    let image = image_file("debian", "rootfs.erofs");
    let bundle = Bundle::without_root().set("/root", json!({"path": image, "readonly": true}));
    let output = bundle.sh("touch /x; findmnt -n -o FSTYPE /; id -u").run();
    assert_eq!(output.ok(), "erofs\n0");
    assert!(output.errors().contains("Read-only file system"), "{output}");
}

#[test]
fn a_block_device_is_a_root() {
    vm_only!();
    let bundle = Bundle::without_root();
    let image = bundle.path().join("root.ext4");
    fs::copy(image_file("busybox", "rootfs.ext4"), &image).unwrap();
    let device = Invocation::of("losetup", ["--find", "--show", image.to_str().unwrap()]).run().ok();
    let bundle = bundle.set("/root", json!({"path": device, "readonly": false}));
    let bundle = bundle.sh("echo written >/file; cat /file");
    let looped = bundle.run();
    // The device mapper's names are links to what they stand for.
    let name = pouch_tests::bundle::unique_id();
    let table = format!("0 {} linear {device} 0", fs::metadata(&image).unwrap().len() / 512);
    let dmsetup = |arguments: &[&str]| {
        Invocation::of("dmsetup", arguments).run().ok();
        // There is no udev to make the name, and to take it away.
        Invocation::of("dmsetup", ["mknodes"]).run().ok();
    };
    dmsetup(&["create", &name, "--noudevsync", "--table", &table]);
    let bundle = bundle.set("/root", json!({"path": format!("/dev/mapper/{name}"), "readonly": false}));
    let bundle = bundle.sh("cat /file; echo more >>/file; cat /file");
    let mapped = bundle.run();
    dmsetup(&["remove", "--noudevsync", "--retry", &name]);
    Invocation::of("losetup", ["--detach", &device]).run().ok();
    assert_eq!(looped.ok(), "written");
    assert_eq!(mapped.ok(), "written\nwritten\nmore");
}

/// `linux.devices` with a block device, which is a disk of the VM.
#[test]
fn a_block_device_is_a_device() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = folder.path().join("image");
    fs::write(&image, "of the host".to_owned() + &"\0".repeat(1 << 20)).unwrap();
    let device = Invocation::of("losetup", ["--find", "--show", image.to_str().unwrap()]).run().ok();
    let number = fs::metadata(&device).unwrap().rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let node = json!({
        "path": "/dev/data", "type": "b", "major": major, "minor": minor, "fileMode": 0o640, "uid": 5, "gid": 6,
    });
    let run = |access: &str, script: &str| {
        let rule = json!({"allow": true, "type": "b", "major": major, "minor": minor, "access": access});
        let bundle = Bundle::debian().sh(script).capable(&["CAP_DAC_OVERRIDE"]);
        bundle.push("/linux/devices", node.clone()).push("/linux/resources/devices", rule).run()
    };
    let read = run("r", "stat -c '%F %a %u:%g' /dev/data; head -c 11 /dev/data; echo; echo x >/dev/data");
    let written = run("rw", "printf 'of the guest' >/dev/data; head -c 12 /dev/data");
    Invocation::of("losetup", ["--detach", &device]).run().ok();
    assert_eq!(read.text().trim_end(), "block special file 640 5:6\nof the host");
    assert!(read.status != 0 && read.errors().contains("not permitted"), "{read}");
    assert_eq!(written.ok(), "of the guest");
    eventually("it is on the disk", || fs::read(&image).unwrap().starts_with(b"of the guest\0"));
}

/// What the container wrote last takes longer to reach the disk than anything else at its end may take.
#[test]
fn a_slow_disk_gets_all_that_was_written() {
    vm_only!();
    let bundle = Bundle::without_root();
    let image = bundle.path().join("root.ext4");
    fs::copy(image_file("debian", "rootfs.ext4"), &image).unwrap();
    let device = Invocation::of("losetup", ["--find", "--show", image.to_str().unwrap()]).run().ok();
    let number = fs::metadata(&device).unwrap().rdev();
    let (major, minor) = (libc::major(number), libc::minor(number));
    let slow = json!({"throttleWriteBpsDevice": [{"major": major, "minor": minor, "rate": 1 << 20}]});
    let bundle = bundle.set("/root", json!({"path": device, "readonly": false}));
    let bundle = bundle.set("/linux/resources/blockIO", slow);
    let bundle = bundle.sh("head -c 20000000 /dev/urandom >/data; sha256sum /data");
    let written = bundle.run();
    let read = bundle.set("/linux/resources/blockIO", json!({})).sh("sha256sum /data").run();
    Invocation::of("losetup", ["--detach", &device]).run().ok();
    assert_eq!(read.ok(), written.ok());
}

/// As Podman does when it copies files of a container that runs.
#[test]
fn the_mount_namespace_of_the_pid_shows_the_container() {
    let (folder, outside) = (host_folder(), tempfile::tempdir_in("/var/tmp").unwrap());
    let bundle = Bundle::debian()
        .sh("exec sleep 1000")
        .mount("/trap/data", "bind", folder.path(), &["rbind", "ro"])
        .mount("/scratch", "tmpfs", "tmpfs", &["rw"]);
    // A link of the image is no way out: it leads to the folder of that name in the container.
    let inside = outside.path().strip_prefix("/").unwrap();
    fs::create_dir_all(bundle.rootfs().join(inside).join("data")).unwrap();
    symlink(outside.path(), bundle.rootfs().join("trap")).unwrap();
    fs::write(bundle.rootfs().join("srv/mark"), "of the container\n").unwrap();
    let container = bundle.start();
    let pid = container.pid().to_string();
    let entered = |script: &str| {
        Invocation::of("nsenter", ["--target", &pid, "--mount", "/bin/sh", "-c", script]).run()
    };
    let output = entered("cat /srv/mark /trap/data/file && echo x >/srv/new");
    assert_eq!(output.ok(), "of the container\nof the host");
    assert_eq!(container.sh("cat /srv/new"), "x");
    assert!(!std::path::Path::new("/srv/new").exists(), "it is not the host's");
    entered("touch /trap/data/x").fails_naming(&["read-only"]);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    if pouch_tests::has_vm() {
        // The tmpfs is in the guest: what is written here would be lost.
        entered("touch /scratch/x").fails_naming(&["read-only"]);
        // Nor does a process that is shown there lead to the host's files.
        let shown = entered(&format!("cd /proc/{pid}; cat comm; ls")).ok();
        assert!(shown.starts_with("pouch"), "{shown}");
        for link in ["root", "cwd", "exe", "fd", "task"] {
            assert!(shown.lines().all(|line| line != link), "{shown}");
        }
    }
}
