//! The system calls that each kind of thread may make. Any other ends the process.
//!
//! A list a kind says which calls, [`LIMITS`] with which arguments.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::landlock;
use super::requests;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// The event loop.
    Main,
    /// Runs guest code.
    Vcpu,
    /// Serves a disk.
    Block,
    /// Serves the shared file system.
    Fs,
}

/// What every thread needs, with the reason.
const COMMON: &[(libc::c_long, &str)] = &[
    (libc::SYS_read, "eventfds"),
    (libc::SYS_write, "eventfds, the log"),
    (libc::SYS_futex, "locks"),
    (libc::SYS_brk, "the allocator"),
    (libc::SYS_mmap, "the allocator"),
    (libc::SYS_munmap, "the allocator"),
    (libc::SYS_mremap, "the allocator"),
    (libc::SYS_mprotect, "the allocator, for a thread's own heap"),
    (libc::SYS_madvise, "the allocator, and stacks of threads that end"),
    (libc::SYS_rt_sigreturn, "return from the signal that interrupts vCPUs"),
    (libc::SYS_rt_sigprocmask, "the end of a thread, abort"),
    (libc::SYS_sigaltstack, "the end of a thread"),
    (libc::SYS_sched_yield, "the standard library's locks"),
    (libc::SYS_close, "descriptors that are done with"),
    (libc::SYS_clock_gettime, "the clock, where the vDSO has none"),
    (libc::SYS_gettid, "abort"),
    (libc::SYS_getpid, "abort"),
    (libc::SYS_tgkill, "abort, and interrupting vCPUs"),
    (libc::SYS_exit, "the end of a thread"),
    (libc::SYS_exit_group, "the end of the process"),
    (libc::SYS_restart_syscall, "calls that a signal interrupted"),
];

const MAIN: &[(libc::c_long, &str)] = &[
    (libc::SYS_epoll_wait, "the event loop"),
    (libc::SYS_epoll_pwait, "the event loop"),
    (libc::SYS_epoll_ctl, "socket connections come and go"),
    (libc::SYS_socketpair, "a socket connection"),
    (libc::SYS_ioctl, "non-blocking sockets, tap devices, KVM's wires to a device that comes"),
    (libc::SYS_eventfd2, "a device that comes"),
    (libc::SYS_fcntl, "non-blocking sockets"),
    (libc::SYS_shutdown, "half-closed connections"),
    (libc::SYS_sendto, "bytes of connections"),
    (libc::SYS_recvfrom, "bytes of connections"),
    (libc::SYS_sendmsg, "the control socket"),
    (libc::SYS_recvmsg, "the control socket"),
    (libc::SYS_timerfd_settime, "connections that are tried again"),
    (libc::SYS_fallocate, "guest memory is given back"),
    (libc::SYS_fstat, "how much memory the guest has"),
    (libc::SYS_newfstatat, "the same, as the C library calls it"),
    (libc::SYS_getrandom, "entropy for the guest, hash tables"),
];

const VCPU: &[(libc::c_long, &str)] = &[
    (libc::SYS_ioctl, "KVM_RUN; a driver that starts a tap device"),
    (libc::SYS_fcntl, "descriptors of a device that starts"),
    (libc::SYS_dup, "descriptors of a device that starts"),
];

const BLOCK: &[(libc::c_long, &str)] = &[
    (libc::SYS_poll, "waiting for requests"),
    (libc::SYS_preadv, "reads"),
    (libc::SYS_pwritev, "writes"),
    (libc::SYS_fdatasync, "flushes"),
    (libc::SYS_fallocate, "discards and writes of zeros"),
];

