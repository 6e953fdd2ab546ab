//! What the VMM and the host that starts it share.
//!
//! The host describes a VM ([`config`]), starts the VMM in namespaces of its own ([`spawn`]) and
//! sends it requests over one socket ([`control`]). The VMM says why its VM ended ([`exit`]).
//! [`restricted`] opens what the VMM gets as descriptors, and [`inherited`] takes them over.

pub mod config;
pub mod control;
pub mod exit;
pub mod inherited;
pub mod restricted;
pub mod spawn;
