//! Revalidates bind-mounted files before the program of a container runs.
//!
//! The guest caches a file of the host for a second. Engines bind files that they write only between create
//! and start (`/etc/hosts`, `/etc/resolv.conf`), and these would appear empty.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

/// The sources of the container's bind mounts.
pub fn sources(spec: &Spec) -> Vec<PathBuf> {
    let mounts = spec.mounts().iter().flatten();
    mounts.filter_map(|mount| mount.source().clone()).filter(|source| source.is_absolute()).collect()
}

/// Revalidates the attributes of these files with the host, regardless of the guest's cache.
pub fn refresh(files: &[PathBuf]) {
    for file in files {
        match ask(file) {
            Ok(()) => {}
            // The name may have been removed since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => log::warn!("cannot ask the host for {}: {error}", file.display()),
        }
    }
}

fn ask(file: &Path) -> io::Result<()> {
    let name = CString::new(file.as_os_str().as_bytes())?;
    let mut answer = MaybeUninit::<libc::statx>::uninit();
    let wanted = libc::STATX_SIZE | libc::STATX_MTIME;
    // SAFETY: the name is a C string, and the kernel writes the answer, which is not read.
    let result = unsafe {
        libc::statx(libc::AT_FDCWD, name.as_ptr(), libc::AT_STATX_FORCE_SYNC, wanted, answer.as_mut_ptr())
    };
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
        assert!(ask(Path::new("/")).is_ok());
        assert_eq!(ask(Path::new("/no/such/file")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
