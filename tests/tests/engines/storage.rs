//! Volumes, binds, tmpfs, `cp`, `diff` and `commit`.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use pouch_tests::engine::eventually;
use pouch_tests::{Difference, Engine, Invocation, engine_tests};

engine_tests! {
    both: named_volumes, binds, copy;
    both_long: a_volume_of_two_containers, read_only_binds, a_read_only_root, a_container_becomes_an_image,
        a_socket_of_the_host, propagation, volumes_from_another, changes_are_seen,
        a_running_container_becomes_an_image, late_mounts, a_socket_in_a_folder_of_the_host, devices_of_the_host;
    podman: overlays_of_podman;
}

/// A folder of the host with a file in it, on the disk.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("pouch-volume-").tempdir_in("/var/tmp").unwrap();
    fs::write(folder.path().join("file"), "of the host\n").unwrap();
    folder
}

fn option(source: impl AsRef<Path>, rest: &str) -> String {
    format!("{}:{rest}", source.as_ref().display())
}

fn named_volumes(engine: Engine) {
    let volume = engine.volume();
    // An empty volume gets what the image has at the place, with its owner.
    let option = format!("{}:/var/lib/dpkg", volume.name);
    let script = "test -s /var/lib/dpkg/status && stat -c '%u %a' /var/lib/dpkg; echo kept >/var/lib/dpkg/new; \
        chown 5:6 /var/lib/dpkg/new; findmnt -n -o TARGET /var/lib/dpkg";
    assert_eq!(engine.sh(&["-v", &option], script).ok(), "0 755\n/var/lib/dpkg");
    let file = Path::new(&volume.inspect("{{.Mountpoint}}")).join("new");
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!(
        (fs::read_to_string(&file).unwrap().as_str(), metadata.uid(), metadata.gid()),
        ("kept\n", 5, 6)
    );
    let option = format!("{}:/data", volume.name);
    assert_eq!(engine.sh(&["-v", &option], "cat /data/new; ls /data/status").ok(), "kept\n/data/status");
    let mount = format!("type=volume,source={},target=/data,readonly", volume.name);
    let output = engine.sh(&["--mount", &mount], "cat /data/new; echo x >/data/new");
    assert!(output.text() == "kept" && output.errors().contains("Read-only file system"), "{output}");
}

fn a_volume_of_two_containers(engine: Engine) {
    let volume = engine.volume();
    let option = format!("{}:/data", volume.name);
    let (one, two) = (engine.start_idle(&["-v", &option]), engine.start_idle(&["-v", &option]));
    one.sh("echo from one >/data/file; mkdir /data/sub");
    eventually("the other sees it", || two.exec(&[], &["cat", "/data/file"]).text() == "from one");
    two.sh("echo from two >>/data/file; mv /data/file /data/sub/moved");
    eventually("the first sees it", || {
        one.exec(&[], &["cat", "/data/sub/moved"]).text() == "from one\nfrom two"
    });
    // Lines appended by both at once are all there.
    std::thread::scope(|scope| {
        for container in [&one, &two] {
            scope.spawn(|| container.sh("for i in $(seq 200); do echo line >>/data/both; done"));
        }
    });
    let text = fs::read_to_string(volume.inspect("{{.Mountpoint}}") + "/both").unwrap();
    assert_eq!(text.lines().filter(|line| *line == "line").count(), 400);
}

fn volumes_from_another(engine: Engine) {
    let one = engine.start_idle(&["-v", "/shared"]);
    one.sh("echo hello >/shared/file");
    let output = engine.sh(&["--volumes-from", &one.name], "cat /shared/file");
    assert_eq!(output.ok(), "hello");
}

