//! The requests of the command line to a sandbox host process.
//!
//! The socket is `host.sock` in the container's state directory, of type `SOCK_SEQPACKET`. Each packet is a
//! JSON message, which may carry descriptors. Only root can access the directory.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::container::{State, Status};
use crate::failure::Failure;
use crate::logging::LogFormat;
use crate::sandbox::PidNamespace;
use crate::sandbox::disks::HostDisk;
use crate::streams::NullStreams;

/// What a sandbox host process is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// The container's name.
    pub id: String,
    /// The root of all states.
    pub root: PathBuf,
    /// The bundle.
    pub bundle: PathBuf,
    /// Where to send the master of the container's terminal.
    pub console_socket: Option<PathBuf>,
    /// The standard streams of the host process are pipes, also for a terminal in the guest.
    #[serde(default)]
    pub piped: bool,
    /// The bundle is of a pod's sandbox: its process is not run, and containers join later.
    #[serde(default)]
    pub pod: bool,
    /// systemd makes the cgroup.
    pub systemd_cgroup: bool,
    /// Where errors after the start go.
    pub log: Option<PathBuf>,
    /// How they look there.
    pub log_json: bool,
    /// The configuration.
    pub config: Config,
}

impl Launch {
    /// The format of the log.
    pub fn log_format(&self) -> LogFormat {
        if self.log_json { LogFormat::Json } else { LogFormat::Text }
    }
}

/// The report of a new sandbox host process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The container is created.
    Created,
    /// It could not be created, and nothing is left behind.
    Failed(Failure),
}

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The hooks of `create` have done their work: the container is created.
    HooksDone,
    /// Starts the container's process. Descriptors of `/dev/vhost-net` for its network interfaces can come with it; an
    /// earlier build opens its own.
    Start,
    /// The container's status.
    Status,
    /// Sends a signal.
    Signal {
        /// The process that [`Request::Exec`] started; the container's own without.
        exec_id: Option<String>,
        /// The signal's number.
        signal: u32,
        /// All processes of the container.
        all: bool,
    },
    /// Freezes all processes.
    Pause,
    /// Resumes them.
    Resume,
    /// The container's processes, in the guest.
    Processes,
    /// The container's processes on the host.
    HostProcesses,
    /// Its counters.
    Stats,
    /// Waits for the container's process to end.
    AwaitEnd,
    /// New limits: an OCI `linux.resources` object.
    Update {
        /// The object.
        resources: serde_json::Value,
    },
    /// Which streams of the process that this connection will start are /dev/null. An earlier build refuses this
    /// request and gives all streams.
    NullStreams(NullStreams),
    /// Starts a process; the answer comes with the descriptors of its streams. The process is
    /// killed if the connection closes before its end.
    Exec(ExecRequest),
    /// Waits for the process that this connection started.
    Wait,
    /// The size of a terminal changed.
    Resize {
        /// The process; the container's own without.
        exec_id: Option<String>,
        /// Rows.
        rows: u32,
        /// Columns.
        columns: u32,
    },
    /// The following requests of this connection concern this container of a pod.
    Container(String),
    /// Creates a container in a pod. Its specification in the guest's terms comes with it, as a file in memory, and
    /// then the host's ends of its streams, without those that are /dev/null: of stdin, stdout and stderr, or of the
    /// input and the output of a terminal; after them its block devices.
    Create(Box<CreateRequest>),
    /// The client is the host proxy process of a pod's container, which is killed if the connection closes before its
    /// end.
    Attend,
    /// Removes the container of a pod, which must have ended or not have been started.
    Remove,
    /// Waits until the process of a pod's container has ended and its output was passed on.
    AwaitExit,
    /// Ends the VM and this process, whatever the container does.
    Destroy,
}

/// A container to create in a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// Its state, which is kept in the pod's directory.
    pub state: State,
    /// The directory of its files in the share tree.
    pub directory: PathBuf,
    /// Its directories in those of file systems, which the pod's containers share. An earlier build refuses a request
    /// with any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joint_directories: Vec<PathBuf>,
    /// Its PID namespace.
    #[serde(default)]
    pub pids: PidNamespace,
    /// A terminal instead of three streams.
    pub terminal: bool,
    /// Which of the streams are `/dev/null`.
    pub null: NullStreams,
    /// The block devices of the host that it uses. An earlier build refuses a request with any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<HostDisk>,
}

/// A process to start in a running container.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// An OCI `process` object.
    pub process: serde_json::Value,
    /// A terminal instead of three streams.
    pub terminal: bool,
    /// The terminal's size.
    pub rows: u32,
    /// The terminal's size.
    pub columns: u32,
    /// The cgroup below the container's in which it shall be.
    pub cgroup: Option<String>,
}

/// A container's counters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Counters {
    /// What `events --stats` prints.
    pub stats: serde_json::Value,
    /// How often the guest's out-of-memory killer killed a process of the container.
    pub oom_kills: u64,
}

