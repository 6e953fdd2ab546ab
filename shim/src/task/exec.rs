//! A further process in a container, of the Task service.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use containerd_shim::api::ExecProcessRequest;
use serde_json::Value;

use super::container::TaskContainer;
use super::events::{Events, exit_event};
use crate::container::{bundle, limits};
use crate::failure::Failure;
use crate::host::client::HostClient;
use crate::host::ending::{Ending, Exit};
use crate::host::protocol::{Answer, ExecRequest, Request};
use crate::streams::uri::{Kept, Named};
use crate::streams::{OutputRelay, STALL, start_relays};

/// Where a process is in its life.
enum Stage {
    /// It is not started.
    Added,
    /// It was started under this name of the host process's; what its streams need stays open.
    Started { exec_id: String, kept: Kept },
}

/// A further process.
pub struct Exec {
    /// Its ID.
    pub id: String,
    /// Its streams, as containerd named them.
    pub named: Named,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Its end.
    pub ending: Arc<Ending>,
    process: Value,
    stage: Mutex<Stage>,
    /// The size of its terminal before it is started.
    size: Mutex<(u32, u32)>,
}

impl Exec {
    /// The process that containerd describes, not started.
    ///
    /// # Errors
    /// [`Failure`] if the description is malformed.
    pub fn new(request: &ExecProcessRequest, namespace: &str) -> Result<Self, Failure> {
        let malformed =
            |error| Failure::new(format!("the process of exec {} is malformed: {error}", request.exec_id));
        let mut process: Value = serde_json::from_slice(&request.spec.value).map_err(malformed)?;
        for warning in bundle::drop_unknown_capabilities(&mut process) {
            log::warn!("exec {}: {warning}", request.exec_id);
        }
        process["terminal"] = Value::Bool(request.terminal);
        limits::inherit_in(&mut process);
        let named = Named {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            container: request.id.clone(),
            namespace: namespace.to_owned(),
        };
        Ok(Exec {
            id: request.exec_id.clone(),
            named,
            terminal: request.terminal,
            ending: Arc::default(),
            process,
            stage: Mutex::new(Stage::Added),
            size: Mutex::default(),
        })
    }

    /// Starts the process in its container. When it ends, an event tells so.
    ///
    /// # Errors
    /// [`Failure`] for the user. It can be started again then.
    pub fn start(
        self: &Arc<Self>,
        container: &TaskContainer,
        pid: u32,
        events: &Events,
    ) -> Result<(), Failure> {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(*stage, Stage::Added) {
            return Err(Failure::new(format!("exec {} was started already", self.id)));
        }
        let opened = self.named.open(self.terminal).map_err(Failure::of)?;
        let host = container.connect().map_err(Failure::of)?;
        let (rows, columns) = *self.size.lock().unwrap_or_else(PoisonError::into_inner);
        host.ask(&Request::NullStreams(opened.ends.null())).map_err(Failure::of)?;
        let request = ExecRequest {
            process: self.process.clone(),
            terminal: self.terminal,
            rows,
            columns,
            cgroup: None,
        };
        let (answer, fds) = host.ask(&Request::Exec(request)).map_err(Failure::of)?;
        let Answer::Started { exec_id } = answer else {
            return Err(Failure::new("unexpected response from the sandbox host process"));
        };
        let guest: Vec<UnixStream> = fds.into_iter().map(UnixStream::from).collect();
        // The process ends with the connection if this fails.
        let outputs = start_relays(guest, opened.ends).map_err(Failure::of)?;
        let (exec, container, events) = (self.clone(), container.dir.id().to_string(), events.clone());
        let watch = move || {
            let status = wait(&host, &outputs);
            // Readers learn that no more comes, before the end is told.
            drop(outputs);
            let exit = Exit::now(status);
            exec.ending.set(exit);
            events.publish(exit_event(&container, &exec.id, pid, exit));
        };
        thread::Builder::new().name("exec".to_owned()).spawn(watch).map_err(Failure::of)?;
        *stage = Stage::Started { exec_id, kept: opened.kept };
        Ok(())
    }

    /// Whether it was started.
    pub fn is_started(&self) -> bool {
        matches!(*self.stage.lock().unwrap_or_else(PoisonError::into_inner), Stage::Started { .. })
    }

    /// The host process's name for it, if it was started.
    pub fn exec_id(&self) -> Option<String> {
        match &*self.stage.lock().unwrap_or_else(PoisonError::into_inner) {
            Stage::Added => None,
            Stage::Started { exec_id, .. } => Some(exec_id.clone()),
        }
    }

    /// Notes the size of its terminal, for its start.
    pub fn set_size(&self, rows: u32, columns: u32) {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner) = (rows, columns);
    }

    /// Lets the process have an end of input once containerd's client has closed the FIFO.
    pub fn close_stdin(&self) {
        if let Stage::Started { kept, .. } = &mut *self.stage.lock().unwrap_or_else(PoisonError::into_inner) {
            kept.close_stdin();
        }
    }
}

/// Waits for the end of the process and of its output; returns its status.
fn wait(host: &HostClient, outputs: &[OutputRelay]) -> u32 {
    let Ok((Answer::Exited { status, stdout_bytes, stderr_bytes }, _)) = host.ask(&Request::Wait) else {
        // The container has ended, and the process with it.
        return 128 + libc::SIGKILL as u32;
    };
    for (output, bytes) in outputs.iter().zip([stdout_bytes, stderr_bytes]) {
        // 128 and more is a signal's.
        output.finish(bytes, || (status > 128).then_some(STALL));
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim::protos::protobuf::well_known_types::any::Any;

    fn exec(spec: &str) -> Result<Exec, Failure> {
        let mut request = ExecProcessRequest::new();
        request.exec_id = "e".to_owned();
        request.terminal = true;
        request.spec = Some(Any { value: spec.as_bytes().to_vec(), ..Any::default() }).into();
        Exec::new(&request, "n")
    }

    #[test]
    fn a_process_has_the_terminal_that_the_request_says() {
        let exec = exec(r#"{"args": ["true"], "terminal": false}"#).unwrap();
        assert_eq!(exec.process["terminal"], true);
        assert!(exec.process["rlimits"].as_array().is_some_and(|limits| !limits.is_empty()));
        assert!(!exec.is_started() && exec.exec_id().is_none());
    }

    #[test]
    fn a_malformed_process_is_named() {
        let error = exec("{").err().unwrap();
        assert!(error.message.contains("exec e is malformed"), "{}", error.message);
    }
}
