//! What a container sees of devices, /proc, /sys and its own mounts, and its identity.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use pouch_tests::bundle::unique_id;
use pouch_tests::{Bundle, Invocation, runtime, vm_only};
use serde_json::json;

#[test]
fn the_host_name() {
    let script = "hostname; cat /proc/sys/kernel/hostname";
    assert_eq!(
        Bundle::debian().sh(script).set("/hostname", json!("rich-container")).run().ok(),
        "rich-container\nrich-container"
    );
}

#[test]
fn the_domain_name() {
    // runc 1.1 does not know it.
    vm_only!();
    let bundle = Bundle::debian().sh("cat /proc/sys/kernel/domainname");
    assert_eq!(bundle.set("/domainname", json!("example.org")).run().ok(), "example.org");
}

#[test]
fn kernel_parameters() {
    let sysctl = json!({
        "net.ipv4.ip_forward": "1", "kernel.msgmax": "16384", "net.core.somaxconn": "777",
        "net.ipv4.ping_group_range": "0 2147483647",
    });
    let script =
        "cd /proc/sys; cat net/ipv4/ip_forward kernel/msgmax net/core/somaxconn net/ipv4/ping_group_range";
    let output = Bundle::debian().sh(script).set("/linux/sysctl", sysctl).run().ok();
    assert_eq!(output, "1\n16384\n777\n0\t2147483647");
}

/// OCI runtime specification, "Default Devices", and the links of "Dev symbolic links".
#[test]
fn default_devices_are_there_and_work() {
    let script = "cd /dev
        for d in null zero full random urandom tty; do stat -c '%n %F %a %t:%T' $d; done
        for l in fd stdin stdout stderr ptmx; do echo $l $(readlink $l); done
        head -c 3 zero | od -An -tx1; head -c 4 urandom | wc -c; echo x >null && echo written
        printf x | cat >full; stat -f -c %T shm pts mqueue";
    let output = Bundle::debian().sh(script).run();
    let text = output.ok();
    let kind = "character special file";
    for line in [
        format!("null {kind} 666 1:3"),
        format!("zero {kind} 666 1:5"),
        format!("full {kind} 666 1:7"),
        format!("random {kind} 666 1:8"),
        format!("urandom {kind} 666 1:9"),
        format!("tty {kind} 666 5:0"),
        "fd /proc/self/fd".into(),
        "stdin /proc/self/fd/0".into(),
        "stdout /proc/self/fd/1".into(),
        "stderr /proc/self/fd/2".into(),
        "ptmx pts/ptmx".into(),
        " 00 00 00".into(),
        "written".into(),
        "tmpfs".into(),
        "devpts".into(),
    ] {
        assert!(text.lines().any(|found| found == line), "no line {line:?}: {output}");
    }
    assert!(output.errors().contains("No space left on device"), "{output}");
}

#[test]
fn further_devices_can_be_made() {
    let device = json!({
        "path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 12, "gid": 34,
    });
    let allow = json!({"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"});
    let bundle = Bundle::debian()
        .sh("stat -c '%F %a %u:%g %t:%T' /dev/mine; head -c 2 /dev/mine | od -An -tx1")
        .capable(&["CAP_DAC_OVERRIDE"])
        .push("/linux/devices", device)
        .push("/linux/resources/devices", allow);
    assert_eq!(bundle.run().ok(), "character special file 640 12:34 1:5\n 00 00");
}

#[test]
fn device_rules_hold_inside_too() {
    // `spec` denies all devices; the default ones are allowed all the same, and no others.
    let script = "mknod /tmp/mem c 1 1 && cat /tmp/mem; cat /dev/null && echo null";
    let output =
        Bundle::debian().sh(script).capable(&["CAP_MKNOD", "CAP_SYS_RAWIO", "CAP_DAC_OVERRIDE"]).run();
    assert_eq!(output.ok(), "null");
    assert!(output.errors().contains("Operation not permitted"), "{output}");
}

