//! Checks the specification from the host and adapts it for libcontainer.

mod adapt;
mod check;
mod devices;
mod renumber;
pub mod rich;

use oci_spec::runtime::{LinuxIdMapping, LinuxPersonalityDomain, LinuxSeccomp, Process, Spec};

use crate::error::RequestError;

pub use adapt::{Adapted, adapt};
pub use check::{check, check_process, check_sysctl};
pub use devices::settle as settle_devices;
pub use renumber::{Renumbered, devices as renumber_devices, rules as renumber_rules};

/// More than any engine makes; a configuration of Kubernetes has some tens of kilobytes.
pub const SPEC_MAX: usize = 2 * 1024 * 1024;

/// Parses `CreateContainerRequest.spec`.
pub fn parse(bytes: &[u8]) -> Result<Spec, RequestError> {
    parse_json("spec", bytes)
}

/// Parses `ExecProcessRequest.process`.
pub fn parse_process(bytes: &[u8]) -> Result<Process, RequestError> {
    parse_json("process", bytes)
}

/// Parses an OCI object in a request's field.
pub fn parse_json<T: serde::de::DeserializeOwned>(field: &str, bytes: &[u8]) -> Result<T, RequestError> {
    if bytes.is_empty() {
        return Err(RequestError::new(field, "is empty"));
    }
    if bytes.len() > SPEC_MAX {
        return Err(RequestError::new(field, format!("has {} bytes, more than {SPEC_MAX}", bytes.len())));
    }
    serde_json::from_slice(bytes).map_err(|error| RequestError::new(field, error.to_string()))
}

/// What later processes of a container take from its specification.
#[derive(Clone, Debug, Default)]
pub struct ForExec {
    /// The filter that every process of the container gets.
    pub seccomp: Option<LinuxSeccomp>,
    /// The first process's, for processes that name none.
    pub oom_score_adj: Option<i32>,
    /// The execution domain of the container's processes (personality(2)).
    pub personality: Option<LinuxPersonalityDomain>,
    /// Which users of the guest its users are; the same ones without a user namespace.
    pub users: Option<Vec<LinuxIdMapping>>,
}

impl ForExec {
    /// The UID in the guest of `uid` in the container. An unmapped one becomes the overflow UID and not root.
    pub fn mapped(&self, uid: u32) -> u32 {
        /// The kernel's overflow uid.
        const NOBODY: u32 = 65534;
        let Some(users) = &self.users else { return uid };
        let within = |mapping: &LinuxIdMapping| {
            let offset = uid.checked_sub(mapping.container_id())?;
            (offset < mapping.size()).then(|| mapping.host_id().checked_add(offset))?
        };
        users.iter().find_map(within).unwrap_or(NOBODY)
    }
}
