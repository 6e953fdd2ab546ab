//! The system calls that the threads of a sandbox host process may make. Others fail with EPERM.
//!
//! The process has the user ID of root. So no call is allowed that this ID alone permits on other processes: to signal,
//! to trace or to limit them.

use pouch_seccomp::{NAMESPACES, Only, Other, Rule};
use seccompiler::{BackendError, BpfProgram};

/// Calls with any arguments, with the reason.
const CALLS: &[(libc::c_long, &str)] = &[
    (libc::SYS_read, "streams, sockets, counters"),
    (libc::SYS_readv, "the same"),
    (libc::SYS_pread64, "counters"),
    (libc::SYS_write, "streams, sockets, files"),
    (libc::SYS_writev, "the same"),
    (libc::SYS_close, "descriptors"),
    (libc::SYS_openat, "files below the root"),
    (libc::SYS_open, "the same"),
    (libc::SYS_fstat, "kinds and sizes of files"),
    (libc::SYS_newfstatat, "the same"),
    (libc::SYS_statx, "the same"),
    (libc::SYS_lseek, "a specification that came as a file, sizes of block devices"),
    (libc::SYS_rename, "the container's progress"),
    (libc::SYS_renameat, "the same"),
    (libc::SYS_renameat2, "the same"),
    (libc::SYS_unlink, "the same"),
    (libc::SYS_unlinkat, "the same"),
    (libc::SYS_splice, "streams"),
    (libc::SYS_poll, "streams, sockets"),
    (libc::SYS_ppoll, "the same"),
    (libc::SYS_epoll_create1, "the connection to the agent"),
    (libc::SYS_epoll_ctl, "the same"),
    (libc::SYS_epoll_wait, "the same"),
    (libc::SYS_epoll_pwait, "the same"),
    (libc::SYS_eventfd2, "the same"),
    (libc::SYS_pipe2, "the same"),
    (libc::SYS_dup, "second descriptors"),
    (libc::SYS_accept4, "requests, forwarded ports"),
    (libc::SYS_bind, "queries to an engine's resolver, netlink"),
    (libc::SYS_connect, "queries to an engine's resolver"),
    (libc::SYS_getsockname, "kinds of sockets, netlink"),
    (libc::SYS_getpeername, "sockets"),
    (libc::SYS_getsockopt, "kinds of sockets, who asks"),
    (libc::SYS_setsockopt, "timeouts"),
    (libc::SYS_sendto, "sockets"),
    (libc::SYS_sendmsg, "messages with descriptors"),
    (libc::SYS_recvfrom, "sockets"),
    (libc::SYS_recvmsg, "messages with descriptors"),
    (libc::SYS_shutdown, "streams that end"),
    (libc::SYS_timerfd_create, "the guest's clock"),
    (libc::SYS_timerfd_settime, "the same"),
    (libc::SYS_clock_gettime, "the clock, where the vDSO has none"),
    (libc::SYS_clock_nanosleep, "pauses"),
    (libc::SYS_nanosleep, "the same"),
    (libc::SYS_getrandom, "tokens of streams, hash tables"),
    (libc::SYS_futex, "locks"),
    (libc::SYS_brk, "the allocator"),
    (libc::SYS_munmap, "the allocator"),
    (libc::SYS_mremap, "the allocator"),
    (libc::SYS_madvise, "the allocator, and stacks of threads that end"),
    (libc::SYS_set_robust_list, "a new thread"),
    (libc::SYS_rseq, "a new thread"),
    (libc::SYS_sigaltstack, "begin and end of a thread"),
    (libc::SYS_sched_getaffinity, "the size of a thread's stack and of the allocator"),
    (libc::SYS_sched_yield, "the standard library's locks"),
    (libc::SYS_gettid, "names of threads, abort"),
    (libc::SYS_getpid, "messages, abort"),
    (libc::SYS_rt_sigprocmask, "begin and end of a thread"),
    (libc::SYS_rt_sigaction, "abort"),
    (libc::SYS_rt_sigreturn, "return from a signal"),
    (libc::SYS_rt_sigtimedwait, "signals that are passed on"),
    (libc::SYS_pidfd_send_signal, "the VMM, by its descriptor"),
    (libc::SYS_waitid, "the VMM, by its descriptor"),
    (libc::SYS_restart_syscall, "calls that a signal interrupted"),
    (libc::SYS_exit, "the end of a thread"),
    (libc::SYS_exit_group, "the end of the process"),
];