/// An answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Processes`].
    Processes(Vec<Process>),
    /// To [`Request::HostProcesses`]: their numbers, the container's first.
    HostProcesses(Vec<i32>),
    /// To [`Request::Stats`].
    Stats(Counters),
    /// To [`Request::AwaitEnd`].
    Ended {
        /// Whether the guest's out-of-memory killer ever killed a process of the container.
        out_of_memory: bool,
    },
    /// To [`Request::Exec`]. stdin, stdout and stderr, except those that are /dev/null, or the terminal, are sent
    /// with it.
    Started {
        /// The process's name for further requests.
        exec_id: String,
    },
    /// To [`Request::Wait`].
    Exited {
        /// The exit status as in a shell.
        status: u32,
        /// Bytes that it wrote to stdout, or the terminal, in all.
        stdout_bytes: u64,
        /// Bytes that it wrote to stderr in all.
        stderr_bytes: u64,
    },
    /// To [`Request::AwaitExit`].
    Exit {
        /// The exit status as in a shell.
        status: u32,
        /// Whether the guest's out-of-memory killer ever killed a process of the container.
        out_of_memory: bool,
    },
    /// It failed.
    Failed(Failure),
}

/// A process of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number in the guest.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its user.
    pub uid: u32,
    /// Its terminal, or "?".
    pub terminal: String,
    /// CPU time that it used, in milliseconds.
    pub cpu_milliseconds: u64,
    /// Its command line.
    pub command: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The messages of earlier builds, which a newer command line must support. A changed message breaks every
    /// container that runs during an upgrade; an added message does not.
    #[test]
    fn messages_are_those_of_earlier_builds() {
        let exec = json!({"exec": {
            "process": {"args": ["true"]}, "terminal": true, "rows": 24, "columns": 80, "cgroup": null
        }});
        let requests = [
            json!("hooks_done"),
            json!("start"),
            json!("status"),
            json!({"signal": {"exec_id": null, "signal": 15, "all": true}}),
            json!("pause"),
            json!("resume"),
            json!("processes"),
            json!("host_processes"),
            json!("stats"),
            json!("await_end"),
            json!({"update": {"resources": {"pids": {"limit": 1}}}}),
            json!({"null_streams": {"stdin": true, "stdout": false, "stderr": false}}),
            exec,
            json!("wait"),
            json!({"resize": {"exec_id": "1", "rows": 24, "columns": 80}}),
            json!({"container": "a"}),
            json!("attend"),
            json!("remove"),
            json!("await_exit"),
            json!("destroy"),
        ];
        check::<Request>(&requests);
        check::<Answer>(&[
            json!("done"),
            json!({"status": "paused"}),
            json!({"processes": [{
                "pid": 1, "parent": 0, "uid": 7, "terminal": "?", "cpu_milliseconds": 5, "command": "sh"
            }]}),
            json!({"host_processes": [1, 2]}),
            json!({"stats": {"stats": {"type": "stats"}, "oom_kills": 1}}),
            json!({"ended": {"out_of_memory": true}}),
            json!({"started": {"exec_id": "1"}}),
            json!({"exited": {"status": 3, "stdout_bytes": 4, "stderr_bytes": 5}}),
            json!({"exit": {"status": 137, "out_of_memory": true}}),
            json!({"failed": {"message": "why", "status": 127}}),
        ]);
    }

    /// An earlier build has no block devices in pods, and refuses fields that it does not know.
    #[test]
    fn a_container_of_a_pod_without_block_devices_is_as_in_earlier_builds() {
        let streams = json!({"stdin": false, "stdout": false, "stderr": true});
        let state = json!({
            "id": "a", "status": "creating", "host": null, "proxy": null, "vmm": null, "bundle": "/b",
            "rootfs": "/b/rootfs", "created": "", "owner": "root", "annotations": {}, "cgroup": null,
            "exitStatus": null, "vmEnd": null, "hooks": null,
        });
        let text = json!({
            "state": state, "directory": "containers/1", "pids": "own", "terminal": false, "null": streams,
        });
        let mut request: CreateRequest = serde_json::from_value(text.clone()).unwrap();
        let fields = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(fields(&serde_json::to_value(&request).unwrap()), fields(&text));
        request.disks.push(HostDisk { path: "/dev/xvda".into(), major: 7, minor: 3, read_only: true });
        let disk = json!([{"path": "/dev/xvda", "major": 7, "minor": 3, "read_only": true}]);
        assert_eq!(serde_json::to_value(&request).unwrap()["disks"], disk);
    }

    fn check<T: Serialize + serde::de::DeserializeOwned>(messages: &[Value]) {
        for message in messages {
            let read: T = serde_json::from_value(message.clone()).unwrap();
            assert_eq!(&serde_json::to_value(&read).unwrap(), message);
        }
    }
}
