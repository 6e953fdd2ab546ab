//! The sandbox host process: it owns one VM, and handles the requests of the command line.
//!
//! [`launch`] starts it, [`run`] is its life, [`create`] its beginning, after which [`confine`] takes what it needs no
//! more, and [`delete`] removes what it leaves.
//! Containers that join a pod have a [`proxy`] process each. [`server`] handles requests, which [`client`] sends and
//! [`protocol`] defines. Front ends use [`lifecycle`] and [`limits`].

pub mod child;
pub mod client;
pub mod confine;
pub mod create;
pub mod delete;
pub mod ending;
pub mod launch;
pub mod lifecycle;
pub mod limits;
pub mod pod;
pub mod protocol;
pub mod proxy;
pub mod run;
pub mod server;
