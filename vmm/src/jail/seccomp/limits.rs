//! What arguments a call may have, with the reason.

use pouch_seccomp::{NAMESPACES, Only};

use super::ThreadKind;
use crate::jail::requests;

/// For threads of every kind.
pub(super) const ALL: &[ThreadKind] =
    &[ThreadKind::Main, ThreadKind::Vcpu, ThreadKind::Block, ThreadKind::Fs, ThreadKind::Spawner];

/// Those that start threads.
const STARTS: &[ThreadKind] = &[ThreadKind::Fs, ThreadKind::Spawner];

const EXEC: u64 = libc::PROT_EXEC as u64;

/// Limits of the arguments of allowed calls, with the reasons. A call that is not listed here is allowed with all
/// arguments.
pub(super) const LIMITS: &[(&[ThreadKind], libc::c_long, Only, &str)] = &[
    (ALL, libc::SYS_mmap, Only::Without(2, EXEC), "no code that was not there at the start"),
    (ALL, libc::SYS_mprotect, Only::Without(2, EXEC), "the same"),
    (&[ThreadKind::Main], libc::SYS_ioctl, Only::OneOf(1, requests::MAIN), "those that the event loop makes"),
    (&[ThreadKind::Vcpu], libc::SYS_ioctl, Only::OneOf(1, requests::VCPU), "those that a vCPU makes"),
    (&[ThreadKind::Fs], libc::SYS_ioctl, Only::OneOf(1, requests::FS), "file flags, and nothing of a device"),
    (&[ThreadKind::Main], libc::SYS_socketpair, Only::OneOf(0, &[libc::AF_UNIX as u64]), "a connection"),
    (STARTS, libc::SYS_clone, Only::Without(0, NAMESPACES), "another thread, and no namespace"),
    (&[ThreadKind::Fs], libc::SYS_prctl, Only::OneOf(0, &[libc::PR_SET_NAME as u64]), "the name of a thread"),
    (
        &[ThreadKind::Spawner],
        libc::SYS_prctl,
        Only::OneOf(0, &[libc::PR_SET_NAME as u64, libc::PR_SET_NO_NEW_PRIVS as u64]),
        "the name of a thread, and what must precede its filter",
    ),
    (
        &[ThreadKind::Spawner],
        libc::SYS_seccomp,
        Only::OneOf(0, &[libc::SECCOMP_SET_MODE_FILTER as u64]),
        "another filter over the one that there is",
    ),
    (
        &[ThreadKind::Block, ThreadKind::Spawner],
        libc::SYS_fcntl,
        Only::OneOf(1, &[libc::F_GETFD as u64]),
        "nothing that changes a descriptor",
    ),
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

/// Calls that fail with an error number, after which libraries use an alternative.
pub(super) const REFUSED: &[(&[ThreadKind], libc::c_long, u16, &str)] = &[(
    STARTS,
    libc::SYS_clone3,
    libc::ENOSYS as u16,
    "its arguments are in memory, where no filter sees them; the C library then takes clone",
)];

const DUPFD: u64 = libc::F_DUPFD_CLOEXEC as u64;
