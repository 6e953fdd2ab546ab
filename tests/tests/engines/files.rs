//! What file systems must do: on the root file system and on a volume.

use std::fs;

use pouch_tests::{Difference, Engine, HANG, Output, engine_tests, long};

engine_tests! {
    both_long: owners_modes_and_attributes, links_and_times, sparse_files_and_space, direct_input_and_output,
        mappings_and_locks, many_small_files, renames_and_open_files, special_files;
    docker_long: more_files_than_are_kept;
    podman_long: more_files_than_are_kept;
}

/// Runs a script in each of two folders: one of the root file system, one of a volume.
fn on_both(engine: Engine, image: &str, arguments: &[&str]) -> Output {
    // Podman does not give the capability for device nodes by itself.
    let options = ["--rm", "-v", "/volume", "--cap-add", "MKNOD", "--network", "none"];
    let mut all = vec!["sh", "-c", "set -e; for d in /srv /volume; do cd $d; \"$@\"; done", "sh"];
    all.extend(arguments);
    engine.with_runtime("run", &options, image, &all).within(if long() { 30 * HANG } else { HANG }).run()
}

#[track_caller]
fn shell(engine: Engine, script: &str, expected: &str) {
    let output = on_both(engine, "debian", &["sh", "-c", script]);
    assert_eq!(output.ok(), format!("{expected}\n{expected}"), "{output}");
}

#[track_caller]
fn python(engine: Engine, script: &str, expected: &str) {
    let output = on_both(engine, "python", &["python3", "-c", script]);
    assert_eq!(output.ok(), format!("{expected}\n{expected}"), "{output}");
}

fn owners_modes_and_attributes(engine: Engine) {
    let script = "
        echo x >f; chown 1234:5678 f; chmod 640 f; stat -c '%u:%g %a' f
        cp /bin/true s; chmod 4755 s; stat -c %a s; chown 7:8 s; stat -c %a s
        mkdir d; chmod 2775 d; chgrp 99 d; touch d/in; stat -c '%a %g' d d/in
        setfattr -n user.name -v value f; getfattr --only-values -n user.name f; echo; setfattr -x user.name f
        cp /bin/true c; setcap cap_net_raw+ep c; getcap c; echo y >>c; getcap c
        touch t; chmod 1777 .; su -s /bin/sh nobody -c 'rm t 2>/dev/null || echo sticky; echo mine >n; stat -c %U n'; chmod 755 .";
    let expected = "1234:5678 640\n4755\n755\n2775 99\n644 99\nvalue\nc cap_net_raw=ep\nsticky\nnobody";
    shell(engine, script, expected);
}

fn links_and_times(engine: Engine) {
    let script = "
        echo x >f; ln f g; stat -c '%h' f; [ f -ef g ] && echo same; rm f; stat -c %h g; cat g
        ln -s g l; readlink l; cat l; ln -s /no/where broken; [ -e broken ] || echo broken
        touch -d '2001-02-03 04:05:06.789 UTC' g; stat -c %.3Y g; touch -h -d @5 l; stat -c %Y l
        mkdir a; mv a b; ls -d b; mkdir b/c; rmdir b 2>/dev/null || echo full; rm -r b; ls";
    shell(engine, script, "2\nsame\n1\nx\ng\nx\nbroken\n981173106.789\n5\nb\nfull\nbroken\ng\nl");
}

fn sparse_files_and_space(engine: Engine) {
    let script = "
        truncate -s 1G s; stat -c %s s; [ $(stat -c %b s) -lt 100 ] && echo sparse
        printf end | dd of=s bs=1 seek=1000000000 conv=notrunc 2>/dev/null; stat -c %s s; [ $(stat -c %b s) -lt 100 ] && echo sparse
        fallocate -l 8M a; [ $(stat -c %b a) -ge 16000 ] && echo allocated
        fallocate --punch-hole -o 0 -l 7M a; [ $(stat -c %b a) -lt 5000 ] && echo punched; stat -c %s a
        [ $(df -k --output=avail . | tail -1) -gt 100000 ] && echo space; rm s a";
    let expected = "1073741824\nsparse\n1073741824\nsparse\nallocated\npunched\n8388608\nspace";
    shell(engine, script, expected);
}

fn direct_input_and_output(engine: Engine) {
    let script = "
        dd if=/dev/zero of=f bs=4096 count=64 oflag=direct status=none; stat -c %s f
        printf 0123456789abcdef | dd of=f bs=16 seek=3 conv=notrunc status=none
        dd if=f bs=4096 count=1 iflag=direct status=none | tail -c +49 | head -c 16; echo
        dd if=/dev/zero of=f bs=4096 count=1 oflag=append,sync conv=notrunc status=none; stat -c %s f; sync f";
    shell(engine, script, "262144\n0123456789abcdef\n266240");
}

