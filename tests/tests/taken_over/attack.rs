//! The attacks, and the table of what came of them.
//!
//! Each is tried on a new thread of the VMM's process: without filters, as if it had got past them, and as a
//! thread of each kind is confined. A call that a filter kills would end the process, so a child tries first whether
//! it does.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pouch_vmm::jail::seccomp::ThreadKind;

/// The line after the table.
pub const END: &str = "all was tried";
/// How long the interface may take to come.
const INTERFACE: Duration = Duration::from_secs(200);

/// Starts a thread that waits until the VM has its interface, and then attacks. It is not filtered.
pub fn start() {
    thread::Builder::new().name("attack".to_owned()).spawn(attack).unwrap();
}

/// What a system call said: 0, or the number of the error.
type Tried = i32;

fn outcome(result: i64) -> Tried {
    if result < 0 { io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}

type Attempt = Arc<dyn Fn() -> Tried + Send + Sync>;

/// A line of the table.
struct Row {
    what: &'static str,
    /// Each of these must fail in the same way.
    attempts: Vec<Attempt>,
    /// Tried in a child, since it would change the whole process.
    in_child: bool,
}

fn row(what: &'static str, attempt: impl Fn() -> Tried + Send + Sync + 'static) -> Row {
    rows(what, vec![Arc::new(attempt)])
}

fn rows(what: &'static str, attempts: Vec<Attempt>) -> Row {
    assert!(!attempts.is_empty(), "there is nothing to try: {what}");
    Row { what, attempts, in_child: false }
}

fn in_child(row: Row) -> Row {
    Row { in_child: true, ..row }
}

fn attack() {
    let start = Instant::now();
    while !descriptors().iter().any(|fd| fd.kind == Kind::Device(TUN)) && start.elapsed() < INTERFACE {
        thread::sleep(Duration::from_millis(100));
    }
    // The vCPUs have set the device up by then.
    thread::sleep(Duration::from_secs(1));
    eprintln!("| what is tried | without filters | file server | other threads |");
    eprintln!("|---|---|---|---|");
    let table = [held(), files(), kernel()];
    for row in table.iter().flatten() {
        let free = row.outcome(None);
        let fs = row.outcome(Some(ThreadKind::Fs));
        let others =
            [ThreadKind::Main, ThreadKind::Vcpu, ThreadKind::Block].map(|kind| row.outcome(Some(kind)));
        let mut others: Vec<_> = others.into_iter().collect();
        others.dedup();
        eprintln!("| {} | {free} | {fs} | {} |", row.what, others.join(", "));
    }
    eprintln!("{END}");
}

impl Row {
    /// What came of all attempts: mostly one thing.
    fn outcome(&self, kind: Option<ThreadKind>) -> String {
        let one = |attempt| match child(attempt, kind) {
            Err(signal) => signal,
            Ok(tried) if self.in_child => name(tried),
            Ok(_) => name(on_a_thread(attempt, kind)),
        };
        let mut results: Vec<_> = self.attempts.iter().map(one).collect();
        results.sort();
        results.dedup();
        results.join(", ")
    }
}

fn on_a_thread(attempt: &Attempt, kind: Option<ThreadKind>) -> Tried {
    let attempt = attempt.clone();
    let tried = move || {
        kind.inspect(|kind| kind.enter());
        attempt()
    };
    thread::Builder::new().name("attempt".to_owned()).spawn(tried).unwrap().join().unwrap()
}

/// Tries it in a child; or says how the child was killed.
fn child(attempt: &Attempt, kind: Option<ThreadKind>) -> Result<Tried, String> {
    // SAFETY: the child makes system calls and ends. The C library lets it allocate, whatever the other threads do.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        kind.inspect(|kind| kind.enter());
        let tried = attempt();
        // SAFETY: ends the child.
        unsafe { libc::_exit(tried) };
    }
    let mut status = 0;
    // SAFETY: the pointer is to a live integer.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    match libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)) {
        None => Ok(libc::WEXITSTATUS(status)),
        Some(libc::SIGSYS) => Err("killed".to_owned()),
        Some(signal) => Err(format!("signal {signal}")),
    }
}

