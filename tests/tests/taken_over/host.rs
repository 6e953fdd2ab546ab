//! What a sandbox host process can do that its guest has taken over, by an error in a parser.
//!
//! The attacks are made by a thread of a real host process, whose container runs.

use std::ffi::CStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use libc::{c_int, c_long};

/// The line after the table.
pub const END: &str = "all was tried on the host";
/// The name of the program as which the host process is started.
pub const PROGRAM: &str = "pouch-vm";

/// Starts a thread that attacks.
pub fn start() {
    thread::Builder::new().name("attack".to_owned()).spawn(attack).unwrap();
}

/// What a system call said: 0, or the number of the error.
type Tried = i32;
type Attempt = Box<dyn Fn() -> Tried>;
/// What is tried, and the ways to try it.
type Row = (&'static str, Vec<Attempt>);

fn attack() {
    eprintln!("| what a taken-over host process tries | result |");
    eprintln!("|---|---|");
    for (what, attempts) in files().into_iter().chain(processes()).chain(kernel()).chain(network()) {
        let mut results: Vec<String> = attempts.iter().map(|attempt| name(attempt())).collect();
        results.sort();
        results.dedup();
        eprintln!("| {what} | {} |", results.join(", "));
    }
    eprintln!("{END}");
}

fn name(tried: Tried) -> String {
    let name = match tried {
        0 => "**yes**",
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::ENOSYS => "ENOSYS",
        libc::ENODEV => "ENODEV",
        libc::EACCES => "EACCES",
        libc::EROFS => "EROFS",
        libc::ECONNREFUSED => "ECONNREFUSED",
        other => return format!("error {other}"),
    };
    name.to_owned()
}

fn of<T>(result: io::Result<T>) -> Tried {
    result.err().map_or(0, |error| error.raw_os_error().unwrap_or(-1))
}

/// A system call.
fn call(number: c_long, arguments: [u64; 5]) -> Tried {
    let [a, b, c, d, e] = arguments;
    // SAFETY: pointers among the arguments are to strings and structures that live as long as the program.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}

fn one(number: c_long, arguments: [u64; 5]) -> Attempt {
    Box::new(move || call(number, arguments))
}

fn text(text: &'static CStr) -> u64 {
    text.as_ptr() as u64
}

fn read(path: &'static str) -> Attempt {
    Box::new(move || of(File::open(path)))
}

fn write(path: &'static str) -> Attempt {
    Box::new(move || of(OpenOptions::new().write(true).open(path)))
}

fn make(path: &'static str) -> Attempt {
    Box::new(move || of(OpenOptions::new().write(true).create_new(true).open(path)))
}

fn one_of(attempt: impl Fn() -> Tried + 'static) -> Vec<Attempt> {
    vec![Box::new(attempt)]
}

/// Room for what a call writes.
static mut ROOM: [u64; 64] = [0; 64];

fn room() -> u64 {
    (&raw mut ROOM) as u64
}

/// The directory of the container's progress. The container's ID is the last argument of the host process.
fn progress() -> PathBuf {
    let id = std::env::args().next_back().unwrap();
    Path::new("/run/pouch-vm").join(id).join("progress")
}

fn files() -> Vec<Row> {
    let above = |fd: c_int| {
        move || {
            // SAFETY: the path is NUL-terminated.
            let opened = unsafe { libc::openat(fd, c"../etc/passwd".as_ptr(), libc::O_RDONLY) };
            if opened < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
        }
    };
    let from_every_descriptor = one_of(move || {
        let tried =
            (0..1024).map(|fd| above(fd)()).filter(|tried| ![libc::EBADF, libc::ENOTDIR].contains(tried));
        tried.min().unwrap_or(libc::ENOENT)
    });
    let link = |path: &'static CStr| one(libc::SYS_symlink, [text(c"/etc/passwd"), text(path), 0, 0, 0]);
    vec![
        ("read a file of the host", vec![read("/etc/passwd"), read("/root"), read("/proc/1/mem")]),
        ("leave its root by `..`", vec![read("/../etc/passwd"), read("/proc/sys/net/../kernel/hostname")]),
        ("leave any open descriptor by `..`", from_every_descriptor),
        (
            "see processes of the host, or its own in /proc",
            vec![read("/proc/self/status"), read("/proc/1/status")],
        ),
        ("write to a setting of the host's kernel", vec![write("/proc/sys/kernel/core_pattern")]),
        ("write to a cgroup", vec![write("/sys/fs/cgroup/cgroup.procs")]),
        (
            "open a device",
            vec![read("/dev/kvm"), read("/dev/mem"), read("/dev/net/tun"), read("/dev/vhost-net")],
        ),
        ("make a file in its root", vec![make("/x"), make("/dev/x"), make("/proc/x")]),
        (
            "make a file in the directory `progress`",
            one_of(|| {
                let path = progress().join("x");
                let tried = of(OpenOptions::new().write(true).create_new(true).open(&path));
                // It could fill the file system of /run, as the container could fill its own.
                let _ = fs::remove_file(path);
                tried
            }),
        ),
        (
            "write to the state file beside it",
            one_of(|| of(OpenOptions::new().write(true).open(progress().join("../state.json")))),
        ),
        (
            "make a link there",
            vec![
                one(libc::SYS_symlinkat, [text(c"/etc/passwd"), libc::AT_FDCWD as u64, text(c"/x"), 0, 0]),
                link(c"/x"),
                one(libc::SYS_link, [text(c"/dev/null"), text(c"/x"), 0, 0, 0]),
            ],
        ),
        (
            "make a device node or a FIFO",
            vec![
                one(libc::SYS_mknod, [text(c"/x"), u64::from(libc::S_IFCHR), libc::makedev(1, 1), 0, 0]),
                one(libc::SYS_mknod, [text(c"/x"), u64::from(libc::S_IFIFO), 0, 0, 0]),
            ],
        ),
        (
            "change a mode or an owner",
            vec![
                one(libc::SYS_chmod, [text(c"/dev/null"), 0o777, 0, 0, 0]),
                one(libc::SYS_chown, [text(c"/dev/null"), 1, 1, 0, 0]),
                one(libc::SYS_fchmod, [2, 0o777, 0, 0, 0]),
            ],
        ),
        (
            "mount, unmount, or change its root",
            vec![
                one(libc::SYS_mount, [text(c"none"), text(c"/proc"), text(c"proc"), 0, 0]),
                one(libc::SYS_umount2, [text(c"/proc/sys/net"), 0, 0, 0, 0]),
                one(libc::SYS_pivot_root, [text(c"/"), text(c"/"), 0, 0, 0]),
                one(libc::SYS_chroot, [text(c"/"), 0, 0, 0, 0]),
                one(libc::SYS_open_tree, [libc::AT_FDCWD as u64, text(c"/"), 0, 0, 0]),
                one(libc::SYS_fsopen, [text(c"proc"), 0, 0, 0, 0]),
            ],
        ),
        ("open a file by a handle", vec![one(libc::SYS_open_by_handle_at, [0, room(), 0, 0, 0])]),
    ]
}

fn processes() -> Vec<Row> {
    let init = 1;
    vec![
        (
            "signal a process of the host",
            vec![
                one(libc::SYS_kill, [init, 0, 0, 0, 0]),
                one(libc::SYS_tkill, [init, 0, 0, 0, 0]),
                one(libc::SYS_tgkill, [init, init, 0, 0, 0]),
                one(libc::SYS_rt_sigqueueinfo, [init, 0, room(), 0, 0]),
                one(libc::SYS_pidfd_open, [init, 0, 0, 0, 0]),
            ],
        ),
        (
            "have a descriptor signal another process",
            vec![
                one(libc::SYS_fcntl, [2, libc::F_SETOWN as u64, init, 0, 0]),
                one(libc::SYS_fcntl, [2, 10, 9, 0, 0]), // F_SETSIG
                one(libc::SYS_fcntl, [2, libc::F_SETLEASE as u64, 0, 0, 0]),
                one(libc::SYS_ioctl, [2, 0x8902, room(), 0, 0]), // SIOCSPGRP
                one(libc::SYS_timer_create, [0, 0, room(), 0, 0]),
            ],
        ),
        (
            "trace a process, or read its memory",
            vec![
                one(libc::SYS_ptrace, [libc::PTRACE_SEIZE.into(), init, 0, 0, 0]),
                one(libc::SYS_process_vm_readv, [init, room(), 1, room(), 1]),
                one(libc::SYS_process_vm_writev, [init, room(), 1, room(), 1]),
                one(libc::SYS_kcmp, [init, init, 0, 0, 0]),
                one(libc::SYS_pidfd_getfd, [0, 0, 0, 0, 0]),
                one(libc::SYS_perf_event_open, [room(), init, 0, 0, 0]),
            ],
        ),
        (
            "change another's limits or priority",
            vec![
                one(libc::SYS_prlimit64, [init, 7, room(), 0, 0]),
                one(libc::SYS_setpriority, [0, init, 19, 0, 0]),
                one(libc::SYS_ioprio_set, [1, init, 0, 0, 0]),
                one(libc::SYS_sched_setaffinity, [init, 8, room(), 0, 0]),
                one(libc::SYS_sched_setscheduler, [init, 0, room(), 0, 0]),
                one(libc::SYS_migrate_pages, [init, 1, room(), room(), 0]),
            ],
        ),
        (
            "execute a program",
            vec![
                one(libc::SYS_execve, [text(c"/dev/null"), 0, 0, 0, 0]),
                one(libc::SYS_execveat, [0, text(c"/dev/null"), 0, 0, 0]),
            ],
        ),
        (
            "start a process",
            vec![
                one(libc::SYS_fork, [0; 5]),
                one(libc::SYS_vfork, [0; 5]),
                one(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0]),
            ],
        ),
        ("start a process by clone3", vec![one(libc::SYS_clone3, [room(), 88, 0, 0, 0])]),
        (
            "make a namespace, or enter one",
            vec![
                one(libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0]),
                one(libc::SYS_unshare, [libc::CLONE_NEWNET as u64, 0, 0, 0, 0]),
                one(libc::SYS_setns, [0, 0, 0, 0, 0]),
                one(libc::SYS_clone, [(libc::CLONE_NEWUSER | libc::CLONE_THREAD) as u64, 0, 0, 0, 0]),
            ],
        ),
        (
            "change its identity or its capabilities",
            vec![
                one(libc::SYS_setuid, [1, 0, 0, 0, 0]),
                one(libc::SYS_setgroups, [0; 5]),
                one(libc::SYS_capset, [room(), room(), 0, 0, 0]),
                one(libc::SYS_prctl, [libc::PR_CAP_AMBIENT as u64, 2, 12, 0, 0]),
            ],
        ),
        (
            "change its filter",
            vec![
                one(libc::SYS_seccomp, [1, 0, 0, 0, 0]),
                one(libc::SYS_prctl, [libc::PR_SET_SECCOMP as u64, 2, 0, 0, 0]),
                one(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0, 0]),
            ],
        ),
        (
            "make memory executable",
            vec![
                one(libc::SYS_mmap, [0, 4096, (libc::PROT_EXEC | libc::PROT_READ) as u64, 0x22, u64::MAX]),
                one(libc::SYS_mprotect, [room() & !0xfff, 4096, libc::PROT_EXEC as u64, 0, 0]),
                one(libc::SYS_memfd_create, [text(c"x"), 0, 0, 0, 0]),
            ],
        ),
    ]
}