fn mappings_and_locks(engine: Engine) {
    let script = r#"
import fcntl, mmap, os
with open("m", "w+b") as f:
    f.truncate(8192)
    m = mmap.mmap(f.fileno(), 8192)
    m[4096:4101] = b"hello"
    m.flush()
    os.pwrite(f.fileno(), b"J", 4096)
    print(m[4096:4101].decode(), os.pread(f.fileno(), 5, 4096).decode())
    m.close()
f = open("l", "w")
fcntl.flock(f, fcntl.LOCK_EX)
fcntl.lockf(f, fcntl.LOCK_EX, 10, 5)
pid = os.fork()
if pid == 0:
    g = open("l", "r+")
    try:
        fcntl.flock(g, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os._exit(1)
    except BlockingIOError:
        pass
    fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)
    try:
        fcntl.lockf(g, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 8)
        os._exit(2)
    except BlockingIOError:
        os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
f.close()
g = open("l", "r+")
fcntl.flock(g, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("free")"#;
    python(engine, script, "Jello Jello\n0\nfree");
}

fn renames_and_open_files(engine: Engine) {
    let script = r#"
import os
f = open("f", "w+")
f.write("kept"); f.flush()
os.unlink("f")
f.seek(0)
print(f.read(), os.fstat(f.fileno()).st_nlink)
open("a", "w").write("a"); open("b", "w").write("b")
os.rename("a", "b")
print(open("b").read(), os.path.exists("a"))
os.mkdir("d")
d = os.open("d", os.O_DIRECTORY)
os.close(os.open("in", os.O_CREAT | os.O_EXCL | os.O_WRONLY, dir_fd=d))
try:
    os.open("d/in", os.O_CREAT | os.O_EXCL)
except FileExistsError:
    print("exists")
t = os.open(".", os.O_TMPFILE | os.O_RDWR)
os.write(t, b"tmp"); print(os.fstat(t).st_size)
a = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
b = os.open("log", os.O_WRONLY | os.O_APPEND)
os.write(a, b"one "); os.write(b, b"two "); os.write(a, b"three")
print(open("log").read())
print("".join(sorted(os.listdir("."))))"#;
    python(engine, script, "kept 0\na False\nexists\n3\none two three\nbdlog");
}

fn special_files(engine: Engine) {
    let script = "
        mkfifo p; (echo through >p &); cat p; stat -c %F p
        mknod n c 1 3 2>/dev/null && stat -c '%F %t:%T' n && rm n || echo refused
        perl -MIO::Socket::UNIX -e '
            $l = IO::Socket::UNIX->new(Local => \"s\", Listen => 1) or die \"listen: $!\";
            if (fork) { $c = $l->accept; print <$c>; wait }
            else { $c = IO::Socket::UNIX->new(Peer => \"s\") or die \"connect: $!\"; print $c \"by socket\\n\" }'";
    let node = if Difference::DeviceNodes.with_vm() { "refused" } else { "character special file 1:3" };
    shell(engine, script, &format!("through\nfifo\n{node}\nby socket"));
}

/// Making and removing a file costs an emulated machine some 30 ms: a hundred thousand of the guest's own are too many
/// for each run.
fn many_small_files(engine: Engine) {
    let (folders, files) = if long() { (100, 1000) } else { (5, 60) };
    let script = r#"
import os, shutil
for d in range(FOLDERS):
    os.makedirs(f"t/{d}")
    for n in range(FILES):
        with open(f"t/{d}/{n}", "w") as f: f.write(f"{d} {n}")
found = [(root, name) for root, _, names in os.walk("t") for name in names]
print(len(found), all(open(os.path.join(r, n)).read() == f"{os.path.basename(r)} {n}" for r, n in found))
shutil.rmtree("t")
print(os.path.exists("t"))"#;
    let script = script.replace("FOLDERS", &folders.to_string()).replace("FILES", &files.to_string());
    python(engine, &script, &format!("{} True\nFalse", folders * files));
}

/// Files of the host, in a container with less memory than they would take if it kept them all.
fn more_files_than_are_kept(engine: Engine) {
    let (all, parts) = if long() { (100_000, 100) } else { (20_000, 20) };
    let (folder, mut bytes) = (tempfile::tempdir().unwrap(), 0);
    for part in 0..parts {
        let part = folder.path().join(part.to_string());
        fs::create_dir(&part).unwrap();
        for number in 0..all / parts {
            let content = format!("file {number}");
            bytes += content.len();
            fs::write(part.join(number.to_string()), content).unwrap();
        }
    }
    let script = r#"
import os, shutil
paths = [os.path.join(root, name) for root, _, names in os.walk(".") for name in names]
print(len(paths), sum(os.stat(path).st_size for path in paths))
print(all(open(path).read() == f"file {os.path.basename(path)}" for path in paths[::200]))
shutil.rmtree("7")
os.mkdir("new")
for number in range(500):
    with open(f"new/{number}", "w") as f: f.write("x")"#;
    let volume = format!("{}:/data", folder.path().display());
    let options = ["--rm", "-m", "128m", "-v", &volume, "-w", "/data"];
    let run = engine.with_runtime("run", &options, "python", &["python3", "-c", script]);
    assert_eq!(run.within(4 * HANG).run().ok(), format!("{all} {bytes}\nTrue"));
    let count = |part: &str| fs::read_dir(folder.path().join(part)).map_or(0, Iterator::count);
    assert_eq!([count("."), count("6"), count("7"), count("new")], [parts, 1000, 0, 500]);
}
