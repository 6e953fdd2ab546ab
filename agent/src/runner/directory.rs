//! The working directory of a process.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use super::report::{Message, reason};

/// Creates the first process's working directory if it is missing, and enters it. It is owned by root, regardless of the
/// process's user.
pub fn make_and_enter(path: &Path) -> Result<(), Message> {
    make(path).map_err(|error| failed(path, "created", &error))?;
    enter(path)
}

/// Enters the working directory. The process still has all capabilities, but a network file system may refuse root what
/// it allows the user, so this is called as the user.
pub fn enter(path: &Path) -> Result<(), Message> {
    std::env::set_current_dir(path).map_err(|error| failed(path, "entered", &error))?;
    // A descriptor of the guest's own, or a mount point that the container moved, could lead out of its root.
    std::env::current_dir().map_err(|error| failed(path, "found in the container", &error))?;
    Ok(())
}

fn failed(path: &Path, what: &str, error: &io::Error) -> Message {
    Message::Failed(format!("process.cwd {} cannot be {what}: {}", path.display(), reason(error)))
}

fn make(path: &Path) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(());
    }
    let mask = umask(Mode::from_bits_truncate(0o022));
    let (uid, gid) = (setfsuid(Uid::from_raw(0)), setfsgid(Gid::from_raw(0)));
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    setfsgid(gid);
    setfsuid(uid);
    umask(mask);
    super::capabilities::raise()?;
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_cannot_be_entered_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing");
        let Err(Message::Failed(text)) = enter(&missing) else { panic!("it was entered") };
        assert!(text.contains("missing") && text.ends_with("no such file or directory"), "{text}");
    }
}
