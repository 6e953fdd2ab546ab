//! The system calls that each kind of thread may make. Any other ends the process.

use std::sync::OnceLock;

use seccompiler::BpfProgram;

use super::bpf;

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
    (libc::SYS_poll, "waiting for requests"),
    (libc::SYS_openat, "lookup, open, create"),
    (libc::SYS_openat2, "lookup that stays below a directory"),
    (libc::SYS_open_by_handle_at, "files by handle"),
    (libc::SYS_name_to_handle_at, "mount identifiers"),
    (libc::SYS_fstat, "attributes"),
    (libc::SYS_newfstatat, "attributes"),
    (libc::SYS_statx, "attributes"),
    (libc::SYS_fstatfs, "space"),
    (libc::SYS_getdents64, "directories"),
    (libc::SYS_lseek, "holes, directories"),
    (libc::SYS_pread64, "reads"),
    (libc::SYS_preadv, "reads"),
    (libc::SYS_preadv2, "reads"),
    (libc::SYS_readv, "reads"),
    (libc::SYS_pwrite64, "writes"),
    (libc::SYS_pwritev, "writes"),
    (libc::SYS_pwritev2, "writes"),
    (libc::SYS_writev, "writes"),
    (libc::SYS_copy_file_range, "copies"),
    (libc::SYS_mkdirat, "directories"),
    (libc::SYS_mknodat, "fifos, sockets, whiteouts"),
    (libc::SYS_symlinkat, "symbolic links"),
    (libc::SYS_readlinkat, "symbolic links"),
    (libc::SYS_linkat, "hard links"),
    (libc::SYS_unlinkat, "removal"),
    (libc::SYS_renameat, "renaming"),
    (libc::SYS_renameat2, "renaming"),
    (libc::SYS_fchmod, "modes"),
    (libc::SYS_fchmodat, "modes"),
    (libc::SYS_fchownat, "owners"),
    (libc::SYS_ftruncate, "sizes"),
    (libc::SYS_fallocate, "sizes and holes"),
    (libc::SYS_utimensat, "times"),
    (libc::SYS_fsync, "durability"),
    (libc::SYS_fdatasync, "durability"),
    (libc::SYS_setxattr, "extended attributes, through /proc/self/fd"),
    (libc::SYS_getxattr, "extended attributes"),
    (libc::SYS_listxattr, "extended attributes"),
    (libc::SYS_removexattr, "extended attributes"),
    (libc::SYS_fsetxattr, "extended attributes"),
    (libc::SYS_fgetxattr, "extended attributes"),
    (libc::SYS_flistxattr, "extended attributes"),
    (libc::SYS_fremovexattr, "extended attributes"),
    (libc::SYS_setresuid, "files are made under the identity of the guest's process"),
    (libc::SYS_setresgid, "the same for groups"),
    (libc::SYS_setgroups, "the same for groups"),
    (libc::SYS_geteuid, "the identity to go back to"),
    (libc::SYS_getegid, "the identity to go back to"),
    (libc::SYS_capget, "set-id bits are cleared as the guest's kernel asks"),
    (libc::SYS_capset, "set-id bits are cleared as the guest's kernel asks"),
    (libc::SYS_umask, "modes are the guest's own"),
    (libc::SYS_fcntl, "flags of open files, locks"),
    (libc::SYS_flock, "locks"),
    (libc::SYS_dup, "descriptors"),
    (libc::SYS_ioctl, "refused requests ask for nothing; kept for file flags"),
    (libc::SYS_getrandom, "hash tables"),
];

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

    /// The filter of this kind of thread.
    fn filter(self) -> BpfProgram {
        bpf::allow(self.calls().map(|(call, _)| *call).collect())
    }

    /// Confines the calling thread to the system calls of its kind, for good, unless the process
    /// was told not to filter ([`disable`]). A thread that cannot be confined ends the process.
    pub fn enter(self) {
        if DISABLED.get().is_some() {
            return;
        }
        if let Err(error) = seccompiler::apply_filter(&self.filter()) {
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
    fn a_call_outside_the_list_ends_the_process() {
        // SAFETY: the child makes system calls only.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: these calls take numbers only.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
            ThreadKind::Block.enter();
            // SAFETY: as above.
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) };
        }
        let mut status = 0;
        // SAFETY: the pointer is to a live integer.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS, "status {status:#x}");
    }
}
