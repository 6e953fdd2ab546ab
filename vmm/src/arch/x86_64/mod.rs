//! x86-64: how memory is laid out, what the processor says of itself, and how the kernel is entered.

pub mod cpuid;
mod cpuid_policy;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod msr;
pub mod pvh;
pub mod regs;
