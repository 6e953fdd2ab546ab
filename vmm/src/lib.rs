//! pouch-vmm: one small virtual machine for one container or pod, over KVM.
//!
//! A VM is made from one description, a [`config::VmConfig`], by one function, [`builder::boot`],
//! and is steered through one socket, whose messages are in [`control`]. Each VM is a process of
//! its own without authority of its own: see [`jail`].
//!
//! `docs/architecture.md` tells how the parts fit together, `docs/security.md` what a guest that
//! takes over this process would hold.

pub mod arch;
pub mod builder;
pub mod bus;
pub mod config;
pub mod control;
pub mod devices;
pub mod event_loop;
pub mod exit;
pub mod jail;
pub mod log;
pub mod memory;
pub mod root;
pub mod vcpu;
pub mod vm;
