//! How long the start of a sandbox took, by phase.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Milliseconds from the start of the sandbox host process's work to the end of each phase.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Phases {
    /// The bundle was read, the files were mounted, and the VMM's process runs.
    pub vmm_started: f64,
    /// The guest has booted and is set up.
    pub guest_answered: f64,
    /// The container is created, or the sandbox of a pod is ready for containers.
    pub container_created: f64,
}

impl Phases {
    /// With these times.
    pub fn of(vmm_started: Duration, guest_answered: Duration, container_created: Duration) -> Self {
        let [vmm_started, guest_answered, container_created] =
            [vmm_started, guest_answered, container_created].map(|time| time.as_secs_f64() * 1e3);
        Phases { vmm_started, guest_answered, container_created }
    }

    /// The times with their names.
    pub fn named(&self) -> [(&'static str, f64); 3] {
        [
            ("vmm_started", self.vmm_started),
            ("guest_answered", self.guest_answered),
            ("container_created", self.container_created),
        ]
    }
}
