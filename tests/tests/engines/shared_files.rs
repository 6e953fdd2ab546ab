//! What a program may ask of the root file system and of volumes, where a file system that is shared with a VM
//! could answer wrongly. The right answers are those under runc.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use pouch_tests::engine::eventually;
use pouch_tests::{Engine, Invocation, engine_tests};

engine_tests! {
    docker: mounts_are_file_systems_of_their_own, listings_and_attributes, access_control_lists, hosts_proc_and_sys,
        an_overlay_on_a_volume, less_usual_operations, a_file_that_appears_is_checked,
        what_others_write_to_an_open_file, syncing_reaches_the_hosts_disk;
}

#[track_caller]
fn python(engine: Engine, options: &[&str], script: &str, expected: &str) {
    let output = engine.run(options, "python", &["python3", "-c", script]);
    assert_eq!(output.ok(), expected.trim_start(), "{output}");
}

fn mounts_are_file_systems_of_their_own(engine: Engine) {
    let tmpfs = ["--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=1m"];
    // Two fresh file systems have equal inode numbers.
    let volumes = [engine.volume_with(&tmpfs), engine.volume_with(&tmpfs), engine.volume()];
    let [a, b, c] =
        [("/a", 0), ("/b", 1), ("/a/inner", 2)].map(|(at, index)| format!("{}:{at}", volumes[index].name));
    let script = r#"
        echo one >/a/f; echo two >/b/f
        [ /a/f -ef /b/f ] && echo same; [ $(stat -c %d /a) = $(stat -c %d /b) ] && echo 'one device'
        cmp -s /a/f /b/f && echo equal; cp /a/f /b/f; cat /b/f
        ln /a/f /a/g; echo other >/b/h; ln /b/h /b/i; tar -C / -cf /srv/t.tar a b
        tar -tvf /srv/t.tar | grep -c -e 'a/. link to b/' -e 'b/. link to a/'
        touch /a/inner/leaf; find /a -name leaf; find /a -xdev -name leaf; du -s /a >/dev/null; ls -R /a >/dev/null
        tar -C /a --one-file-system -cf - . 2>/dev/null | tar -t | grep -c leaf
        mountpoint -q /a/inner && df --output=target /a/inner/leaf | tail -1
        [ /etc/hosts -ef /etc/hostname ] && echo 'bound files are one'; cmp -s /etc/hosts /etc/resolv.conf && echo equal
        stat -c %i /etc/hosts /etc/hostname /etc/resolv.conf | sort -u | wc -l"#;
    let output = engine.sh(&["-v", &a, "-v", &b, "-v", &c], script);
    assert_eq!(output.ok(), "one\n0\n/a/inner/leaf\n0\n/a/inner\n3", "{output}");
    assert_eq!(output.errors(), "", "{output}");
}

fn listings_and_attributes(engine: Engine) {
    let script = r#"
import array, ctypes, fcntl, os, struct, time
for d in "/srv/d", "/v/d":
    os.mkdir(d)
    # The clock is compared with the host's a few seconds after the start.
    for _ in range(100):
        before = time.time(); os.mkdir(d + "/empty"); made, after = os.stat(d + "/empty").st_mtime, time.time()
        if right := before - 0.1 <= made <= after + 0.1: break
        os.rmdir(d + "/empty"); time.sleep(0.3)
    print("made now" if right else (before, made, after))
    for n in range(300): open(f"{d}/a-name-of-some-length-{n:04}", "w").close()
    listed = {e.name: e.inode() for e in os.scandir(d)}
    print(len(listed), sum(os.stat(f"{d}/{name}").st_ino != number for name, number in listed.items()))
    libc = ctypes.CDLL(None); libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    at = libc.opendir((d + "/empty").encode()); names = []
    while entry := libc.readdir(ctypes.c_void_p(at)): names.append(ctypes.string_at(entry + 19).decode())
    print(*sorted(names))
    # statx(2) with AT_FDCWD and STATX_BTIME: when was it made?
    buffer = ctypes.create_string_buffer(256)
    libc.syscall(332, -100, d.encode(), 0, 0x800, buffer)
    mask, = struct.unpack_from("I", buffer); birth, = struct.unpack_from("q", buffer, 80)
    print("birth", mask & 0x800 != 0, abs(birth - os.stat(d).st_mtime) < 3600)
    fd = os.open(d + "/f", os.O_RDONLY | os.O_CREAT); flags = array.array("q", [0])
    fcntl.ioctl(fd, 0x80086601, flags); flags[0] |= 0x40; fcntl.ioctl(fd, 0x40086602, flags)
    flags[0] = 0; fcntl.ioctl(fd, 0x80086601, flags); print("no dump", flags[0] & 0x40 != 0)
    t = os.open(d, os.O_TMPFILE | os.O_RDWR); os.write(t, b"text")
    libc.linkat(-100, f"/proc/self/fd/{t}".encode(), -100, (d + "/named").encode(), 0x400); print(open(d + "/named").read())"#;
    let once = "made now\n301 0\n. ..\nbirth True True\nno dump True\ntext";
    python(engine, &["-v", "/v"], script, &format!("{once}\n{once}"));
}