#[test]
fn proc_and_sys_are_the_containers_own() {
    let script = "stat -f -c %T /proc /sys; findmnt -n -o FSTYPE,OPTIONS /sys; ls /sys/class/net; echo $$
        touch /sys/x 2>&1; ls -d /sys/fs/cgroup/cgroup.procs";
    let output = Bundle::debian().sh(script).run();
    let text = output.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["proc", "sysfs"], "{output}");
    assert!(lines[2].starts_with("sysfs") && lines[2].contains("ro"), "{output}");
    assert!(lines.contains(&"lo"), "{output}");
    assert!(text.contains("Read-only file system"), "{output}");
    assert!(text.contains("/sys/fs/cgroup/cgroup.procs"), "{output}");
}

#[test]
fn masked_paths_are_empty() {
    let masked = json!(["/proc/version", "/proc/sys/vm", "/proc/there-is-no-such-file"]);
    let script = "wc -c </proc/version; ls /proc/sys/vm | wc -l; touch /proc/sys/vm/x";
    let output = Bundle::debian().sh(&format!("{script}; true")).set("/linux/maskedPaths", masked).run();
    assert_eq!(output.ok(), "0\n0");
    assert!(output.errors().contains("Read-only file system"), "{output}");
}

#[test]
fn read_only_paths_can_be_read() {
    let paths = json!(["/proc/sys", "/usr/share", "/proc/there-is-no-such-file"]);
    let script = "cat /proc/sys/kernel/ostype; echo x >/proc/sys/kernel/hostname; touch /usr/share/x; touch /tmp/y && echo y";
    let output = Bundle::debian().sh(script).set("/linux/readonlyPaths", paths).run();
    assert_eq!(output.ok(), "Linux\ny");
    assert_eq!(output.errors().matches("Read-only file system").count(), 2, "{output}");
}

#[test]
fn the_root_can_be_read_only() {
    let script = "touch /x; touch /dev/shm/y && echo shm; echo z >/dev/null && echo null";
    let output = Bundle::debian().sh(script).set("/root/readonly", json!(true)).run();
    assert_eq!(output.ok(), "shm\nnull");
    assert!(output.errors().contains("Read-only file system"), "{output}");
}

#[test]
fn what_the_container_writes_is_in_its_root_on_the_host() {
    let bundle = Bundle::debian().sh(
        "mkdir -p /new/deep && echo text >/new/deep/file && chown 12:34 /new/deep/file && chmod 4755 /new/deep/file
         ln -s deep/file /new/link; ln /new/deep/file /new/hard; rm /etc/debian_version; mkfifo /new/fifo",
    );
    let bundle = bundle.capable(&["CAP_CHOWN", "CAP_FOWNER", "CAP_FSETID"]);
    bundle.run().ok();
    let root = bundle.rootfs();
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(root.join("new/deep/file")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (12, 34, 0o4755));
    assert_eq!(metadata.nlink(), 2);
    assert_eq!(std::fs::read_to_string(root.join("new/link")).unwrap(), "text\n");
    assert!(!root.join("etc/debian_version").exists());
    assert!(std::fs::symlink_metadata(root.join("new/fifo")).is_ok());
}

#[test]
fn file_systems_behave_as_programs_expect() {
    let script = "set -e; cd /var/tmp
        setfattr -n user.a -v b . && getfattr --only-values -n user.a . && echo
        cp /bin/ping p && setcap cap_net_raw+ep p && getcap p
        flock f -c 'echo locked'
        fallocate -l 1M big && stat -c %s big && truncate -s 5 big && stat -c %s big
        mv big small && test ! -e big
        python=no; exec 3>unlinked; rm unlinked; echo x >&3 && echo unlinked
        df --output=fstype / | tail -1 >/dev/null && echo df";
    let output = Bundle::debian().sh(script).capable(&["CAP_SETFCAP"]).run();
    assert_eq!(output.ok(), "b\np cap_net_raw=ep\nlocked\n1048576\n5\nunlinked\ndf");
}

#[test]
fn namespaces_that_are_not_asked_for_are_shared_with_nobody() {
    // In a VM every container has a network of its own, whose loopback works.
    let output = Bundle::debian().sh("cat /proc/sys/kernel/ostype; ip -o link show lo").run().ok();
    assert!(output.contains("LOOPBACK,UP"), "{output}");
}