fn name(tried: Tried) -> String {
    let name = match tried {
        0 => "**yes**",
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::ENXIO => "ENXIO",
        libc::EACCES => "EACCES",
        libc::EROFS => "EROFS",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::EINVAL => "EINVAL",
        other => return format!("error {other}"),
    };
    name.to_owned()
}

/// Character devices by number (Documentation/admin-guide/devices.txt).
const TUN: (u32, u32) = (10, 200);
const VHOST_NET: (u32, u32) = (10, 238);
const NULL: (u32, u32) = (1, 3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Device((u32, u32)),
    Directory,
    File,
    Memory,
    Socket,
    Pipe,
    Anonymous,
}

#[derive(Clone)]
struct Descriptor {
    number: i32,
    kind: Kind,
    link: String,
}

/// What this process has open.
fn descriptors() -> Vec<Descriptor> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let number: i32 = name.parse().unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{number}"));
        let Ok(link) = link.map(|link| link.display().to_string()) else { continue };
        // SAFETY: zeros are a valid value of this plain structure.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a live structure of the right type.
        if unsafe { libc::fstat(number, &raw mut stat) } < 0 {
            continue;
        }
        let kind = match stat.st_mode & libc::S_IFMT {
            libc::S_IFCHR => Kind::Device((libc::major(stat.st_rdev), libc::minor(stat.st_rdev))),
            libc::S_IFDIR => Kind::Directory,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFIFO => Kind::Pipe,
            libc::S_IFREG if link.contains("pouch-vm-memory") => Kind::Memory,
            libc::S_IFREG => Kind::File,
            _ => Kind::Anonymous,
        };
        found.push(Descriptor { number, kind, link });
    }
    // The directory that was read is closed now.
    // SAFETY: the call reads a flag of a number.
    found.retain(|fd| unsafe { libc::fcntl(fd.number, libc::F_GETFD) } >= 0);
    found
}

fn path(text: &str) -> CString {
    CString::new(text).unwrap()
}

fn open(directory: i32, text: &str, flags: i32) -> Tried {
    let text = path(text);
    // SAFETY: the path is NUL-terminated and outlives the call.
    outcome(unsafe { libc::openat(directory, text.as_ptr(), flags | libc::O_CLOEXEC, 0o600) }.into())
}

/// Attempts to open descriptors again through their links.
fn again(number: i32, flags: i32) -> Attempt {
    Arc::new(move || open(libc::AT_FDCWD, &format!("/proc/self/fd/{number}"), flags))
}

/// What the process holds, opened again.
fn held() -> Vec<Row> {
    let all = descriptors();
    let of = |kind: Kind| all.iter().filter(move |fd| fd.kind == kind).map(|fd| fd.number);
    let opened = |kind, flags| of(kind).map(|number| again(number, flags)).collect::<Vec<_>>();
    for fd in &all {
        eprintln!("descriptor {}: {:?} {}", fd.number, fd.kind, fd.link);
        let known = [Kind::Device(TUN), Kind::Device(VHOST_NET), Kind::Device(NULL)];
        assert!(
            !matches!(fd.kind, Kind::Device(_)) || known.contains(&fd.kind),
            "a device that nobody gave it"
        );
    }
    // The disk, which no name shows.
    let files: Vec<_> =
        all.iter().filter(|fd| fd.kind == Kind::File && !fd.link.starts_with("/proc")).collect();
    assert_eq!(files.len(), 1, "one disk, and neither kernel nor guest root");
    let disk = files[0].number;
    let devices: Vec<_> =
        all.iter().filter(|fd| matches!(fd.kind, Kind::Device(_))).map(|fd| fd.number).collect();
    vec![
        rows("open the read-only disk again for writing", vec![again(disk, libc::O_RDWR)]),
        rows("open the read-only disk again for reading", vec![again(disk, libc::O_RDONLY)]),
        rows("write to the read-only disk", vec![Arc::new(move || pwrite(disk))]),
        rows(
            "open /dev/net/tun again, from the interface's descriptor",
            opened(Kind::Device(TUN), libc::O_RDWR),
        ),
        rows("open /dev/vhost-net again", opened(Kind::Device(VHOST_NET), libc::O_RDWR)),
        rows("open the VM, its vCPUs, eventfds again", opened(Kind::Anonymous, libc::O_RDWR)),
        rows("change the mode of a device, or its owner", modes(&devices)),
        rows("change the mode or the owner of the read-only disk", modes(&[disk])),
        rows(
            "open its log again (a pipe; the host reads it, and keeps 16 MiB)",
            opened(Kind::Pipe, libc::O_RDWR),
        ),
        rows("open the control socket again", opened(Kind::Socket, libc::O_RDWR)),
        rows("open guest memory again (it is its own)", opened(Kind::Memory, libc::O_RDWR)),
        rows("leave any open directory by `..`", outside(&of(Kind::Directory).collect::<Vec<_>>())),
    ]
}

