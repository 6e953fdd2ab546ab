use super::limits::ALL;
use super::*;

#[test]
fn every_list_names_each_call_once() {
    for kind in ALL {
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
        libc::SYS_seccomp,
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
        let filter = kind.filter().unwrap();
        // SAFETY: these calls take numbers only, or addresses of the child alone.
        unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        seccompiler::apply_filter(&filter).unwrap();
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
    for kind in [ThreadKind::Fs, ThreadKind::Spawner] {
        assert_eq!(made(kind, libc::SYS_clone3, [0; 4]), Some(libc::ENOSYS));
    }
    assert_eq!(made(ThreadKind::Block, libc::SYS_clone3, [0; 4]), None);
}

#[test]
fn a_call_outside_the_list_ends_the_process() {
    let socket = [libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0, 0];
    for kind in ALL {
        assert!(allowed(*kind, libc::SYS_getpid, [0; 4]), "{kind:?}");
        for call in [libc::SYS_socket, libc::SYS_execve, libc::SYS_ptrace, libc::SYS_unshare, libc::SYS_mount]
        {
            assert!(!allowed(*kind, call, socket), "{kind:?}, {call}");
        }
    }
}

#[test]
fn a_call_with_another_argument_ends_the_process() {
    use ThreadKind::{Block, Fs, Main, Spawner, Vcpu};
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
        (Block, libc::SYS_fcntl, [9999, libc::F_GETFD as u64, 0, 0], true),
        (Block, libc::SYS_fcntl, [9999, libc::F_SETFL as u64, 0, 0], false),
        (Spawner, libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0], true),
        (Spawner, libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 1, 0, 0], false),
        (Spawner, libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0, 0], false),
        (Spawner, libc::SYS_seccomp, [libc::SECCOMP_SET_MODE_STRICT as u64, 1, 0, 0], false),
        (Block, libc::SYS_seccomp, [libc::SECCOMP_SET_MODE_FILTER as u64, 0, 0, 0], false),
    ];
    for (kind, call, arguments, expected) in cases {
        assert_eq!(allowed(kind, call, arguments), expected, "{kind:?}, {call}, {arguments:x?}");
    }
}