const EXEC: u64 = libc::PROT_EXEC as u64;
/// linux/if_tun.h
const TUNSETIFF: u64 = 0x4004_54ca;

/// Calls whose arguments are limited, with the reason.
const LIMITED: &[(libc::c_long, Only, &str)] = &[
    (libc::SYS_mmap, Only::Without(2, EXEC), "no code that was not there at the start"),
    (libc::SYS_mprotect, Only::Without(2, EXEC), "the same"),
    (
        libc::SYS_clone,
        Only::WithAndWithout(0, libc::CLONE_THREAD as u64, NAMESPACES),
        "another thread; no process, and no namespace",
    ),
    (libc::SYS_prctl, Only::OneOf(0, &[libc::PR_SET_NAME as u64]), "the name of a thread"),
    (libc::SYS_tgkill, Only::OwnPid(0), "abort"),
    (
        libc::SYS_socket,
        Only::Sockets(&[
            // For names of interfaces.
            (libc::AF_UNIX, None),
            (libc::AF_INET, None),
            (libc::AF_INET6, None),
            (libc::AF_NETLINK, Some(libc::NETLINK_ROUTE)),
        ]),
        "the network namespace, and an engine's resolver in it",
    ),
    (libc::SYS_socketpair, Only::OneOf(0, &[libc::AF_UNIX as u64]), "streams"),
    (
        libc::SYS_fcntl,
        Only::OneOf(
            1,
            &[
                libc::F_DUPFD_CLOEXEC as u64,
                libc::F_GETFD as u64,
                libc::F_SETFD as u64,
                libc::F_GETFL as u64,
                libc::F_SETFL as u64,
                libc::F_SETPIPE_SZ as u64,
                libc::F_GETPIPE_SZ as u64,
                libc::F_OFD_SETLK as u64,
            ],
        ),
        "second descriptors and flags, locks of block devices; nothing that signals another process",
    ),
    (
        libc::SYS_ioctl,
        Only::OneOf(
            1,
            &[
                libc::FIONBIO,
                libc::FIONREAD,
                libc::FIOCLEX,
                libc::TCGETS,
                libc::TIOCGWINSZ,
                libc::TIOCSWINSZ,
                libc::SIOCGIFINDEX,
                TUNSETIFF,
            ],
        ),
        "flags of sockets, sizes of terminals, tap devices; no input for another's terminal",
    ),
];

/// Calls that fail with ENOSYS, after which the C library uses an alternative: the arguments of clone3 are in memory,
/// where no filter sees them.
const ABSENT: [libc::c_long; 1] = [libc::SYS_clone3];

fn filter() -> Result<BpfProgram, BackendError> {
    let absent = ABSENT.map(|call| (call, Rule::Fail(libc::ENOSYS as u16)));
    let allowed = CALLS.iter().map(|(call, _)| (*call, Rule::Allow));
    let limited = LIMITED.iter().map(|(call, only, _)| (*call, Rule::Only(*only)));
    pouch_seccomp::filter(absent.into_iter().chain(allowed).chain(limited), Other::Fail(libc::EPERM as u16))
}

/// Restricts all threads of this process, irreversibly.
///
/// # Errors
/// The kernel's error.
pub fn restrict() -> Result<(), seccompiler::Error> {
    seccompiler::apply_filter_all_threads(&filter()?)
}