const FS: &[(libc::c_long, &str)] = &[
    (libc::SYS_epoll_create1, "the pool's notifications"),
    (libc::SYS_epoll_ctl, "the pool's notifications"),
    (libc::SYS_epoll_wait, "waiting for requests"),
    (libc::SYS_epoll_pwait, "waiting for requests, as newer libraries do"),
    (libc::SYS_epoll_pwait2, "waiting for requests, as newer libraries do"),
    (libc::SYS_clone, "another thread of the pool"),
    (libc::SYS_set_robust_list, "the start of a thread"),
    (libc::SYS_rseq, "the start of a thread"),
    (libc::SYS_prctl, "the name of a thread"),
    (libc::SYS_sched_getaffinity, "the start of a thread: where its stack is"),
    (libc::SYS_openat, "lookup, open, create"),
    (libc::SYS_statx, "attributes"),
    (libc::SYS_fstatfs, "space"),
    (libc::SYS_getdents64, "directories"),
    (libc::SYS_lseek, "holes, directories"),
    (libc::SYS_preadv2, "reads"),
    (libc::SYS_pwritev2, "writes"),
    (libc::SYS_copy_file_range, "copies"),
    (libc::SYS_mkdirat, "directories"),
    (libc::SYS_mknodat, "fifos, sockets, whiteouts"),
    (libc::SYS_symlinkat, "symbolic links"),
    (libc::SYS_readlinkat, "symbolic links"),
    (libc::SYS_linkat, "hard links"),
    (libc::SYS_unlinkat, "removal"),
    (libc::SYS_renameat2, "renaming"),
    (libc::SYS_fchmodat, "modes"),
    (libc::SYS_fchownat, "owners"),
    (libc::SYS_ftruncate, "sizes"),
    (libc::SYS_fallocate, "sizes and holes"),
    (libc::SYS_utimensat, "times"),
    (libc::SYS_fsync, "durability"),
    (libc::SYS_fdatasync, "durability"),
    (libc::SYS_syncfs, "durability of a whole file system"),
    (libc::SYS_setxattr, "extended attributes, through /proc/self/fd"),
    (libc::SYS_getxattr, "extended attributes"),
    (libc::SYS_listxattr, "extended attributes"),
    (libc::SYS_removexattr, "extended attributes"),
    (libc::SYS_setresuid, "requests act under the identity of the guest's process"),
    (libc::SYS_setresgid, "the same for groups"),
    (libc::SYS_setgroups, "the same for groups"),
    (libc::SYS_capget, "the same for capabilities"),
    (libc::SYS_capset, "the same for capabilities"),
    (libc::SYS_fcntl, "locks"),
    (libc::SYS_flock, "locks"),
    (libc::SYS_dup, "closing a file tells what was not written"),
    (libc::SYS_ioctl, "file flags (chattr)"),
    (libc::SYS_getrandom, "hash tables"),
];

/// What an argument of a call, counted from 0, must be.
#[derive(Clone, Copy, Debug)]
enum Only {
    /// It has none of these bits.
    Without(u8, u64),
    /// It is one of these.
    OneOf(u8, &'static [u64]),
}

/// For threads of every kind.
const ALL: &[ThreadKind] = &[ThreadKind::Main, ThreadKind::Vcpu, ThreadKind::Block, ThreadKind::Fs];

const EXEC: u64 = libc::PROT_EXEC as u64;

/// What else a call that a list has must be like, with the reason. A call that is not here is allowed with all
/// arguments.
const LIMITS: &[(&[ThreadKind], libc::c_long, Only, &str)] = &[
    (ALL, libc::SYS_mmap, Only::Without(2, EXEC), "no code that was not there at the start"),
    (ALL, libc::SYS_mprotect, Only::Without(2, EXEC), "the same"),
    (&[ThreadKind::Main], libc::SYS_ioctl, Only::OneOf(1, requests::MAIN), "those that the event loop makes"),
    (&[ThreadKind::Vcpu], libc::SYS_ioctl, Only::OneOf(1, requests::VCPU), "those that a vCPU makes"),
    (&[ThreadKind::Fs], libc::SYS_ioctl, Only::OneOf(1, requests::FS), "file flags, and nothing of a device"),
    (&[ThreadKind::Main], libc::SYS_socketpair, Only::OneOf(0, &[libc::AF_UNIX as u64]), "a connection"),
    (&[ThreadKind::Fs], libc::SYS_clone, Only::Without(0, NAMESPACES), "another thread, and no namespace"),
    (&[ThreadKind::Fs], libc::SYS_prctl, Only::OneOf(0, &[libc::PR_SET_NAME as u64]), "the name of a thread"),
    (
        &[ThreadKind::Main, ThreadKind::Vcpu],
        libc::SYS_fcntl,
        Only::OneOf(1, &[DUPFD, libc::F_GETFD as u64, libc::F_GETFL as u64, libc::F_SETFL as u64]),
        "second descriptors and O_NONBLOCK",
    ),
    (
        &[ThreadKind::Fs],
        libc::SYS_fcntl,
        Only::OneOf(
            1,
            &[
                DUPFD,
                libc::F_GETFD as u64,
                libc::F_GETFL as u64,
                libc::F_SETFL as u64,
                libc::F_OFD_GETLK as u64,
                libc::F_OFD_SETLK as u64,
            ],
        ),
        "locks of open files; none that signals another process",
    ),
];

/// Calls that are refused with an error number, where a library then takes another way.
const REFUSED: &[(&[ThreadKind], libc::c_long, libc::c_int, &str)] = &[(
    &[ThreadKind::Fs],
    libc::SYS_clone3,
    libc::ENOSYS,
    "its arguments are in memory, where no filter sees them; the C library then takes clone",
)];

/// What clone(2) makes and unshare(2) does: namespaces, in which a process has capabilities.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

const DUPFD: u64 = libc::F_DUPFD_CLOEXEC as u64;

impl Only {
    /// The rules of which one must hold.
    fn rules(self) -> Result<Vec<SeccompRule>, BackendError> {
        // The kernel looks at no more of these arguments than their lower half.
        let rule = |index, operator, value| {
            SeccompRule::new(vec![SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)?])
        };
        match self {
            Only::Without(index, bits) => Ok(vec![rule(index, SeccompCmpOp::MaskedEq(bits), 0)?]),
            Only::OneOf(index, values) => {
                values.iter().map(|value| rule(index, SeccompCmpOp::Eq, *value)).collect()
            }
        }
    }
}