fn binds(engine: Engine) {
    let folder = folder();
    let file = folder.path().join("file");
    let options =
        [option(folder.path(), "/data"), option(&file, "/etc/motd"), option(&file, "/new/place/of-it")];
    let pause = if Difference::Cache.with_vm() { "sleep 2" } else { ":" };
    let script = format!(
        "cat /data/file /etc/motd; echo more >>/etc/motd; ls /data; mkdir /data/sub; {pause}; cat /new/place/of-it; \
        until [ -e /data/late ]; do sleep 1; done; cat /data/late; rm /data/late"
    );
    let container = engine.start_sh(&["-v", &options[0], "-v", &options[1], "-v", &options[2]], &script);
    eventually("the container writes", || folder.path().join("sub").is_dir());
    fs::write(folder.path().join("late"), "later\n").unwrap();
    assert_eq!(container.wait(), 0);
    let expected = "of the host\nof the host\nfile\nof the host\nmore\nlater";
    assert_eq!(container.logs(), expected);
    assert!(!folder.path().join("late").exists());
}

fn read_only_binds(engine: Engine) {
    let folder = folder();
    let options = [option(folder.path(), "/data:ro"), option(folder.path().join("file"), "/etc/motd:ro")];
    let script = "echo x >/data/file; rm /data/file; chmod 777 /data; touch /data/x; echo x >/etc/motd; \
        mount -o remount,rw /data; cat /data/file";
    let output = engine.sh(&["-v", &options[0], "-v", &options[1]], script);
    assert_eq!(output.ok(), "of the host");
    assert_eq!(output.errors().matches("Read-only file system").count(), 5, "{output}");
    assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "of the host\n");
}

fn overlays_of_podman(engine: Engine) {
    let folder = folder();
    let volume = option(folder.path(), "/o:O");
    let output =
        engine.sh(&["-v", &volume], "cat /o/file; echo changed >/o/file; echo new >/o/new; cat /o/file");
    assert_eq!(output.ok(), "of the host\nchanged");
    assert!(!folder.path().join("new").exists());
    assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "of the host\n");
    let image = "type=image,src=pouch-test/busybox,dst=/img";
    let script = "test -e /img/bin/busybox && echo there; touch /img/x || echo read-only";
    assert_eq!(engine.sh(&["--mount", image], script).ok(), "there\nread-only");
}

fn a_read_only_root(engine: Engine) {
    let volume = engine.volume();
    let option = format!("{}:/data", volume.name);
    let options = ["--read-only", "--tmpfs", "/run/scratch", "-v", &option];
    let script = "touch /x /etc/x; echo t >/run/scratch/x && echo v >/data/x && cat /run/scratch/x /data/x; \
        echo s >/dev/shm/x && cat /dev/shm/x; stat -c %a /run/scratch";
    let output = engine.sh(&options, script);
    assert_eq!(output.ok(), "t\nv\ns\n1777");
    assert_eq!(output.errors().matches("Read-only file system").count(), 2, "{output}");
}

fn copy(engine: Engine) {
    let folder = folder();
    let container = engine.start_idle(&["--tmpfs", "/scratch", "-v", "/data"]);
    let path = |name: &str| folder.path().join(name).display().to_string();
    let copy = |from: &str, to: &str| engine.command(&["cp", from, to]).run();
    let inside = |path: &str| format!("{}:{path}", container.name);
    // Into a running container, also where the guest has looked before.
    container.exec(&[], &["cat", "/srv/file"]).fails(1);
    copy(&path("file"), &inside("/srv/file")).ok();
    assert!(!Path::new("/srv/file").exists(), "it is not the host's");
    eventually("the file is there", || container.exec(&[], &["cat", "/srv/file"]).text() == "of the host");
    fs::write(folder.path().join("file"), "a second version\n").unwrap();
    copy(&path("file"), &inside("/srv/file")).ok();
    eventually("the file is new", || container.exec(&[], &["cat", "/srv/file"]).text() == "a second version");
    // And out of it, at once.
    container.sh("mkdir -p /srv/tree/deep; echo leaf >/srv/tree/deep/leaf; ln -s deep/leaf /srv/tree/link; chmod 4751 /srv/tree/deep/leaf");
    copy(&inside("/srv/tree"), &path("tree")).ok();
    assert_eq!(fs::read_to_string(folder.path().join("tree/deep/leaf")).unwrap(), "leaf\n");
    assert_eq!(fs::read_link(folder.path().join("tree/link")).unwrap(), Path::new("deep/leaf"));
    assert_eq!(fs::metadata(folder.path().join("tree/deep/leaf")).unwrap().mode() & 0o7777, 0o4751);
    // Into a volume, and not to where only the container can write.
    copy(&path("file"), &inside("/data/file")).ok();
    eventually("the volume has it", || {
        container.exec(&[], &["cat", "/data/file"]).text() == "a second version"
    });
    if engine == Engine::Podman {
        let output = copy(&path("file"), &inside("/scratch/file"));
        if Difference::CopyToTmpfs.with_vm() {
            output.fails_naming(&["read-only file system"]);
        } else {
            output.ok();
        }
    }
    // From a stopped one too.
    container.ok(&["stop"]);
    copy(&inside("/srv/file"), &path("again")).ok();
    assert_eq!(fs::read_to_string(folder.path().join("again")).unwrap(), "a second version\n");
    copy(&inside("/no/such/file"), &path("nothing")).fails_naming(&["/no/such/file"]);
}

