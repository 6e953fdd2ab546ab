//! What the VMM shares with the host side that starts it.
//!
//! The host describes a VM ([`config`]), starts the VMM in new namespaces ([`spawn`]) and sends it requests
//! on one socket ([`control`]). The VMM serves the files of a tree ([`share`]) and reports why its VM ended
//! ([`exit`]). [`restricted`] opens the files that the VMM gets as descriptors, and [`inherited`] takes ownership of
//! them.

pub mod config;
pub mod control;
pub mod exit;
pub mod inherited;
pub mod mount_attributes;
pub mod restricted;
pub mod share;
pub mod spawn;