/// Attempts to give files the mode and the owner that they have already.
fn modes(files: &[i32]) -> Vec<Attempt> {
    let mut attempts: Vec<Attempt> = Vec::new();
    for &fd in files {
        // SAFETY: zeros are a valid value of this plain structure.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a live structure of the right type.
        assert_eq!(unsafe { libc::fstat(fd, &raw mut stat) }, 0);
        // By the calls that the file server has.
        let link = path(&format!("/proc/self/fd/{fd}"));
        let other = link.clone();
        attempts.push(Arc::new(move || {
            // SAFETY: the path is NUL-terminated and outlives the call.
            outcome(unsafe { libc::fchmodat(libc::AT_FDCWD, link.as_ptr(), stat.st_mode & 0o7777, 0) }.into())
        }));
        attempts.push(Arc::new(move || {
            // SAFETY: as above.
            outcome(
                unsafe { libc::fchownat(libc::AT_FDCWD, other.as_ptr(), stat.st_uid, stat.st_gid, 0) }.into(),
            )
        }));
    }
    attempts
}

fn pwrite(fd: i32) -> Tried {
    // SAFETY: the pointer is to a byte that outlives the call.
    match outcome(unsafe { libc::pwrite(fd, c"x".as_ptr().cast(), 1, 0) } as i64) {
        // What a descriptor that is not open for writing says.
        libc::EBADF => libc::EACCES,
        other => other,
    }
}

/// Paths that lead out if anything above the directory is not the process's own root.
fn outside(directories: &[i32]) -> Vec<Attempt> {
    const WAYS: [&str; 8] = [
        "../../1/root",
        "../../1/environ",
        "../../sys/kernel/core_pattern",
        "../../../../../../../../../../proc/1/root",
        "../../../../../../../../../../proc/sys/kernel/core_pattern",
        "../../../../../../../../../../etc/passwd",
        "../../../../../../../../../../dev/kvm",
        "../../../../../../../../../../sys/kernel",
    ];
    // With none at all there is the current directory.
    let directories = directories.iter().copied().chain([libc::AT_FDCWD]);
    let mut ways: Vec<Attempt> = Vec::new();
    for directory in directories {
        for way in WAYS {
            // By its place only, which nothing but the tree of names decides.
            ways.push(Arc::new(move || open(directory, way, libc::O_PATH)));
        }
    }
    ways
}

/// The directories that the container shares: the one that it may write, and the one that it may not.
fn volumes() -> (String, String) {
    let (mut writable, mut read_only) = (None, None);
    let entries = |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    // Those of one file system are in one directory.
    let mounts = entries(Path::new("/share")).flat_map(|system| entries(&system).collect::<Vec<_>>());
    for mount in mounts.filter(|mount| !mount.ends_with("rootfs")) {
        let name = mount.display().to_string();
        let text = path(&name);
        // SAFETY: zeros are a valid value of this plain structure.
        let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: the path is NUL-terminated, and the pointer to a live structure of the right type.
        assert_eq!(unsafe { libc::statvfs(text.as_ptr(), &raw mut stat) }, 0);
        let place = if stat.f_flag & libc::ST_RDONLY == 0 { &mut writable } else { &mut read_only };
        place.replace(name);
    }
    (writable.unwrap(), read_only.unwrap())
}