fn changes_are_seen(engine: Engine) {
    let container = engine.start_idle(&[]);
    container.sh("echo new >/srv/new; rm /etc/motd; echo more >>/etc/passwd; mkdir /srv/folder");
    let text = container.ok(&["diff"]);
    for line in ["A /srv/new", "D /etc/motd", "C /etc/passwd", "A /srv/folder", "C /srv"] {
        assert!(text.lines().any(|found| found == line), "no {line:?}: {text}");
    }
    // Mount points that are made for the container do not count for more than they are.
    assert!(!text.contains("/proc/") && !text.contains("/dev/"), "{text}");
    container.ok(&["stop"]);
    let archive = container.command(&["export"]).run();
    assert_eq!(archive.status, 0, "{}", archive.errors());
    let listed = Invocation::of("tar", ["-tf", "-", "srv/new"]).stdin(archive.stdout).run();
    assert_eq!(listed.ok(), "srv/new");
    // Docker 26 keeps the mount of a container that was exported, with any runtime.
    if engine.is_docker() {
        let merged = container.inspect("{{.GraphDriver.Data.MergedDir}}");
        Invocation::of("umount", [merged.trim()]).run();
    }
}

struct Image<'a>(Engine, &'a str);

impl Drop for Image<'_> {
    fn drop(&mut self) {
        self.0.command(&["rmi", "--force", self.1]).run();
    }
}

fn a_container_becomes_an_image(engine: Engine) {
    let container = engine.start_idle(&[]);
    container.sh("echo committed >/srv/file; chown 12:34 /srv/file; chmod 6755 /srv/file; rm /etc/motd; ln /srv/file /srv/hard");
    let name = "pouch-test/committed";
    let _image = Image(engine, name);
    container.ok(&["stop"]);
    engine.command(&["commit", "--change", "CMD [\"cat\", \"/srv/file\"]", &container.name, name]).run().ok();
    assert_eq!(engine.run(&[], "committed", &[]).ok(), "committed");
    let script = "stat -c '%u:%g %a %h' /srv/file; test -e /etc/motd || echo gone";
    assert_eq!(engine.run(&[], "committed", &["sh", "-c", script]).ok(), "12:34 6755 2\ngone");
}

fn a_running_container_becomes_an_image(engine: Engine) {
    let container = engine.start_sh(&[], "exec 3>/srv/open; echo held >&3; echo ready; exec sleep 1000");
    container.await_logs("ready");
    container.sh("echo committed >/srv/file; rm /etc/motd; echo more >>/etc/passwd");
    let _image = Image(engine, "pouch-test/committed");
    engine.command(&["commit", &container.name, "pouch-test/committed"]).run().ok();
    let script = "cat /srv/file /srv/open; tail -n 1 /etc/passwd; test -e /etc/motd || echo gone";
    assert_eq!(engine.run(&[], "committed", &["sh", "-c", script]).ok(), "committed\nheld\nmore\ngone");
    // It goes on.
    assert_eq!(container.status(), "running");
    assert_eq!(container.sh("cat /srv/file"), "committed");
}

