//! PID namespaces that a container does not have to itself.

use std::io;
use std::path::PathBuf;

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
    /// The namespace's first process cannot be started.
    #[error("cannot start the first process of the shared PID namespace")]
    Pause(#[source] io::Error),
}

impl Coded for PidNamespaceError {
    fn code(&self) -> Code {
        match self {
            Self::Request(error) => error.code(),
            Self::Other(error) => error.code(),
            Self::Pause(_) => Code::INTERNAL,
        }
    }
}

/// Puts the PID namespace that the request names into the specification. Returns whether it names one.
///
/// # Errors
/// [`PidNamespaceError`] if there is no such namespace.
pub async fn join(
    runtime: &Runtime,
    spec: &mut Spec,
    request: &CreateContainerRequest,
) -> Result<bool, PidNamespaceError> {
    let path = match (request.shared_pid_namespace, request.pid_namespace_of.as_str()) {
        (false, "") => return Ok(false),
        (true, "") => shared(runtime).await.map_err(PidNamespaceError::Pause)?,
        (false, id) => of_container(runtime, id).map_err(PidNamespaceError::Other)?,
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
    let namespace = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Pid).path(path).build();
    namespaces.push(namespace.map_err(|error| invalid(error.to_string()))?);
    Ok(true)
}

/// The namespace that containers share. The first one that needs it starts its first process.
async fn shared(runtime: &Runtime) -> io::Result<PathBuf> {
    let mut pause = runtime.pause.lock().await;
    if let Some(pause) = &*pause {
        return Ok(pause.namespace());
    }
    Ok(pause.insert(Pause::start(&runtime.processes).await?).namespace())
}

fn of_container(runtime: &Runtime, id: &str) -> Result<PathBuf, LookupError> {
    let container = runtime.containers.get(id)?;
    container.require(&[State::Created, State::Running, State::Paused], "created or running")?;
    Ok(PathBuf::from(format!("/proc/{}/ns/pid", container.init.pid)))
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
            Ok(joined) => format!("{joined}"),
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