fn kernel() -> Vec<Row> {
    vec![
        (
            "load a kernel module or another kernel",
            vec![
                one(libc::SYS_init_module, [room(), 8, text(c""), 0, 0]),
                one(libc::SYS_finit_module, [0, text(c""), 0, 0, 0]),
                one(libc::SYS_kexec_load, [0; 5]),
            ],
        ),
        (
            "reboot, set the clock or the host's name",
            vec![
                one(libc::SYS_reboot, [0; 5]),
                one(libc::SYS_clock_settime, [0, room(), 0, 0, 0]),
                one(libc::SYS_adjtimex, [room(), 0, 0, 0, 0]),
                one(libc::SYS_sethostname, [text(c"x"), 1, 0, 0, 0]),
            ],
        ),
        ("load a BPF program", vec![one(libc::SYS_bpf, [5, room(), 64, 0, 0])]),
        (
            "use io_uring, userfaultfd, perf or fanotify",
            vec![
                one(libc::SYS_io_uring_setup, [1, room(), 0, 0, 0]),
                one(libc::SYS_userfaultfd, [0; 5]),
                one(libc::SYS_perf_event_open, [room(), 0, 0, 0, 0]),
                one(libc::SYS_fanotify_init, [0; 5]),
            ],
        ),
        (
            "use keys, System V IPC or message queues of root",
            vec![
                one(libc::SYS_keyctl, [0; 5]),
                one(libc::SYS_shmget, [1, 4096, 0, 0, 0]),
                one(libc::SYS_semget, [1, 1, 0, 0, 0]),
                one(libc::SYS_msgget, [1, 0, 0, 0, 0]),
                one(libc::SYS_mq_open, [text(c"x"), 0, 0, 0, 0]),
            ],
        ),
        (
            "read the kernel's log, or stop its swap or accounting",
            vec![
                one(libc::SYS_syslog, [3, room(), 64, 0, 0]),
                one(libc::SYS_swapoff, [text(c"/x"), 0, 0, 0, 0]),
                one(libc::SYS_acct, [0; 5]),
            ],
        ),
        ("type into a terminal", vec![one(libc::SYS_ioctl, [2, libc::TIOCSTI, room(), 0, 0])]),
    ]
}