/// An image whose init is not systemd has files below /run that it needs; a systemd finds a tmpfs there, with the
/// image's files in it.
#[test]
fn the_images_files_below_run_and_tmp_are_there_for_every_init() {
    vm_only!();
    for (command, kind) in [("/init", "overlay"), ("/sbin/init", "tmpfs")] {
        let bundle = Bundle::busybox().args([command]);
        let root = bundle.rootfs();
        for folder in ["run", "tmp"] {
            fs::create_dir_all(root.join(folder)).unwrap();
            fs::write(root.join(folder).join("marker"), folder).unwrap();
        }
        let script = "#!/bin/sh\ncat /run/marker /tmp/marker; stat -f -c ' %T' /run /tmp\n";
        fs::write(root.join("init"), script).unwrap();
        fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).unwrap();
        let _ = fs::remove_file(root.join("sbin/init"));
        fs::copy(root.join("init"), root.join("sbin/init")).unwrap();
        let text = bundle.run().ok();
        let kinds: Vec<&str> = text.strip_prefix("runtmp").expect(&text).split_whitespace().collect();
        assert!(kinds.iter().all(|shown| (*shown == "tmpfs") == (kind == "tmpfs")), "{command}: {text}");
    }
}

/// Who starts a container has a umask too.
#[test]
fn files_have_the_umask_of_their_maker_alone() {
    let script =
        "for where in / /v; do cd $where; umask 0; mkdir d; touch f; mkfifo p; umask 27; mkdir d2; touch f2
        stat -c %n=%a d f p d2 f2; done";
    let modes = "d=777\nf=666\np=666\nd2=750\nf2=640";
    for umask in ["0", "022", "077"] {
        let folder = tempfile::tempdir().unwrap();
        let bundle = Bundle::busybox().sh(script).mount("/v", "bind", folder.path(), &["rbind"]);
        bundle.write();
        let (runtime, path) = (runtime(), bundle.path().display());
        let command = format!("umask {umask}; exec {runtime} run --bundle {path} {}", unique_id());
        let output = Invocation::of("sh", ["-c", &command]).run().ok();
        assert_eq!(output, [modes, modes].join("\n"), "started with umask {umask}");
    }
}

/// chown(2) with -1 for both changes no owner, and clears the set-id bits.
#[test]
fn an_owner_that_stays_clears_set_id_bits() {
    let folder = tempfile::tempdir().unwrap();
    let script = "for where in /srv /v; do cd $where; mkdir d; touch f g; chmod 6755 d f g
        perl -e 'chown(-1, -1, \"d\", \"f\") == 2 or die'; stat -c %n=%a d f g; done";
    let bundle = Bundle::debian().sh(script).mount("/v", "bind", folder.path(), &["rbind"]);
    let modes = "d=6755\nf=755\ng=6755";
    assert_eq!(bundle.run().ok(), [modes, modes].join("\n"));
}

/// Its layers are directories of the host.
#[test]
fn an_overlay_of_the_specification() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for name in ["lower", "upper", "work"] {
        fs::create_dir(path(name)).unwrap();
    }
    fs::write(path("lower/a"), "below").unwrap();
    let layers = [
        format!("lowerdir={}", path("lower")),
        format!("upperdir={},workdir={}", path("upper"), path("work")),
    ];
    let writable: Vec<&str> = layers.iter().flat_map(|layer| layer.split(',')).collect();
    let bundle = Bundle::debian().sh("cat /o/a; echo above >/o/a; echo new >/o/b; ls /o; cat /o/a");
    assert_eq!(bundle.mount("/o", "overlay", "overlay", &writable).run().ok(), "belowa\nb\nabove");
    assert_eq!(fs::read_to_string(path("lower/a")).unwrap(), "below");
    assert_eq!(fs::read_to_string(path("upper/b")).unwrap(), "new\n");
    let two = format!("lowerdir={}:{}", path("upper"), path("lower"));
    let bundle = Bundle::debian().sh("cat /o/a; echo x 2>/dev/null >/o/b || echo read-only");
    assert_eq!(bundle.mount("/o", "overlay", "overlay", &[&two, "ro"]).run().ok(), "above\nread-only");
    let bundle = Bundle::debian().sh("true").mount("/o", "overlay", "overlay", &["upperdir=/none"]);
    let refused = bundle.run();
    vm_only!();
    refused.fails_naming(&["mounts[", "options", "lowerdir"]);
}