fn access_control_lists(engine: Engine) {
    // A default list stands in the place of the umask, and lists let in and keep out.
    let script = r#"
import os, struct
def acl(*entries): return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)
NONE = 0xffffffff
os.umask(0o022)
def can(path, uid, gid=None):
    pid = os.fork()
    if pid == 0:
        os.setgroups([]); os.setgid(gid or uid); os.setuid(uid)
        try: open(path).close()
        except PermissionError: os._exit(1)
        os._exit(0)
    return "yes" if os.waitpid(pid, 0)[1] == 0 else "no"
for d in "/srv/d", "/v/d":
    os.mkdir(d); os.setxattr(d, "system.posix_acl_default", acl((1, 7, NONE), (4, 7, NONE), (0x20, 5, NONE)))
    os.close(os.open(d + "/file", os.O_CREAT | os.O_WRONLY, 0o666)); os.mkdir(d + "/folder", 0o777)
    print(*(f"{os.stat(d + n).st_mode & 0o7777:o}" for n in ("/file", "/folder")), "system.posix_acl_default" in os.listxattr(d + "/folder"))
    os.chmod(d + "/file", 0o640)
    os.setxattr(d + "/file", "system.posix_acl_access", acl((1, 6, NONE), (2, 4, 1234), (4, 0, NONE), (8, 4, 77), (0x10, 4, NONE), (0x20, 0, NONE)))
    print(can(d + "/file", 1234), can(d + "/file", 1235), can(d + "/file", 1236, 77))"#;
    let once = "664 775 True\nyes no yes";
    python(engine, &["-v", "/v"], script, &format!("{once}\n{once}"));
}

fn hosts_proc_and_sys(engine: Engine) {
    let options = ["-v", "/proc:/host/proc:ro", "-v", "/sys:/host/sys:ro"];
    let script =
        "grep -c ^MemTotal: /host/proc/meminfo; wc -w </host/proc/loadavg; head -c 3 /host/proc/stat; echo
        [ $(wc -l </host/proc/1/mounts) -gt 1 ] && echo mounts; wc -w </host/proc/sys/net/core/somaxconn
        wc -w </host/sys/kernel/mm/transparent_hugepage/enabled; cat /host/proc/1/comm | wc -w";
    let output = engine.sh(&options, script);
    assert_eq!(output.ok(), "1\n5\ncpu\nmounts\n1\n3\n1", "{output}");
}

fn an_overlay_on_a_volume(engine: Engine) {
    let options = ["-v", "/v", "--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"];
    let script = r#"
        touch /v/x; setfattr -n trusted.t -v 1 /v/x && getfattr -m - /v/x 2>/dev/null | grep -v '^#'
        setpriv --inh-caps=-all --bounding-set=-sys_admin getfattr -m - /v/x
        for kind in trusted userxattr; do
            b=/v/$kind; mkdir -p $b/l/dir $b/l/other $b/u $b/w $b/m; echo old >$b/l/file; echo x >$b/l/gone; touch $b/l/dir/a $b/l/other/b
            o=lowerdir=$b/l,upperdir=$b/u,workdir=$b/w; [ $kind = trusted ] || o=$o,userxattr
            mount -t overlay overlay -o $o $b/m && echo new >>$b/m/file && cat $b/m/file
            rm $b/m/gone; rm -r $b/m/dir; mkdir $b/m/dir; ls -A $b/m/dir; mv $b/m/other $b/m/moved; chmod 600 $b/m/file
            ls $b/m $b/m/moved | tr '\n' ' '; echo; umount $b/m
        done"#;
    let output = engine.sh(&options, script);
    let layer = "old\nnew\n/v/KIND/m: dir file moved  /v/KIND/m/moved: b ";
    let expected =
        format!("trusted.t\n\n{}\n{}", layer.replace("KIND", "trusted"), layer.replace("KIND", "userxattr"));
    assert_eq!(output.text().trim_end(), expected.trim_end(), "{output}");
}

