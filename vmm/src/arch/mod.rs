//! What is particular to a processor architecture. x86-64 is the only one so far.

pub mod x86_64;

pub use x86_64::layout;
