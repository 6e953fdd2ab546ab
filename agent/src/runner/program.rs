//! The last steps of a container's process, inside the container.
//!
//! At this point the process has its namespaces, root, user and limits, but still all capabilities. The rest
//! must be done in this order: the seccomp filter before the capabilities if loading it needs CAP_SYS_ADMIN,
//! otherwise after them, so that as little code as possible runs under the filter; then the program.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use oci_spec::runtime::{LinuxSeccomp, Process};

use super::capabilities::{self, Masks};
use super::lookup;
use super::report::Message;
use super::seccomp;

/// A program and how it is to run.
#[derive(Clone)]
pub struct Program {
    /// The process, complete.
    pub process: Process,
    /// Its filter.
    pub seccomp: Option<LinuxSeccomp>,
}

/// /etc/passwd beyond this is not looked at.
const PASSWD_MAX: u64 = 1 << 20;

impl Program {
    fn env(&self) -> &[String] {
        self.process.env().as_deref().unwrap_or(&[])
    }

    fn command(&self) -> &str {
        self.process.args().as_ref().and_then(|args| args.first()).map_or("", String::as_str)
    }

    /// Whether there is such a program, from the working directory.
    pub fn check(&self) -> Result<(), Message> {
        lookup::find(self.command(), self.env()).map(drop)
    }

    fn confine(&self) -> Result<(), String> {
        let privileged = self.process.no_new_privileges() != Some(true);
        let filter = || match &self.seccomp {
            Some(seccomp) => seccomp::load(seccomp)
                .map_err(|error| format!("linux.seccomp: {}", pouch_errors::chain(&error))),
            None => Ok(()),
        };
        if privileged {
            filter()?;
        }
        capabilities::apply(Masks::of(self.process.capabilities().as_ref()))
            .map_err(|error| format!("process.capabilities: {error}"))?;
        if privileged { Ok(()) } else { filter() }
    }

    /// Replaces the process by the program; returns only if that fails.
    pub fn execute(&self) -> Message {
        match self.try_execute() {
            Err(message) => message,
            Ok(never) => match never {},
        }
    }

    fn try_execute(&self) -> Result<std::convert::Infallible, Message> {
        let env = environment(self.env(), self.process.user().uid());
        let program = lookup::find(self.command(), &env)?;
        let args = strings("process.args", self.process.args().as_deref().unwrap_or(&[]))?;
        let env = strings("process.env", &env)?;
        let path =
            CString::new(program.as_os_str().as_encoded_bytes()).map_err(|_| contains_nul("process.args"))?;
        reset_signals();
        self.confine().map_err(Message::Failed)?;
        match nix::unistd::execve(&path, &args, &env) {
            Err(error) => Err(lookup::explain_exec(&program, &io::Error::from(error))),
            Ok(never) => Ok(never),
        }
    }
}

/// The environment of the program: of several values of a variable the last one, in its place, and
/// a HOME in any case.
fn environment(given: &[String], uid: u32) -> Vec<String> {
    let mut seen = HashSet::new();
    let name = |entry: &String| entry.split('=').next().unwrap_or_default().to_owned();
    let mut env: Vec<String> = given.iter().rev().filter(|entry| seen.insert(name(entry))).cloned().collect();
    env.reverse();
    if !env.iter().any(|entry| entry.strip_prefix("HOME=").is_some_and(|home| !home.is_empty())) {
        env.retain(|entry| !entry.starts_with("HOME="));
        env.push(format!("HOME={}", home(uid)));
    }
    env
}

/// The program gets every signal as a fresh one does; the Rust runtime ignores SIGPIPE.
fn reset_signals() {
    for number in 1..=64 {
        // SAFETY: SIG_DFL installs no handler. SIGKILL, SIGSTOP and the C library's own two
        // are refused, and are as they should be.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    // It fails for invalid arguments only.
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

fn contains_nul(field: &str) -> Message {
    Message::Failed(format!("{field}: contains NUL"))
}

fn strings(field: &str, list: &[String]) -> Result<Vec<CString>, Message> {
    let strings: Result<_, _> = list.iter().map(|text| CString::new(text.as_str())).collect();
    strings.map_err(|_| contains_nul(field))
}

/// The home directory that the container's own /etc/passwd gives a user.
fn home(uid: u32) -> String {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(Path::new("/etc/passwd"));
    let mut text = Vec::new();
    if let Ok(file) = file
        && file.metadata().is_ok_and(|metadata| metadata.is_file())
    {
        // If the file cannot be read, there is no entry.
        let _ = file.take(PASSWD_MAX).read_to_end(&mut text);
    }
    home_in(&String::from_utf8_lossy(&text), uid).unwrap_or("/").to_owned()
}

fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    let uid = uid.to_string();
    passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 6 && fields[2] == uid)
        .map(|fields| fields[5])
        .filter(|home| !home.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_come_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nodd\nu:x:1000:1000::/home/u:/bin/sh\nn:x:5:5:::\n";
        assert_eq!(home_in(passwd, 0), Some("/root"));
        assert_eq!(home_in(passwd, 1000), Some("/home/u"));
        assert_eq!(home_in(passwd, 5), None);
        assert_eq!(home_in(passwd, 7), None);
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let given = ["A=1", "HOME=/h", "B=2", "A=3=x", "C="].map(str::to_owned);
        assert_eq!(environment(&given, 0), ["HOME=/h", "B=2", "A=3=x", "C="]);
        let without = ["HOME=/h", "HOME="].map(str::to_owned);
        assert_eq!(environment(&without, u32::MAX - 2), ["HOME=/"]);
    }
}
