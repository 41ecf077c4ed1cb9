//! What makes a process of the library: start-up, backends, recovery, drain, signals, logging.

pub mod backends;
pub mod backup;
mod backups;
pub mod clients;
mod defect;
mod drain;
mod fencing;
mod frame;
mod group;
pub mod handler;
pub mod host;
pub mod intake;
pub mod lanes;
pub mod logging;
mod manageable;
mod moving;
mod ordering;
pub mod orders;
mod overtaken;
mod pins;
pub mod program;
pub mod questions;
pub mod recovery;
pub mod registry;
pub mod sites;
mod taken;
pub mod volume;
