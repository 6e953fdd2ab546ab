//! `exec`: starts another process in a running container.
//!
//! The host proxy process relays its streams and exits with its status. It is this process. With `--detach`
//! or a console socket it is a separate process that continues to run.

use std::fs::File;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use clap::Args;
use pouch_vmm_api::inherited::Inherited;
use serde::{Deserialize, Serialize};

use super::create::refuse_descriptors;
use super::exec_process::ProcessOptions;
use super::{CliError, Global, Outcome, forward, other, write_pid_file};
use crate::container::Status;
use crate::failure::Failure;
use crate::host::child::{self as proxy, ChildStreams};
use crate::host::client::{ClientError, HostAddress};
use crate::host::protocol::{Answer, ExecRequest, Report, Request};
use crate::streams::terminal::RawTerminal;
use crate::streams::{self, NullStreams, STALL, ends, signals, start_relays};

/// The internal command of the host proxy process.
pub const HOST_COMMAND: &str = "exec-host";

#[derive(Args)]
pub struct Exec {
    /// Send the master of the process's pseudo-terminal to this UNIX socket.
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    #[command(flatten)]
    process: ProcessOptions,
    /// Return as soon as the process is running.
    #[arg(short, long)]
    detach: bool,
    /// Write the PID of the host proxy process to this file.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Start the process in this existing cgroup below the container's.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// Number of additional file descriptors to pass; only 0 is supported, because a VM cannot use them.
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Not supported: a process cannot be started in a paused container; resume it first.
    #[arg(long)]
    ignore_paused: bool,
    /// The container's ID.
    id: String,
    /// The command and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// What an exec's process on the host is started with.
#[derive(Serialize, Deserialize)]
struct ExecHost {
    address: HostAddress,
    request: ExecRequest,
    console_socket: Option<PathBuf>,
}

impl Exec {
    pub fn run(&self, global: &Global) -> Outcome {
        refuse_descriptors(self.preserve_fds)?;
        let (dir, state) = global.load(&self.id)?;
        if self.ignore_paused && state.status == Status::Paused {
            let text = "--ignore-paused: a process cannot be started in a frozen container; resume it first";
            return Err(CliError::Other(text.to_owned()));
        }
        if state.status != Status::Running {
            let text =
                format!("container {} is {}, so no process can be started in it", self.id, state.status);
            return Err(CliError::Other(text));
        }
        let (process, terminal) = self.process.build(&self.command, &state, &global.log())?;
        let request = ExecRequest { process, terminal, rows: 0, columns: 0, cgroup: self.cgroup.clone() };
        let mut address = HostAddress::of(&dir);
        address.socket = std::path::absolute(address.socket).map_err(other)?;
        let console_socket =
            self.console_socket.as_deref().map(std::path::absolute).transpose().map_err(other)?;
        let host = ExecHost { address, request, console_socket };
        if self.detach || host.console_socket.is_some() {
            if terminal && host.console_socket.is_none() {
                let text = "a detached process with a terminal needs --console-socket";
                return Err(CliError::Other(text.to_owned()));
            }
            return self.leave_behind(&host);
        }
        write_pid_file(self.pid_file.as_ref(), std::process::id())?;
        run_here(host, || Ok(()))
    }

    /// Starts the host proxy process, and returns when the process in the guest runs.
    fn leave_behind(&self, host: &ExecHost) -> Outcome {
        let (mut child, report) =
            proxy::start(HOST_COMMAND, None, host, ChildStreams::inherited()).map_err(other)?;
        match report {
            Some(Report::Created) => {
                if let Err(error) = write_pid_file(self.pid_file.as_ref(), child.id()) {
                    // The guest's process ends with its host proxy process.
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(error);
                }
                if self.detach {
                    return Ok(0);
                }
                let status = child.wait().map_err(other)?;
                Ok(status.code().unwrap_or(255) as u8)
            }
            Some(Report::Failed(failure)) => Err(failure.into()),
            None => Err(CliError::Other("the host proxy process ended early".to_owned())),
        }
    }
}

/// The main function of the host proxy process.
pub fn exec_host(inherited: &mut Inherited, host_fd: RawFd, report_fd: RawFd) -> Outcome {
    let taken = proxy::take(inherited, host_fd, report_fd);
    let (host, mut ready_pipe): (ExecHost, _) = taken.map_err(other)?;
    let log = host.address.socket.with_file_name("host.log");
    let result = run_here(host, || {
        // An engine waits until the output of the operation is closed.
        streams::let_go(&log).map_err(other)?;
        // If the parent has ended, the process would be unknown to it.
        ready_pipe.give(&Report::Created).map_err(other)
    });
    if let Err(error) = &result {
        let status = error.status();
        // As above; there is nothing left to end.
        let _ = ready_pipe.give(&Report::Failed(Failure { message: pouch_errors::chain(error), status }));
    }
    result
}

/// Starts the process, relays its streams and waits for its end in this process.
fn run_here(mut host: ExecHost, started: impl FnOnce() -> Result<(), CliError>) -> Outcome {
    signals::block();
    let ends = ends::of_command_line(host.console_socket.as_deref().filter(|_| host.request.terminal));
    let mut ends = ends.open(host.request.terminal).map_err(other)?;
    (host.request.rows, host.request.columns) = ends.size();
    let address = host.address;
    let client = address.connect()?;
    let null = ends.null();
    if null != NullStreams::default() {
        match client.ask(&Request::NullStreams(null)) {
            // A host process of an earlier build gives all streams, whatever they are for.
            Err(ClientError::Refused(_)) => ends = ends.with_null_devices().map_err(other)?,
            result => drop(result?),
        }
    }
    let (answer, fds) = client.ask(&Request::Exec(host.request))?;
    let Answer::Started { exec_id } = answer else {
        return Err(CliError::Other("unexpected response from the sandbox host process".to_owned()));
    };
    let own_terminal = host.console_socket.is_none();
    let raw = match ends.console() {
        Some(file) if own_terminal => Some(RawTerminal::enter(file.as_fd()).map_err(other)?),
        _ => None,
    };
    let console = ends.console().map(File::try_clone).transpose().map_err(other)?;
    let streams = fds.into_iter().map(UnixStream::from).collect();
    let outputs = start_relays(streams, ends).map_err(other)?;
    forward::signals(address.clone(), Some(exec_id), console).map_err(other)?;
    started()?;
    let (answer, _) = client.ask(&Request::Wait)?;
    let Answer::Exited { status, stdout_bytes, stderr_bytes } = answer else {
        return Err(CliError::Other("unexpected response from the sandbox host process".to_owned()));
    };
    for (output, bytes) in outputs.iter().zip([stdout_bytes, stderr_bytes]) {
        // 128 and more is a signal's. A container that is gone has taken the process along.
        output.finish(bytes, || {
            let killed = status > 128 || address.connect().is_err();
            killed.then_some(STALL)
        });
    }
    drop(raw);
    Ok(u8::try_from(status).unwrap_or(255))
}