fn less_usual_operations(engine: Engine) {
    let script = r#"
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *a):
    f = getattr(libc, name); f.argtypes = [ctypes.c_char_p if isinstance(x, bytes) else ctypes.c_long for x in a]
    if f(*a): n = ctypes.get_errno(); raise OSError(n, "")
def t(name, f):
    try: print(name, f())
    except OSError as e: print(name, errno.errorcode[e.errno])
def fresh():
    fd = os.open("f", os.O_RDWR | os.O_CREAT | os.O_TRUNC); os.write(fd, b"0123456789" * 2000); return fd
for d in "/srv/d", "/v/d":
    os.mkdir(d); os.chdir(d)
    for name, mode, at, length in ("punch", 3, 4096, 4096), ("zero", 16, 0, 4096), ("collapse", 8, 4096, 4096), ("insert", 32, 4096, 4096):
        def f(): fd = fresh(); call("fallocate", fd, mode, at, length); return os.fstat(fd).st_size, os.pread(fd, 3, 4096), os.pread(fd, 3, 8192)
        t(name, f)
    def append():
        fd = os.open("a", os.O_WRONLY | os.O_APPEND | os.O_CREAT); os.write(fd, b"0123456789"); os.ftruncate(fd, 4)
        os.pwrite(fd, b"X", 0); os.write(fd, b"yz"); return open("a").read()
    t("append", append)
    def link_of_link():
        os.symlink("f", "sl"); os.link("sl", "sl2", follow_symlinks=False); return os.readlink("sl2"), os.lstat("sl2").st_nlink
    t("link of a link", link_of_link)
    def link_times(): os.utime("sl", (1, 2), follow_symlinks=False); return int(os.lstat("sl").st_mtime)
    t("times of a link", link_times)
    def exchange():
        for n in "p", "q": open(n, "w").write(n)
        call("renameat2", -100, b"p", -100, b"q", 2); return open("p").read() + open("q").read()
    t("exchange", exchange)
    t("occupied", lambda: call("renameat2", -100, b"p", -100, b"q", 1))
    t("too long", lambda: os.open("n" * 256, os.O_CREAT))
    t("before 1970", lambda: (os.utime("f", ns=(-10**9 * 86400, -10**9 * 86400 - 1)), os.stat("f").st_mtime_ns)[1])
    t("whole file", lambda: (os.close(os.open(b"\xe9\xff", os.O_CREAT)), len(os.listdir(b".")))[1])"#;
    let once = "punch (20000, b'\\x00\\x00\\x00', b'234')\nzero (20000, b'678', b'234')\n\
                collapse (15904, b'234', b'890')\ninsert (24096, b'\\x00\\x00\\x00', b'678')\n\
                append 0123Xyz\nlink of a link ('f', 2)\ntimes of a link 2\nexchange qp\noccupied EEXIST\n\
                too long ENAMETOOLONG\nbefore 1970 -86400000000001\nwhole file 7";
    python(engine, &["-v", "/v"], script, &format!("{once}\n{once}"));
}

