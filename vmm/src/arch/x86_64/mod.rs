//! x86-64: memory layout, CPUID, and kernel entry.

pub mod cpuid;
mod cpuid_policy;
pub mod kernel;
pub mod layout;
pub mod mptable;
pub mod msr;
pub mod pvh;
pub mod regs;
