//! Why a VM ended.

use serde::{Deserialize, Serialize};

/// Why a VM ended, as the last message on the control socket tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest kernel panicked; the text is the panic's own message, at most 240 bytes.
    Panic {
        /// What the kernel said, as printable ASCII.
        message: String,
    },
    /// A vCPU shut down: a fault while the guest handled a double fault.
    TripleFault,
    /// The host asked for it, or its side of the control socket is gone.
    Stopped,
    /// KVM could not go on running the guest.
    HypervisorError {
        /// What KVM or the kernel said.
        message: String,
    },
    /// The VMM itself failed.
    InternalError {
        /// What went wrong.
        message: String,
    },
}

impl ExitReason {
    /// The exit status of the process for this reason.
    pub fn status(&self) -> i32 {
        match self {
            ExitReason::PowerOff | ExitReason::Stopped => 0,
            ExitReason::Reset => 10,
            ExitReason::Panic { .. } => 11,
            ExitReason::TripleFault => 12,
            ExitReason::HypervisorError { .. } => 13,
            ExitReason::InternalError { .. } => 14,
        }
    }

    /// The same reason, with `change` applied to its text, for callers that do not trust the VMM.
    #[must_use]
    pub fn map_text(mut self, change: impl FnOnce(&str) -> String) -> Self {
        if let ExitReason::Panic { message }
        | ExitReason::HypervisorError { message }
        | ExitReason::InternalError { message } = &mut self
        {
            *message = change(message);
        }
        self
    }
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ExitReason::PowerOff => f.write_str("the guest powered off"),
            ExitReason::Reset => f.write_str("the guest reset itself"),
            ExitReason::Panic { message } if message.is_empty() => f.write_str("the guest kernel panicked"),
            ExitReason::Panic { message } => write!(f, "the guest kernel panicked: {message}"),
            ExitReason::TripleFault => f.write_str("the guest stopped with a triple fault"),
            ExitReason::Stopped => f.write_str("the VM was stopped"),
            ExitReason::HypervisorError { message } => {
                write!(f, "KVM could not run the guest: {message}")
            }
            ExitReason::InternalError { message } => write!(f, "the VMM failed: {message}"),
        }
    }
}
