//! The sandbox host process: it owns one VM, and handles the requests of the command line.
//!
//! [`launch`] starts it, [`run`] is its life, [`create`] its beginning. [`server`] handles requests, which [`client`]
//! sends and [`protocol`] defines.

pub mod child;
pub mod client;
pub mod create;
pub mod launch;
pub mod protocol;
pub mod run;
pub mod server;