fn propagation(engine: Engine) {
    let folder = folder();
    let kinds = ["rprivate", "private", "rslave", "slave"];
    let volumes = kinds.map(|kind| option(folder.path(), &format!("/{kind}:{kind}")));
    let options: Vec<&str> = volumes.iter().flat_map(|volume| ["-v", volume]).collect();
    let output = engine.sh(&options, "cat /rprivate/file /private/file /rslave/file /slave/file");
    assert_eq!(output.ok(), ["of the host"; 4].join("\n"));
    let output = engine.sh(&["-v", &option(folder.path(), "/data:rshared")], "cat /data/file");
    if Difference::SharedPropagation.with_vm() && output.status != 0 {
        output.fails_naming(&["shared", "/data"]);
    } else {
        assert_eq!(output.ok(), "of the host");
    }
}

fn late_mounts(engine: Engine) {
    let folder = folder();
    fs::create_dir(folder.path().join("early")).unwrap();
    fs::create_dir(folder.path().join("late")).unwrap();
    let mount = |name: &str| {
        let target = folder.path().join(name);
        Invocation::of("mount", ["-t", "tmpfs", "tmpfs", target.to_str().unwrap()]).run().ok();
        fs::write(target.join("inside"), "x").unwrap();
        Unmount(target)
    };
    let _early = mount("early");
    let container = engine.start_idle(&["-v", &option(folder.path(), "/data:rslave")]);
    // What is mounted below the source at the start comes along.
    assert_eq!(container.sh("ls /data/early"), "inside");
    let _late = mount("late");
    let output = container.exec(&[], &["ls", "/data/late"]);
    assert_eq!(output.ok(), "inside");
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        Invocation::of("umount", ["--lazy", self.0.to_str().unwrap()]).run();
    }
}

/// A socket in a folder of the host, whose other end sends back what comes.
fn socket_in(folder: &Path) -> std::path::PathBuf {
    let socket = folder.join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut reader = stream.try_clone().unwrap();
            std::thread::spawn(move || std::io::copy(&mut reader, &mut stream));
        }
    });
    socket
}

const SEND_TO_SOCKET: &str = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
    s.sendall(b'x' * 100000)\ns.shutdown(socket.SHUT_WR)\nn = 0\n\
    while True:\n    b = s.recv(65536)\n    if not b: break\n    n += len(b)\nprint(n)";

/// As with the socket of a database or of the engine itself.
fn a_socket_of_the_host(engine: Engine) {
    let folder = folder();
    let socket = socket_in(folder.path());
    let arguments = ["python3", "-c", SEND_TO_SOCKET, "/run/host.socket"];
    let output = engine.run(&["-v", &option(&socket, "/run/host.socket")], "python", &arguments);
    if Difference::Socket.with_vm() && output.status != 0 {
        return output.fails_naming(&["socket", socket.to_str().unwrap()]);
    }
    assert_eq!(output.ok(), "100000");
}

fn a_socket_in_a_folder_of_the_host(engine: Engine) {
    let folder = folder();
    socket_in(folder.path());
    let arguments = ["python3", "-c", SEND_TO_SOCKET, "/data/socket"];
    let output = engine.run(&["-v", &option(folder.path(), "/data")], "python", &arguments);
    if Difference::SocketInFolder.with_vm() {
        output.fails_naming(&["ConnectionRefusedError"]);
    } else {
        assert_eq!(output.ok(), "100000");
    }
}

fn devices_of_the_host(engine: Engine) {
    // A device that every kernel has is the container's own kernel's.
    let output = engine.sh(&["--device", "/dev/zero:/dev/nought"], "head -c 3 /dev/nought | od -An -tx1");
    assert_eq!(output.ok().trim(), "00 00 00");
    let script = "head -c 512 /dev/disk | wc -c";
    let output = engine.sh(&["--device", "/dev/vda:/dev/disk"], script);
    assert_eq!(output.ok(), "512");
}
