//! Mounts for which libcontainer differs from runc.

use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::report::{Message, reason};

/// Makes these paths read-only, without other changes: executables stay executable.
pub fn protect(paths: &[String]) -> Result<(), Message> {
    for path in paths {
        protect_one(Path::new(path)).map_err(|error| {
            Message::Failed(format!(
                "linux.readonlyPaths {path} cannot be made read-only: {}",
                reason(&error.into())
            ))
        })?;
    }
    Ok(())
}

fn protect_one(path: &Path) -> nix::Result<()> {
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    match mount(Some(path), path, None::<&str>, bind, None::<&str>) {
        Err(Errno::ENOENT) => return Ok(()),
        result => result?,
    }
    // A remount sets all flags; those of a mount that a user namespace inherited must stay.
    let present = statvfs(path)?.flags();
    let kept = [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
    ];
    let kept = kept.into_iter().filter(|(flag, _)| present.contains(*flag)).map(|(_, flag)| flag);
    let flags =
        kept.fold(MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, |all, flag| all | flag);
    mount(Some(path), path, None::<&str>, flags, None::<&str>)
}
