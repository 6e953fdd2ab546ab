//! Finds a command as Go's `exec.LookPath` does, because engines parse the messages that runc gets from it.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::report::Message;

/// Where to look when the environment has no PATH: what the kernel's init gets.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file to execute for `command`, or the message that says why there is none.
pub fn find(command: &str, env: &[String]) -> Result<PathBuf, Message> {
    if command.contains('/') {
        return match check(Path::new(command)) {
            Ok(()) => Ok(PathBuf::from(command)),
            Err(error) => Err(explain(command, &error)),
        };
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = Path::new(directory).join(command);
        if check(&candidate).is_ok() {
            return Ok(candidate);
        }
    }
    Err(Message::NotFound(format!("exec: {command:?}: executable file not found in $PATH")))
}

fn explain(command: &str, error: &io::Error) -> Message {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => {
            Message::NotFound(format!("exec: {command:?}: stat {command}: no such file or directory"))
        }
        Some(libc::EISDIR) => Message::NotExecutable(format!("exec: {command:?}: is a directory")),
        Some(libc::EACCES) => Message::NotExecutable(format!("exec: {command:?}: permission denied")),
        _ => Message::NotExecutable(format!("exec: {command:?}: {error}")),
    }
}

/// Whether the calling user may execute the file.
fn check(path: &Path) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    let name = CString::new(path.as_os_str().as_encoded_bytes())?;
    may_execute(&name)
}

fn may_execute(name: &CStr) -> io::Result<()> {
    // SAFETY: the string ends with NUL and outlives the call. access(2) asks for the real
    // user, without the capabilities that this process still has.
    match unsafe { libc::access(name.as_ptr(), libc::X_OK) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The message for an `execve` that failed.
pub fn explain_exec(command: &Path, error: &io::Error) -> Message {
    let text = match error.raw_os_error() {
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        Some(libc::ENOENT) => "no such file or directory".to_owned(),
        Some(libc::EACCES | libc::EPERM) => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    let text = format!("exec {}: {text}", command.display());
    if error.raw_os_error() == Some(libc::ENOENT) {
        Message::NotFound(text)
    } else {
        Message::NotExecutable(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn text(message: Message) -> (bool, String) {
        match message {
            Message::NotFound(text) => (true, text),
            Message::NotExecutable(text) => (false, text),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn texts_are_those_of_runc() {
        let directory = tempfile::tempdir().unwrap();
        let path = vec![format!("PATH=/nonexistent:{}", directory.path().display())];
        let file = directory.path().join("tool");
        fs::write(&file, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let name = file.to_str().unwrap();

        let (found, message) = text(find("tool", &path).unwrap_err());
        assert_eq!((found, message.as_str()), (true, "exec: \"tool\": executable file not found in $PATH"));
        let (found, message) = text(find(name, &path).unwrap_err());
        assert_eq!((found, message), (false, format!("exec: {name:?}: permission denied")));
        let (found, message) = text(find("/no/such", &path).unwrap_err());
        assert_eq!(
            (found, message.as_str()),
            (true, "exec: \"/no/such\": stat /no/such: no such file or directory")
        );
        assert!(text(find("/", &path).unwrap_err()).1.ends_with("is a directory"));

        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find("tool", &path).unwrap(), file);
        assert_eq!(find(name, &[]).unwrap(), file);
    }
}