/// The share and the rest of the mount namespace.
fn files() -> Vec<Row> {
    let (writable, read_only) = volumes();
    let at = |text: &str, flags| {
        let text = text.to_owned();
        move || open(libc::AT_FDCWD, &text, flags)
    };
    let make = |mode: libc::mode_t, device| {
        let name = path(&format!("{writable}/device"));
        move || {
            // SAFETY: the path is NUL-terminated and outlives the call.
            outcome(unsafe { libc::mknodat(libc::AT_FDCWD, name.as_ptr(), mode | 0o600, device) }.into())
        }
    };
    let new = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
    let program = path(&format!("{writable}/program"));
    let execute = move || {
        let arguments = [c"program".as_ptr(), c"--list".as_ptr(), c"--ignored".as_ptr(), std::ptr::null()];
        // SAFETY: the strings are NUL-terminated, the lists end, and all outlive the call.
        outcome(
            unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), [std::ptr::null()].as_ptr()) }.into(),
        )
    };
    vec![
        row("read what the container shares", at(&read_only, libc::O_RDONLY)),
        row("make a file where the container may only read", at(&format!("{read_only}/new"), new)),
        row("make a file in the share tree itself", at("/share/new", new)),
        row("make a file in its root", at("/new", new)),
        row("make a node of /dev/kvm in a shared directory", make(libc::S_IFCHR, libc::makedev(10, 232))),
        row("make a node of a disk in a shared directory", make(libc::S_IFBLK, libc::makedev(254, 0))),
        row("open /proc/1/root", at("/proc/1/root", libc::O_PATH)),
        row("open /dev/kvm by its path", at("/dev/kvm", libc::O_RDWR)),
        row("mount a file system", || {
            let (kind, target) = (path("tmpfs"), path("/share"));
            // SAFETY: the strings are NUL-terminated and outlive the call.
            let result =
                unsafe { libc::mount(kind.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null()) };
            outcome(result.into())
        }),
        in_child(row("execute a program of the share", execute)),
        row("change its root", || {
            let root = path("/share");
            // SAFETY: the path is NUL-terminated and outlives the call.
            outcome(unsafe { libc::chroot(root.as_ptr()) }.into())
        }),
    ]
}

/// The kernel's other interfaces.
fn kernel() -> Vec<Row> {
    let all = descriptors();
    let tun = all.iter().find(|fd| fd.kind == Kind::Device(TUN)).unwrap().number;
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let socket = |family| {
        move || {
            // SAFETY: the call takes numbers only.
            outcome(unsafe { libc::socket(family, libc::SOCK_STREAM, 0) }.into())
        }
    };
    vec![
        row("gain CAP_SYS_ADMIN in its user namespace", caps::set_sys_admin),
        in_child(row("make a user namespace", || {
            // SAFETY: the call takes numbers only.
            outcome(unsafe { libc::unshare(libc::CLONE_NEWUSER) }.into())
        })),
        row("make an internet socket", socket(libc::AF_INET)),
        row("make a vsock socket, to the host", socket(libc::AF_VSOCK)),
        row("reach another network from its namespace", connect),
        row("make its tap device persistent", move || {
            // SAFETY: TUNSETPERSIST takes a number.
            outcome(unsafe { libc::ioctl(tun, 0x4004_54cb, 1) }.into())
        }),
        row("map memory that can be executed", move || {
            let protection = libc::PROT_READ | libc::PROT_EXEC;
            // SAFETY: the kernel chooses the address.
            let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, anonymous, -1, 0) };
            outcome(if mapped == libc::MAP_FAILED { -1 } else { 0 })
        }),
    ]
}

fn connect() -> Tried {
    // SAFETY: zeros are a valid value of this plain structure.
    let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    address.sin_family = libc::AF_INET as u16;
    address.sin_port = 80u16.to_be();
    address.sin_addr.s_addr = u32::from_ne_bytes([10, 77, 99, 1]);
    // SAFETY: the calls take numbers, and a pointer to a live structure of its length.
    let result = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0);
        libc::connect(fd, (&raw const address).cast(), size_of_val(&address) as u32)
    };
    outcome(result.into())
}

mod caps {
    use super::{Tried, outcome};

    /// `struct __user_cap_header_struct` and two of `struct __user_cap_data_struct` (linux/capability.h).
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }

    const VERSION_3: u32 = 0x2008_0522;
    const SYS_ADMIN: u32 = 1 << 21;

    pub fn set_sys_admin() -> Tried {
        let header = Header { version: VERSION_3, pid: 0 };
        let data = [SYS_ADMIN, SYS_ADMIN, 0, 0, 0, 0];
        // SAFETY: the pointers are to live structures of the right layout.
        outcome(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })
    }
}
