//! A container as the OCI specification defines it: bundle, specification, state, hooks.

pub mod bundle;
pub mod default_spec;
pub mod guest_spec;
pub mod hooks;
pub mod id;
pub mod limits;
pub mod resources;
pub mod size;
pub mod state;

pub use bundle::{Bundle, BundleError};
pub use id::{ContainerId, IdError};
pub use state::{ContainerDir, State, StateError, Status};
