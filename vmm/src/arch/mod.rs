//! Code that depends on the processor architecture. Only x86-64 is supported.

pub mod x86_64;

pub use x86_64::layout;
