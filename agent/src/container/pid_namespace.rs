//! PID namespaces that a container does not have to itself.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType, Spec};
use pouch_protocol::agent::CreateContainerRequest;
use ttrpc::proto::Code;

use super::{LookupError, Runtime, State};
use crate::error::{Coded, RequestError};
use crate::pause::Pause;

/// A container cannot join a PID namespace.
#[derive(Debug, thiserror::Error)]
pub enum PidNamespaceError {
    /// The request is invalid.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The other container does not exist or does not run.
    #[error("pid_namespace_of: {0}")]
    Other(#[source] LookupError),
    /// Its namespace cannot be opened.
    #[error("pid_namespace_of: the namespace cannot be opened")]
    Open(#[source] io::Error),
    /// The namespace's first process cannot be started.
    #[error("cannot start the first process of the shared PID namespace")]
    Pause(#[source] io::Error),
}

impl Coded for PidNamespaceError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Other(error) => error.code(),
            Self::Open(_) | Self::Pause(_) => Code::INTERNAL,
        }
    }
}

/// A PID namespace that a container is to join. It must be kept until the container has joined.
pub enum Joined {
    /// The one that containers share.
    Shared(Arc<Pause>),
    /// That of another container.
    Of(File),
}

impl Joined {
    /// A path for the runner, which is the agent's child. The PID of a process in the namespace would not do, because
    /// the process may end.
    fn path(&self) -> PathBuf {
        let file = match self {
            Joined::Shared(pause) => &pause.namespace,
            Joined::Of(file) => file,
        };
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
    }
}

/// Puts the PID namespace that the request names into the specification, and returns it.
///
/// # Errors
/// [`PidNamespaceError`] if there is no such namespace.
pub async fn join(
    runtime: &Runtime,
    spec: &mut Spec,
    request: &CreateContainerRequest,
) -> Result<Option<Joined>, PidNamespaceError> {
    let joined = match (request.shared_pid_namespace, request.pid_namespace_of.as_str()) {
        (false, "") => return Ok(None),
        (true, "") => Joined::Shared(shared(runtime).await.map_err(PidNamespaceError::Pause)?),
        (false, id) => Joined::Of(of_container(runtime, id)?),
        (true, _) => {
            let text = "cannot be combined with shared_pid_namespace";
            return Err(RequestError::new("pid_namespace_of", text).into());
        }
    };
    let invalid = |text: String| RequestError::new("linux.namespaces", text);
    let linux = spec.linux_mut().get_or_insert_default();
    let namespaces = linux.namespaces_mut().get_or_insert_default();
    if namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Pid) {
        return Err(invalid("has a PID namespace, and the request names another".to_owned()).into());
    }
    let namespace = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Pid).path(joined.path()).build();
    namespaces.push(namespace.map_err(|error| invalid(error.to_string()))?);
    Ok(Some(joined))
}

/// The namespace that containers share. Its first process is started when there is none, or the last one has ended.
async fn shared(runtime: &Runtime) -> io::Result<Arc<Pause>> {
    let mut pause = runtime.pause.lock().await;
    if let Some(running) = pause.as_ref().filter(|pause| pause.lives()) {
        return Ok(running.clone());
    }
    Ok(pause.insert(Arc::new(Pause::start(&runtime.processes).await?)).clone())
}

fn of_container(runtime: &Runtime, id: &str) -> Result<File, PidNamespaceError> {
    let container = runtime.containers.get(id).map_err(PidNamespaceError::Other)?;
    let file = File::open(format!("/proc/{}/ns/pid", container.init.pid)).map_err(PidNamespaceError::Open);
    // If it runs now, the file is that of its process, and not of a later one with the same PID.
    let states = [State::Created, State::Running, State::Paused];
    container.require(&states, "created or running").map_err(PidNamespaceError::Other)?;
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn refusal(change: impl FnOnce(&mut CreateContainerRequest), namespaces: &str) -> String {
        let spec = format!(r#"{{"ociVersion": "1.2.0", "linux": {{"namespaces": {namespaces}}}}}"#);
        let mut spec: Spec = serde_json::from_str(&spec).unwrap();
        let mut request = CreateContainerRequest::new();
        change(&mut request);
        match join(&Runtime::default(), &mut spec, &request).await {
            Ok(joined) => format!("{}", joined.is_some()),
            Err(error) => error.to_string(),
        }
    }

    #[tokio::test]
    async fn a_namespace_that_cannot_be_joined_is_named() {
        assert_eq!(refusal(|_| (), "[]").await, "false");
        let of = |id: &str| {
            let id = id.to_owned();
            move |request: &mut CreateContainerRequest| request.pid_namespace_of = id
        };
        assert_eq!(
            refusal(of("other"), "[]").await,
            "pid_namespace_of: container_id: no container \"other\""
        );
        let both = |request: &mut CreateContainerRequest| {
            request.shared_pid_namespace = true;
            request.pid_namespace_of = "other".to_owned();
        };
        assert!(refusal(both, "[]").await.starts_with("pid_namespace_of: "));
    }
}
