//! A container that is removed when its owner is dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use crate::bundle::unique_id;
use crate::invocation::{code, wait};
use crate::{Bundle, HANG, Invocation, Output, eventually};

/// A created container. It is deleted by force when it is dropped.
pub struct Container {
    /// Its name.
    pub id: String,
    /// Its bundle.
    pub bundle: Bundle,
    global: Vec<String>,
}

/// Makes orphans below this process its children, as the shim of an engine does, so that it can
/// wait for a container's process.
fn become_reaper() {
    // SAFETY: the call sets an attribute of this process and takes no pointers.
    let result = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    assert_eq!(result, 0, "PR_SET_CHILD_SUBREAPER");
}

impl Container {
    /// Creates a container with further options of `create`. Its output goes to files.
    #[track_caller]
    pub fn create(bundle: Bundle, options: &[&str]) -> Self {
        Self::create_with(bundle, &[], options)
    }

    /// As [`Self::create`], with options before the operation too.
    #[track_caller]
    pub fn create_with(bundle: Bundle, global: &[&str], options: &[&str]) -> Self {
        let (container, status) = Self::try_create(bundle, global, options);
        assert_eq!(code(status), 0, "create: {}", container.stderr());
        container
    }

    /// Tries to create a container; also returns how that ended.
    pub fn try_create(bundle: Bundle, global: &[&str], options: &[&str]) -> (Self, ExitStatus) {
        become_reaper();
        bundle.write();
        let id = unique_id();
        let global: Vec<String> = global.iter().map(|option| (*option).to_owned()).collect();
        let container = Container { id, bundle, global };
        let mut arguments = vec!["create", "--bundle", container.bundle.path().to_str().unwrap()];
        arguments.extend(options);
        arguments.push(&container.id);
        let mut command = container.invocation(&arguments).into_command();
        let file = |name| File::create(container.bundle.path().join(name)).unwrap();
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        let line = format!("{command:?}");
        let status = wait(&mut command.spawn().unwrap(), &line, HANG);
        (container, status)
    }

    /// The runtime with these arguments, and the options that the container was created with.
    pub fn invocation(&self, arguments: &[&str]) -> Invocation {
        Invocation::new(self.global.iter().map(String::as_str).chain(arguments.iter().copied()))
    }

    /// An operation with the container's name at the end.
    pub fn operation(&self, arguments: &[&str]) -> Output {
        let mut all = arguments.to_vec();
        all.push(&self.id);
        self.invocation(&all).run()
    }

    /// Starts its process.
    #[track_caller]
    pub fn start(&self) {
        self.operation(&["start"]).ok();
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn kill(&self, signal: &str) {
        self.invocation(&["kill", &self.id, signal]).run().ok();
    }

    /// Its state.
    #[track_caller]
    pub fn state(&self) -> Value {
        serde_json::from_str(&self.operation(&["state"]).ok()).unwrap()
    }

    /// Its status.
    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// The number of its process on the host.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        self.state()["pid"].as_i64().unwrap().try_into().unwrap()
    }

    /// Waits until it has this status.
    #[track_caller]
    pub fn await_status(&self, status: &str) {
        eventually(&format!("{} is {status}", self.id), || self.status() == status);
    }

    /// Waits for the end of its process, whose number on the host is `pid`; returns the status.
    #[track_caller]
    pub fn reap(&self, pid: i32) -> i32 {
        let mut status = 0;
        eventually(&format!("the process {pid} of {} ends", self.id), || {
            match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG)).unwrap() {
                WaitStatus::Exited(_, code) => status = code,
                WaitStatus::Signaled(_, signal, _) => status = 128 + signal as i32,
                _ => return false,
            }
            true
        });
        status
    }

    /// Executes a command in it.
    pub fn exec(&self, arguments: &[&str]) -> Output {
        self.exec_with(&[], arguments)
    }

    /// Executes a shell script in it; its output, if it succeeds.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.exec(&["/bin/sh", "-c", script]).ok()
    }

    /// Executes a command in it, with options of `exec`.
    pub fn exec_with(&self, options: &[&str], arguments: &[&str]) -> Output {
        self.exec_invocation(options, arguments).run()
    }

    /// An invocation of `exec`.
    pub fn exec_invocation(&self, options: &[&str], arguments: &[&str]) -> Invocation {
        let mut all = vec!["exec"];
        all.extend(options);
        all.push(&self.id);
        all.extend(arguments);
        self.invocation(&all)
    }

    /// Deletes it, which must succeed.
    #[track_caller]
    pub fn delete(&self) {
        self.operation(&["delete"]).ok();
    }

    /// Deletes it by force, which must succeed.
    #[track_caller]
    pub fn delete_by_force(&self) {
        self.operation(&["delete", "--force"]).ok();
    }

    /// What it wrote to its standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.bundle.path().join("stdout"))
    }

    /// What it, or `create`, wrote to standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.bundle.path().join("stderr"))
    }

    /// Waits until its standard output has `text`.
    #[track_caller]
    pub fn await_output(&self, text: &str) {
        eventually(&format!("{} prints {text:?}", self.id), || self.stdout().contains(text));
    }

    /// A path in its bundle's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.bundle.path().join(name)
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

impl Drop for Container {
    fn drop(&mut self) {
        let mut command = self.invocation(&["delete", "--force", &self.id]).into_command();
        let result = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        if let Ok(mut child) = result {
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- stdout of {}:\n{}", self.id, self.stdout());
            eprintln!("--- stderr of {}:\n{}", self.id, self.stderr());
        }
    }
}
