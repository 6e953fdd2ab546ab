//! Requests for a single process, and the stream of events.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use pouch_protocol::agent::*;
use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;
use ttrpc::r#async::ServerStreamSender;
use ttrpc::proto::Code;

use super::Agent;
use crate::container::exec::{self, ExecError};
use crate::container::{LookupError, list};
use crate::error::{Coded, RequestError};
use crate::process::{Process, SignalError};
use crate::streams::stdio;

/// How many clients may watch events at once.
const WATCHERS_MAX: usize = 16;

/// Why a request about a process failed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// There is no such process.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The signal cannot be sent.
    #[error(transparent)]
    Signal(#[from] SignalError),
    /// There is no terminal, or it cannot be resized.
    #[error("the terminal cannot be resized")]
    Resize(#[source] std::io::Error),
}

impl Coded for ProcessError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Lookup(error) => error.code(),
            Self::Signal(error) => error.code(),
            Self::Resize(_) => Code::FAILED_PRECONDITION,
        }
    }
}

fn find(agent: &Agent, container_id: &str, exec_id: &str) -> Result<Arc<Process>, LookupError> {
    agent.runtime.containers.get(container_id)?.process(exec_id)
}

pub async fn list(
    agent: Arc<Agent>,
    request: ContainerRequest,
) -> Result<ListProcessesResponse, ProcessError> {
    let container = agent.runtime.containers.get(&request.container_id)?;
    Ok(ListProcessesResponse { processes: list::processes(&container), ..Default::default() })
}

pub async fn exec(agent: Arc<Agent>, request: ExecProcessRequest) -> Result<ExecProcessResponse, ExecError> {
    let container = agent.runtime.containers.get(&request.container_id)?;
    let pid = exec::exec(&agent.runtime, container, request).await?;
    Ok(ExecProcessResponse { pid: pid as u32, ..Default::default() })
}

pub async fn signal(agent: Arc<Agent>, request: SignalProcessRequest) -> Result<Empty, ProcessError> {
    let container = agent.runtime.containers.get(&request.container_id)?;
    let process = container.process(&request.exec_id)?;
    if request.all {
        list::signal_all(&container, request.signal)?;
    } else {
        process.signal(request.signal)?;
    }
    Ok(Empty::new())
}

pub async fn wait(agent: &Agent, request: ProcessRequest) -> Result<WaitProcessResponse, ProcessError> {
    let exit = find(agent, &request.container_id, &request.exec_id)?.wait().await;
    Ok(WaitProcessResponse {
        exit_status: exit.status,
        signal: exit.signal,
        oom_killed: exit.oom_killed,
        exited_at_nanoseconds: exit.at_nanoseconds,
        stdout_bytes: exit.stdout_bytes,
        stderr_bytes: exit.stderr_bytes,
        ..Default::default()
    })
}

pub async fn resize(agent: Arc<Agent>, request: ResizeTerminalRequest) -> Result<Empty, ProcessError> {
    let process = find(&agent, &request.container_id, &request.exec_id)?;
    let (rows, columns) = (stdio::size(request.rows, "rows")?, stdio::size(request.columns, "columns")?);
    process.stdio.resize(rows, columns).map_err(ProcessError::Resize)?;
    Ok(Empty::new())
}

pub async fn close_stdin(agent: Arc<Agent>, request: ProcessRequest) -> Result<Empty, ProcessError> {
    find(&agent, &request.container_id, &request.exec_id)?.stdio.close_stdin();
    Ok(Empty::new())
}

/// The subscribers, the oldest first. A disconnected client is noticed only at the next event, so if there are too
/// many, the oldest is dropped.
pub type Watchers = Mutex<VecDeque<Arc<Notify>>>;

/// Sends events until the client disconnects.
pub async fn watch(
    agent: &Agent,
    watchers: &Watchers,
    sender: ServerStreamSender<Event>,
) -> ttrpc::Result<()> {
    let dismissed = Arc::new(Notify::new());
    {
        let mut watchers = watchers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if watchers.len() >= WATCHERS_MAX
            && let Some(oldest) = watchers.pop_front()
        {
            oldest.notify_one();
        }
        watchers.push_back(dismissed.clone());
    }
    let mut events = agent.runtime.events.subscribe();
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = dismissed.notified() => break,
        };
        match event {
            Ok(event) => {
                if sender.send(&event).await.is_err() {
                    break;
                }
            }
            Err(RecvError::Lagged(lost)) => log::warn!("a client of Events is slow and lost {lost} events"),
            Err(RecvError::Closed) => break,
        }
    }
    let mut watchers = watchers.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    watchers.retain(|other| !Arc::ptr_eq(other, &dismissed));
    Ok(())
}
