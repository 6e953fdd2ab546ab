//! Sends requests and handles streams for the checks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pouch_protocol::agent::*;
use pouch_protocol::agent_ttrpc::AgentClient;
use pouch_protocol::{AGENT_PORT, STREAM_PORT};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_vsock::{VsockAddr, VsockStream};
use ttrpc::r#async::Client;
use ttrpc::context::{Context, with_timeout};

use crate::spec::process_json;

pub type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// A deadline for one request.
pub fn within(seconds: i64) -> Context {
    with_timeout(seconds * 1_000_000_000)
}

/// A connection to the agent.
pub struct Driver {
    cid: u32,
    pub client: AgentClient,
    tokens: AtomicU64,
}

/// The host's ends of a process's streams.
#[derive(Default)]
pub struct Streams {
    pub stdin: Option<VsockStream>,
    pub stdout: Option<VsockStream>,
    pub stderr: Option<VsockStream>,
    pub terminal: Option<VsockStream>,
}

static FAILURES: AtomicU64 = AtomicU64::new(0);

/// Notes one check; the others go on.
pub fn check(what: &str, good: bool) -> Result<()> {
    println!("{} {what}", if good { "ok  " } else { "FAIL" });
    FAILURES.fetch_add(u64::from(!good), Ordering::Relaxed);
    Ok(())
}

/// How many checks have failed.
pub fn failures() -> u64 {
    FAILURES.load(Ordering::Relaxed)
}

impl Driver {
    pub async fn connect(cid: u32) -> Result<Self> {
        let start = Instant::now();
        let client = loop {
            match Client::connect(&format!("vsock://{cid}:{AGENT_PORT}")).await {
                Ok(client) => break client,
                Err(error) if start.elapsed() > Duration::from_secs(120) => return Err(error.into()),
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        Ok(Self {
            cid,
            client: AgentClient::new(client),
            tokens: AtomicU64::new(1 + u64::from(std::process::id()) * 1000),
        })
    }

    pub fn token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    pub async fn stream(&self, token: u64) -> Result<Option<VsockStream>> {
        if token == 0 {
            return Ok(None);
        }
        let mut stream = VsockStream::connect(VsockAddr::new(self.cid, STREAM_PORT)).await?;
        stream.write_all(&token.to_le_bytes()).await?;
        Ok(Some(stream))
    }

    pub async fn streams(&self, stdio: &Stdio) -> Result<Streams> {
        Ok(Streams {
            stdin: self.stream(stdio.stdin_token).await?,
            stdout: self.stream(stdio.stdout_token).await?,
            stderr: self.stream(stdio.stderr_token).await?,
            terminal: self.stream(stdio.terminal_token).await?,
        })
    }

    pub fn pipes(&self) -> Stdio {
        Stdio {
            stdin_token: self.token(),
            stdout_token: self.token(),
            stderr_token: self.token(),
            ..Default::default()
        }
    }

    pub fn terminal(&self) -> Stdio {
        Stdio { terminal: true, terminal_token: self.token(), rows: 33, columns: 101, ..Default::default() }
    }

    pub async fn create(&self, id: &str, spec: &Value, stdio: Stdio) -> Result<(u32, Streams)> {
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            spec: spec.to_string().into_bytes(),
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        };
        let pid = self.client.create_container(within(60), &request).await?.pid;
        Ok((pid, self.streams(&stdio).await?))
    }

    pub async fn start(&self, id: &str) -> ttrpc::Result<Empty> {
        self.client.start_container(within(60), &container(id)).await
    }

    pub async fn delete(&self, id: &str) -> ttrpc::Result<Empty> {
        self.client.delete_container(within(60), &container(id)).await
    }

    pub async fn exec(&self, id: &str, exec: &str, process: &Value, stdio: Stdio) -> Result<Streams> {
        let request = ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec.to_owned(),
            process: process.to_string().into_bytes(),
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        };
        self.client.exec_process(within(60), &request).await?;
        self.streams(&stdio).await
    }

    pub async fn wait(&self, id: &str, exec: &str) -> Result<WaitProcessResponse> {
        Ok(self.client.wait_process(within(120), &process(id, exec)).await?)
    }

    pub async fn signal(&self, id: &str, signal: i32, all: bool) -> ttrpc::Result<Empty> {
        let request = SignalProcessRequest {
            container_id: id.to_owned(),
            signal: signal as u32,
            all,
            ..Default::default()
        };
        self.client.signal_process(within(30), &request).await
    }

    /// Runs one container to its end; returns what it wrote and how it ended.
    pub async fn run(
        &self,
        id: &str,
        spec: &Value,
        input: &[u8],
    ) -> Result<(String, String, WaitProcessResponse)> {
        let (_, mut streams) = self.create(id, spec, self.pipes()).await?;
        self.start(id).await?;
        if let Some(mut stdin) = streams.stdin.take() {
            stdin.write_all(input).await?;
            stdin.shutdown(std::net::Shutdown::Write)?;
        }
        let (out, err) = tokio::join!(read_all(streams.stdout), read_all(streams.stderr));
        let exit = self.wait(id, "").await?;
        self.delete(id).await?;
        Ok((out?, err?, exit))
    }

    pub async fn output(&self, id: &str, exec: &str, args: &[&str]) -> Result<(String, WaitProcessResponse)> {
        let streams = self.exec(id, exec, &process_json(args), self.pipes()).await?;
        drop(streams.stdin);
        let out = read_all(streams.stdout).await?;
        Ok((out, self.wait(id, exec).await?))
    }
}

pub fn container(id: &str) -> ContainerRequest {
    ContainerRequest { container_id: id.to_owned(), ..Default::default() }
}

pub fn process(id: &str, exec: &str) -> ProcessRequest {
    ProcessRequest { container_id: id.to_owned(), exec_id: exec.to_owned(), ..Default::default() }
}

pub async fn read_all(stream: Option<VsockStream>) -> Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut bytes)).await??;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

pub fn code_of<T>(result: &ttrpc::Result<T>) -> Option<ttrpc::Code> {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => Some(status.code()),
        _ => None,
    }
}

pub fn status_of<T>(result: Result<T>) -> Result<ttrpc::Status> {
    match result {
        Ok(_) => Err("it was accepted".into()),
        Err(error) => match error.downcast_ref::<ttrpc::Error>() {
            Some(ttrpc::Error::RpcStatus(status)) => Ok(status.clone()),
            _ => Err(error),
        },
    }
}
