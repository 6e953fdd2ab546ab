//! pouch-vmm: a small virtual machine monitor for one container or pod, using KVM.
//!
//! [`builder::boot`] builds a VM from its description, a `VmConfig`, and one socket controls it
//! ([`control`]). The description and the messages are in the crate `pouch-vmm-api`, which the host side uses
//! too. Each VM is a separate, unprivileged process: see [`process`] and [`jail`].
//!
//! `docs/architecture.md` describes how the parts fit together, and `docs/security.md` what a guest has that
//! takes over this process.

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