fn network() -> Vec<Row> {
    let socket = |domain: c_int, kind: c_int, protocol: c_int| {
        one(libc::SYS_socket, [domain as u64, kind as u64, protocol as u64, 0, 0])
    };
    vec![
        (
            "open a packet or vsock socket",
            vec![
                socket(libc::AF_PACKET, libc::SOCK_RAW, 0),
                socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
                socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
            ],
        ),
        ("open a raw socket", vec![socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)]),
        (
            "read the host's audit log",
            one_of(|| {
                const NETLINK_AUDIT: c_int = 9;
                // SAFETY: the call takes numbers.
                let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_AUDIT) };
                if fd < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
            }),
        ),
        (
            "connect to a UNIX socket of the host",
            one_of(|| of(std::os::unix::net::UnixStream::connect("/run/docker.sock"))),
        ),
        ("open a socket in its container's network namespace", one_of(|| of(UdpSocket::bind("127.0.0.1:0")))),
        (
            "change a setting of its container's network namespace",
            one_of(|| {
                let mut options = OpenOptions::new();
                let file =
                    options.write(true).custom_flags(libc::O_CLOEXEC).open("/proc/sys/net/ipv4/ip_forward");
                of(file.and_then(|mut file| file.write_all(b"0")))
            }),
        ),
    ]
}