impl ThreadKind {
    fn calls(self) -> impl Iterator<Item = &'static (libc::c_long, &'static str)> {
        let own = match self {
            ThreadKind::Main => MAIN,
            ThreadKind::Vcpu => VCPU,
            ThreadKind::Block => BLOCK,
            ThreadKind::Fs => FS,
        };
        COMMON.iter().chain(own)
    }

    /// What limits the arguments of a call of this kind of thread.
    fn limit(self, call: libc::c_long) -> Option<Only> {
        LIMITS.iter().find(|(kinds, of, ..)| *of == call && kinds.contains(&self)).map(|limit| limit.2)
    }

    /// The filters of this kind of thread: the calls that it may make, and before it those that are refused. Of
    /// several filters the strictest verdict holds.
    fn filters(self) -> Result<Vec<BpfProgram>, BackendError> {
        let build = |rules, other, matched| -> Result<BpfProgram, BackendError> {
            SeccompFilter::new(rules, other, matched, TargetArch::x86_64)?.try_into()
        };
        let mut filters = Vec::new();
        let mut rules = BTreeMap::new();
        for (_, call, error, _) in REFUSED.iter().filter(|(kinds, ..)| kinds.contains(&self)) {
            let refused = BTreeMap::from([(*call, Vec::new())]);
            filters.push(build(refused, SeccompAction::Allow, SeccompAction::Errno(*error as u32))?);
            rules.insert(*call, Vec::new());
        }
        for (call, _) in self.calls() {
            rules.insert(*call, self.limit(*call).map_or(Ok(Vec::new()), Only::rules)?);
        }
        filters.push(build(rules, SeccompAction::KillProcess, SeccompAction::Allow)?);
        Ok(filters)
    }

    /// Confines the calling thread to the system calls of its kind, and one that serves files to the
    /// share, for good, unless the process was told not to filter ([`disable`]). A thread that cannot be
    /// confined ends the process.
    pub fn enter(self) {
        if DISABLED.get().is_some() {
            return;
        }
        if self == ThreadKind::Fs
            && let Err(error) = landlock::restrict_to_share()
        {
            crate::log_line!("a thread could not be restricted to the share: {error}");
            std::process::abort();
        }
        let applied = self
            .filters()
            .map_err(seccompiler::Error::from)
            .and_then(|filters| filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter)));
        if let Err(error) = applied {
            crate::log_line!("a thread could not be confined: {error}");
            std::process::abort();
        }
    }
}

static DISABLED: OnceLock<()> = OnceLock::new();

