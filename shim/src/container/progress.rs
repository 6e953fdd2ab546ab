//! What changes of a container after its creation, as the sandbox host process writes it.
//!
//! That process parses what a guest says, and so it may be taken over. It can write to the directory of these files and
//! to no other of the host. The state file, with the processes, the cgroup and the hooks, is written by root alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{State, Status};
use crate::failure::printable;

/// The directory of the files, in that of a container or a pod.
pub const DIRECTORY: &str = "progress";
/// Bytes of the longest file.
const MAX: u64 = 64 * 1024;

/// What changes of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Progress {
    status: Status,
    exit_status: Option<i32>,
    vm_end: Option<String>,
}

impl Progress {
    /// That of a state.
    pub fn of(state: &State) -> Self {
        Progress { status: state.status, exit_status: state.exit_status, vm_end: state.vm_end.clone() }
    }

    /// Brings a state up to date.
    pub fn apply(self, state: &mut State) {
        (state.status, state.exit_status, state.vm_end) = (self.status, self.exit_status, self.vm_end);
    }

    /// Writes the file, so that a reader sees the old one or the new one.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(&new, file)
    }

    /// Reads the file. None if there is none, or if it is not what [`write`](Self::write) makes: it is not trusted.
    pub fn read(path: &Path) -> Option<Self> {
        // A link could lead anywhere, and a FIFO would let the reader wait.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut text = Vec::new();
        file.take(MAX).read_to_end(&mut text).ok()?;
        let progress: Progress = serde_json::from_slice(&text).ok()?;
        Some(Progress { vm_end: progress.vm_end.as_deref().map(printable), ..progress })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn progress() -> Progress {
        Progress { status: Status::Paused, exit_status: Some(3), vm_end: Some("why".to_owned()) }
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.json");
        assert_eq!(Progress::read(&file), None);
        progress().write(&file).unwrap();
        assert_eq!(Progress::read(&file), Some(progress()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_process_that_was_taken_over_leaves_there_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let (file, target) = (directory.path().join("a.json"), directory.path().join("target"));
        progress().write(&target).unwrap();
        symlink(&target, &file).unwrap();
        assert_eq!(Progress::read(&file), None, "a link");
        fs::remove_file(&file).unwrap();
        nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(Progress::read(&file), None, "a FIFO");
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert_eq!(Progress::read(&file), None, "a directory");
        fs::remove_dir(&file).unwrap();
        fs::write(&file, r#"{"status": "running", "exitStatus": null, "vmEnd": null, "hooks": {}}"#).unwrap();
        assert_eq!(Progress::read(&file), None, "more than it may say");
        let mut long = serde_json::to_vec(&progress()).unwrap();
        long.resize(MAX as usize + 1, b' ');
        fs::write(&file, long).unwrap();
        // The blanks behind the limit are not read.
        assert_eq!(Progress::read(&file), Some(progress()));
        Progress { vm_end: Some("\x1b[2Jwhy".to_owned()), ..progress() }.write(&file).unwrap();
        assert_eq!(Progress::read(&file).unwrap().vm_end.as_deref(), Some("?[2Jwhy"), "for a terminal");
        let text = "x".repeat(MAX as usize);
        Progress { vm_end: Some(text), ..progress() }.write(&file).unwrap();
        assert_eq!(Progress::read(&file), None, "too long");
    }
}
