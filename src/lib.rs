//! Scoria: cinder-volume for Ceph RBD, made for the worst day.
//!
//! A request travels `bin → service → rpc → {volume, backup, replication, backend, backends} → {openstack, journal, db, rbd} →
//! model`, and no arrow points back. ARCHITECTURE.md walks through two requests end to end.

// Not for the test crates, whose shared modules are public to nobody by nature.
#![warn(unreachable_pub)]

pub mod backend;
pub mod backends;
pub mod backup;
pub mod cli;
pub mod config;
pub mod context;
pub mod db;
pub mod error;
pub mod journal;
pub mod model;
pub mod openstack;
pub mod rbd;
pub mod replication;
pub mod rpc;
pub mod service;
pub mod site;
pub mod volume;
