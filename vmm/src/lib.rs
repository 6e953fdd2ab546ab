//! pouch-vmm: one small virtual machine for one container or pod, over KVM.
//!
//! A VM is made from one description, a `VmConfig`, by one function, [`builder::boot`], and is steered
//! through one socket ([`control`]). Description and messages are in the crate `pouch-vmm-api`, which the
//! host uses too. Each VM is a process of its own without authority of its own: see [`process`] and
//! [`jail`].
//!
//! `docs/architecture.md` tells how the parts fit together, `docs/security.md` what a guest that
//! takes over this process would hold.

pub mod arch;
pub mod attach;
pub mod builder;
pub mod bus;
pub mod control;
pub mod devices;
pub mod event_loop;
pub mod exit_signal;
pub mod jail;
pub mod log;
pub mod memory;
pub mod process;
pub mod root;
pub mod vcpu;
pub mod vm;
