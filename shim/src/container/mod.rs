//! A container as the OCI specification defines it: bundle, specification, state, hooks.

pub mod bundle;
pub mod create;
pub mod default_spec;
mod devices;
pub mod features;
mod file_systems;
pub mod guest_spec;
pub mod hooks;
pub mod id;
pub mod limits;
pub mod lookup;
pub mod mount_points;
mod overlay;
pub mod phases;
pub mod pod_spec;
pub mod progress;
pub mod resources;
pub mod running;
pub mod size;
pub mod state;
pub mod stats;
pub mod view;

pub use bundle::{Bundle, BundleError};
pub use id::{ContainerId, IdError};
pub use progress::Progress;
pub use running::Container;
pub use state::{ContainerDir, State, StateError, Status};