/// Turns the filters off for the whole process, to debug it.
pub fn disable() {
    let _ = DISABLED.set(());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_names_each_call_once() {
        for kind in [ThreadKind::Main, ThreadKind::Vcpu, ThreadKind::Block, ThreadKind::Fs] {
            let mut calls: Vec<_> = kind.calls().map(|(call, _)| call).collect();
            let all = calls.len();
            calls.sort();
            calls.dedup();
            assert_eq!(calls.len(), all, "{kind:?} names a call twice");
        }
    }

    #[test]
    fn what_takes_a_request_is_limited() {
        for (kinds, call, _, reason) in LIMITS {
            for kind in *kinds {
                let limits = LIMITS.iter().filter(|(kinds, of, ..)| of == call && kinds.contains(kind));
                assert_eq!(limits.count(), 1, "{kind:?}, {call}: limited twice: {reason}");
            }
        }
        let requests = [
            libc::SYS_ioctl,
            libc::SYS_fcntl,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_prctl,
            libc::SYS_clone,
            libc::SYS_mmap,
            libc::SYS_mprotect,
        ];
        for kind in ALL {
            for call in requests {
                let listed = kind.calls().any(|(listed, _)| *listed == call);
                assert!(!listed || kind.limit(call).is_some(), "{kind:?}, {call}");
            }
        }
    }

    /// Makes a system call in a process of its own, on a thread of this kind; says whether it was allowed.
    fn allowed(kind: ThreadKind, call: libc::c_long, arguments: [u64; 4]) -> bool {
        made(kind, call, arguments).is_some()
    }

    /// As [`allowed`], with the number of the error.
    fn made(kind: ThreadKind, call: libc::c_long, arguments: [u64; 4]) -> Option<libc::c_int> {
        // SAFETY: the child makes system calls only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let filters = kind.filters().unwrap();
            // SAFETY: these calls take numbers only, or addresses of the child alone.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            filters.iter().for_each(|filter| seccompiler::apply_filter(filter).unwrap());
            let [a, b, c, d] = arguments;
            // SAFETY: as above.
            let result = unsafe { libc::syscall(call, a, b, c, d, -1, 0) };
            // SAFETY: reads a number of this thread's.
            let error = if result < 0 { unsafe { *libc::__errno_location() } } else { 0 };
            // SAFETY: ends the process.
            unsafe { libc::_exit(error) };
        }
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        let killed = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS;
        assert!(killed || libc::WIFEXITED(status), "status {status:#x}");
        (!killed).then(|| libc::WEXITSTATUS(status))
    }

    #[test]
    fn a_call_for_which_there_is_another_is_refused_only() {
        assert_eq!(made(ThreadKind::Fs, libc::SYS_clone3, [0; 4]), Some(libc::ENOSYS));
        assert_eq!(made(ThreadKind::Block, libc::SYS_clone3, [0; 4]), None);
    }

    #[test]
    fn a_call_outside_the_list_ends_the_process() {
        let socket = [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0];
        for kind in ALL {
            assert!(allowed(*kind, libc::SYS_getpid, [0; 4]), "{kind:?}");
            for call in
                [libc::SYS_socket, libc::SYS_execve, libc::SYS_ptrace, libc::SYS_unshare, libc::SYS_mount]
            {
                assert!(!allowed(*kind, call, socket), "{kind:?}, {call}");
            }
        }
    }

    #[test]
    fn a_call_with_another_argument_ends_the_process() {
        use ThreadKind::{Block, Fs, Main, Vcpu};
        let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let (read, exec) = (libc::PROT_READ as u64, (libc::PROT_READ | libc::PROT_EXEC) as u64);
        let kvm_create_vm = 0xae01;
        let cases = [
            (Block, libc::SYS_mmap, [0, 4096, read, anonymous], true),
            (Block, libc::SYS_mmap, [0, 4096, exec, anonymous], false),
            (Vcpu, libc::SYS_mprotect, [0, 0, read, 0], true),
            (Vcpu, libc::SYS_mprotect, [0, 0, exec, 0], false),
            (Vcpu, libc::SYS_ioctl, [9999, 0xae80, 0, 0], true),
            (Vcpu, libc::SYS_ioctl, [9999, kvm_create_vm, 0, 0], false),
            (Main, libc::SYS_ioctl, [9999, 0x5421, 0, 0], true),
            (Main, libc::SYS_ioctl, [9999, libc::TIOCSTI, 0, 0], false),
            // Only half of a request counts.
            (Main, libc::SYS_ioctl, [9999, 1 << 32 | libc::TIOCSTI, 0, 0], false),
            (Fs, libc::SYS_ioctl, [9999, 0x8008_6601, 0, 0], true),
            (Fs, libc::SYS_ioctl, [9999, 0x4004_54ca, 0, 0], false),
            (Main, libc::SYS_socketpair, [libc::AF_UNIX as u64, libc::SOCK_STREAM as u64, 0, 0], true),
            (Main, libc::SYS_socketpair, [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0], false),
            (Fs, libc::SYS_fcntl, [9999, libc::F_OFD_SETLK as u64, 0, 0], true),
            (Fs, libc::SYS_fcntl, [9999, libc::F_SETOWN as u64, 1, 0], false),
        ];
        for (kind, call, arguments, expected) in cases {
            assert_eq!(allowed(kind, call, arguments), expected, "{kind:?}, {call}, {arguments:x?}");
        }
    }
}
