//! Revalidates bind-mounted files before the program of a container runs.
//!
//! The guest caches a file of the host for a second. Engines bind files that they write only between create
//! and start (`/etc/hosts`, `/etc/resolv.conf`), and these would appear empty.
//!
//! The share has a submount for each file system of the host. The kernel mounts it when a process first enters it, and
//! only in the mount namespace of this process. Each time it is mounted, it has a cache of its own. So the agent enters
//! all of them before the container gets its mount namespace, which is a copy of the agent's. Otherwise the agent
//! would revalidate another cache than the one that the container reads.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

/// Has the kernel mount the submounts of the share that these files are in.
pub fn enter(files: &[PathBuf]) {
    ask_for_each(files, libc::AT_STATX_SYNC_AS_STAT);
}

/// The sources of the container's bind mounts.
pub fn sources(spec: &Spec) -> Vec<PathBuf> {
    let mounts = spec.mounts().iter().flatten();
    mounts.filter_map(|mount| mount.source().clone()).filter(|source| source.is_absolute()).collect()
}

/// Revalidates the attributes of these files with the host, regardless of the guest's cache.
pub fn refresh(files: &[PathBuf]) {
    ask_for_each(files, libc::AT_STATX_FORCE_SYNC);
}

fn ask_for_each(files: &[PathBuf], sync: i32) {
    for file in files {
        match ask(file, sync) {
            Ok(()) => {}
            // The name may have been removed since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::warn!("cannot ask the host for {}: {error}", file.display()),
        }
    }
}

/// `sync` is one of the flags `AT_STATX_*` of statx(2).
fn ask(file: &Path, sync: i32) -> io::Result<()> {
    let name = CString::new(file.as_os_str().as_bytes())?;
    let mut answer = MaybeUninit::<libc::statx>::uninit();
    let wanted = libc::STATX_SIZE | libc::STATX_MTIME;
    // SAFETY: the name is a C string, and the kernel writes the answer, which is not read.
    let result = unsafe { libc::statx(libc::AT_FDCWD, name.as_ptr(), sync, wanted, answer.as_mut_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_a_source_in_the_guest_is_asked_for() {
        let mounts = r#"{"ociVersion": "1.2.0", "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/etc/hosts", "type": "bind", "source": "/run/pouch/share/hosts"}
        ]}"#;
        let spec: Spec = serde_json::from_str(mounts).unwrap();
        assert_eq!(sources(&spec), [Path::new("/run/pouch/share/hosts")]);
        let ask = |file| ask(Path::new(file), libc::AT_STATX_FORCE_SYNC);
        assert!(ask("/").is_ok());
        assert_eq!(ask("/no/such/file").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
