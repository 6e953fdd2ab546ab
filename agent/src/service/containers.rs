//! Requests for a container as a whole.

use std::fs;
use std::sync::Arc;

use pouch_protocol::agent::*;

use super::Agent;
use crate::container::cgroup::stats as counters;
use crate::container::create::{self, CreateError};
use crate::container::delete::{self, DeleteError};
use crate::container::start::{self, ChangeError, blocking};
use crate::container::{LookupError, spec};

pub async fn create(
    agent: Arc<Agent>,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, CreateError> {
    let pid = create::create(&agent.runtime, request).await?;
    Ok(CreateContainerResponse { pid: pid as u32, ..Default::default() })
}

pub async fn start(agent: Arc<Agent>, request: ContainerRequest) -> Result<Empty, ChangeError> {
    let container = agent.runtime.containers.get(&request.container_id)?;
    if let Some((key, interface)) = agent.runtime.interface_settings.forget(&request.container_id) {
        return Err(ChangeError::NoInterface { key, interface });
    }
    start::start(&container).await?;
    Ok(Empty::new())
}

pub async fn delete(agent: Arc<Agent>, request: ContainerRequest) -> Result<Empty, DeleteError> {
    delete::delete(&agent.runtime, &request.container_id).await?;
    Ok(Empty::new())
}

pub async fn set_paused(
    agent: Arc<Agent>,
    request: ContainerRequest,
    paused: bool,
) -> Result<Empty, ChangeError> {
    start::set_paused(agent.runtime.containers.get(&request.container_id)?, paused).await?;
    Ok(Empty::new())
}

pub async fn update(agent: Arc<Agent>, request: UpdateContainerRequest) -> Result<Empty, ChangeError> {
    let container = agent.runtime.containers.get(&request.container_id)?;
    let resources = spec::parse_json("resources", &request.resources)?;
    start::update(container, resources).await?;
    Ok(Empty::new())
}

pub async fn stats(
    agent: Arc<Agent>,
    request: ContainerRequest,
) -> Result<ContainerStatsResponse, ChangeError> {
    let container = agent.runtime.containers.get(&request.container_id)?;
    // The counters of its own network namespace, if it has one; the guest's, if it has ended.
    let network = fs::read_to_string(format!("/proc/{}/net/dev", container.init.pid))
        .or_else(|_| fs::read_to_string("/proc/net/dev"))
        .unwrap_or_default();
    let cgroup = container.cgroup.clone();
    if !cgroup.directory().exists() {
        return Err(LookupError::NoContainer(request.container_id).into());
    }
    blocking(move || counters::collect(&cgroup, &network)).await
}