fn a_file_that_appears_is_checked(engine: Engine) {
    let volume = engine.volume();
    let path = volume.inspect("{{.Mountpoint}}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    let option = format!("{}:/v", volume.name);
    let container = engine.start(&["-v", &option, "--user", "1000"], "python", &["sleep", "100000"]);
    // It looks for each file, waits until root has made the next one, and opens the one that it looked for.
    let script = r#"
import os, time
for n in range(20):
    assert not os.path.exists(f"/v/secret-{n}")
    os.mkdir(f"/v/ask-{n}")
    while not os.path.exists(f"/v/made-{n}"): pass
    try: os.open(f"/v/secret-{n}", os.O_RDWR | os.O_CREAT | os.O_TRUNC); print("opened")
    except PermissionError: print("refused")"#;
    let output = std::thread::scope(|scope| {
        let child = scope.spawn(|| container.exec(&[], &["python3", "-c", script]));
        for n in 0..20 {
            let at = |name: &str| format!("{path}/{name}-{n}");
            pouch_tests::eventually("it looks", || Path::new(&at("ask")).exists() || child.is_finished());
            fs::write(at("secret"), "secret").unwrap();
            fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o600)).unwrap();
            fs::create_dir(at("made")).unwrap();
        }
        child.join().unwrap()
    });
    assert_eq!(output.ok(), ["refused"; 20].join("\n"), "{output}");
    assert!((0..20).all(|n| fs::read_to_string(format!("{path}/secret-{n}")).unwrap() == "secret"));
}

fn what_others_write_to_an_open_file(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("f");
    fs::write(&path, "1".repeat(4096)).unwrap();
    let option = format!("{}:/w", folder.path().display());
    let script = r#"
import os, time
reader, writer = os.open("/w/f", os.O_RDONLY), os.open("/w/f", os.O_RDWR)
os.pread(reader, 4, 0); os.pwrite(writer, b"own", 100); os.mkdir("/w/written")
while os.pread(reader, 4, 0) != b"2222": os.stat("/w/f"); os.fstat(reader); time.sleep(0.05)
print(os.pread(reader, 3, 100).decode())"#;
    let output = std::thread::scope(|scope| {
        let child = scope.spawn(|| engine.run(&["-v", &option], "python", &["python3", "-c", script]));
        pouch_tests::eventually("it writes", || {
            folder.path().join("written").exists() || child.is_finished()
        });
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::io::Write::write_all(&mut file, b"2222").unwrap();
        child.join().unwrap()
    });
    assert_eq!(output.ok(), "own", "{output}");
}

fn syncing_reaches_the_hosts_disk(engine: Engine) {
    let folder = tempfile::tempdir().unwrap();
    let (image, mounted) = (folder.path().join("image"), folder.path().join("mounted"));
    let (image, mounted) = (image.to_str().unwrap(), mounted.to_str().unwrap());
    fs::create_dir(mounted).unwrap();
    Invocation::of("truncate", ["-s", "16M", image]).run().ok();
    Invocation::of("mkfs.ext4", ["-q", image]).run().ok();
    // Nothing is written by itself for a long time.
    Invocation::of("mount", ["-o", "loop,commit=10000", image, mounted]).run().ok();
    let dirty =
        ["/proc/sys/vm/dirty_writeback_centisecs"].map(|name| (name, fs::read_to_string(name).unwrap()));
    dirty.iter().for_each(|(name, _)| fs::write(name, "0").unwrap());
    let on_disk = |text: &str| Invocation::of("grep", ["-q", text, image]).run().status == 0;
    let container = engine.start(&["-v", &format!("{mounted}:/v")], "python", &["sleep", "100000"]);
    for (name, call) in [("sync", "os.sync()"), ("syncfs", "ctypes.CDLL(None).syncfs(os.open('/v', 0))")] {
        // The host may write it for a reason of its own, and then it shows nothing.
        let shown = (1..=5).any(|attempt| {
            let text = format!("pouch-vm-wrote-{name}-{attempt}");
            let write = format!(
                "import ctypes, os; f = os.open('/v/{name}', os.O_WRONLY | os.O_CREAT); os.write(f, b'{text}');"
            );
            container.exec(&[], &["python3", "-c", &write]).ok();
            let by_itself = on_disk(&text);
            container.exec(&[], &["python3", "-c", &format!("{write} {call}")]).ok();
            eventually("it is on the disk", || on_disk(&text));
            !by_itself
        });
        assert!(shown, "{name}: it was always written without being asked for");
    }
    drop(container);
    dirty.iter().for_each(|(name, value)| fs::write(name, value).unwrap());
    Invocation::of("umount", [mounted]).run().ok();
}
