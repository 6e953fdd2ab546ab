//! Removes the VMM's access to the host's file system, and its capabilities.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;

use caps::{CapSet, Capability, CapsHashSet};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{chdir, pivot_root, umask};

/// The capabilities for serving files of any owner. They apply only to files in the mount namespace,
/// because the process has its own user namespace.
const SHARE_CAPABILITIES: [Capability; 8] = [
    // chown(2) of the guest's files.
    Capability::CAP_CHOWN,
    // Root in the guest reads and writes everything.
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    // chmod(2) and utimensat(2) of files of other owners.
    Capability::CAP_FOWNER,
    // A set-group-id bit may be given to a file of a group that its writer is not in.
    Capability::CAP_FSETID,
    // Files are made under the identity of the guest's process.
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    // File capabilities, as package managers set them.
    Capability::CAP_SETFCAP,
];

/// The process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A system call was refused.
    #[error("the VMM could not {step}")]
    System {
        /// The step.
        step: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// Capabilities could not be dropped.
    #[error("the VMM could not drop its capabilities")]
    Capabilities(#[from] caps::errors::CapsError),
    /// A path is invalid.
    #[error("a path contains a NUL byte")]
    Path(#[from] std::ffi::NulError),
}

fn check(step: &'static str, result: libc::c_int) -> Result<(), ConfineError> {
    if result < 0 { Err(ConfineError::System { step, source: io::Error::last_os_error() }) } else { Ok(()) }
}

fn mount(
    step: &'static str,
    source: &CStr,
    target: &CStr,
    kind: Option<&CStr>,
    flags: libc::c_ulong,
    data: Option<&CStr>,
) -> Result<(), ConfineError> {
    let kind = kind.map_or(ptr::null(), CStr::as_ptr);
    let data = data.map_or(ptr::null(), |data| data.as_ptr().cast());
    // SAFETY: every pointer is null or to a NUL-terminated string that outlives the call.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind, flags, data) };
    check(step, result)
}

/// Puts a proc file system over `/proc` that shows this process and nothing else of the host.
///
/// The file server uses `/proc/self/fd`, which [`confine`] binds into the new root. From the host's own
/// proc file system that would bring along `/proc/sys`, which a process that runs as the host's root, in
/// whatever user namespace, may write.
///
/// # Errors
/// [`ConfineError::System`] if the kernel refuses.
pub fn replace_proc() -> Result<(), ConfineError> {
    let all = libc::MS_REC | libc::MS_SLAVE;
    mount("make its mounts private", c"none", c"/", None, all, None)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount("mount its /proc", c"proc", c"/proc", Some(c"proc"), flags, Some(c"subset=pid"))
}

/// Where the share is after [`confine`].
pub const SHARE: &str = pouch_vmm_api::config::SHARE_DIRECTORY;

/// Where the new root is assembled: a directory that every host has and the VMM does not need.
const SCRATCH: &CStr = c"/sys";

/// Irreversibly drops access to the host's file systems, and every capability that serving `share` does not
/// need.
///
/// What is left is a read-only root with the directory [`SHARE`], and of `/proc/self` the directory `fd`,
/// through which the file server opens files again that it holds. `..` from any of them leads to that root and no
/// further, as long as no directory that was opened before stays open. At most `descriptors` files can be open from
/// now on.
///
/// # Errors
/// [`ConfineError`] names the step that failed.
pub fn confine(share: Option<&Path>, descriptors: u64) -> Result<(), ConfineError> {
    let share = share.map(open_path).transpose()?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount("mount its root", c"none", SCRATCH, Some(c"tmpfs"), flags, Some(c"mode=755,size=64k"))?;
    if let Some(share) = &share {
        make_mount_points()?;
        let source = CString::new(format!("/proc/self/fd/{}", share.as_raw_fd()))?;
        // Includes mounts below it; later mounts of the host appear as their propagation allows.
        mount("bind the share", &source, c"/sys/share", None, libc::MS_BIND | libc::MS_REC, None)?;
        mount("bind its descriptors", c"/proc/self/fd", c"/sys/proc/self/fd", None, libc::MS_BIND, None)?;
    }
    let read_only = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | flags;
    mount("make its root read-only", c"none", SCRATCH, None, read_only, None)?;
    pivot(SCRATCH)?;
    drop_capabilities(share.is_some())?;
    // SAFETY: these calls take numbers, or a pointer to a live structure.
    unsafe {
        check("set no_new_privs", libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        // Guest memory must not reach the disk in a core file.
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        check("disable core dumps", libc::setrlimit(libc::RLIMIT_CORE, &raw const none))?;
    }
    // The guest applies the umask of its processes. That of who starts a container must not be added to it.
    umask(Mode::empty());
    set_file_limit(descriptors);
    Ok(())
}

/// A directory descriptor with `O_PATH`.
fn open_path(path: &Path) -> Result<File, ConfineError> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(path)
        .map_err(|source| ConfineError::System { step: "open the share", source })
}

/// Creates the mount points for [`confine`] in [`SCRATCH`].
fn make_mount_points() -> Result<(), ConfineError> {
    let directories = ["/sys/share", "/sys/proc", "/sys/proc/self", "/sys/proc/self/fd"];
    directories
        .iter()
        .try_for_each(fs::create_dir)
        .map_err(|source| ConfineError::System { step: "create the mount points of its root", source })
}

/// Makes `root` the root directory and unmounts the old one.
fn pivot(root: &CStr) -> Result<(), ConfineError> {
    let step = |step| move |error: Errno| ConfineError::System { step, source: error.into() };
    chdir(root).map_err(step("enter its root"))?;
    // With the same directory twice the old root ends up on top of the new one (pivot_root(2),
    // "pivot_root(\".\", \".\")"), from where it is detached.
    pivot_root(c".", c".").map_err(step("change its root"))?;
    unmount(c".", UnmountFlags::DETACH).map_err(step("unmount the host's root"))?;
    chdir(c"/").map_err(step("enter its root"))
}

fn drop_capabilities(share: bool) -> Result<(), ConfineError> {
    // A file is made under the user and the group of the guest's process, and not its other groups; that the
    // process may make it there has been checked by the guest's kernel. So the capabilities stay in effect when
    // the file server's thread takes another user's identity. (To say so takes CAP_SETPCAP.)
    // SAFETY: the call takes numbers.
    let result = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, libc::SECBIT_NO_SETUID_FIXUP, 0, 0, 0) };
    check("keep its capabilities when the user changes", result)?;
    let keep: CapsHashSet = if share { SHARE_CAPABILITIES.into_iter().collect() } else { CapsHashSet::new() };
    // The bounding set first: dropping from it takes CAP_SETPCAP, which goes with the rest.
    for capability in caps::runtime::thread_all_supported() {
        if !keep.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    Ok(())
}

/// The file server holds a descriptor for each file that the guest knows; what it inherited may be less
/// than it needs, or more than a guest should have.
fn set_file_limit(descriptors: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointers are to a live structure of the right type.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = descriptors.min(limit.rlim_max);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
