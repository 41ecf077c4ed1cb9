//! Links of sites on two real Ceph clusters that know nothing of each other: no pools, no peers, no daemons.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "site_link/backups.rs"]
mod backups;
#[path = "site_link/crash.rs"]
mod crash;
#[path = "site_link/parting.rs"]
mod parting;
#[path = "site_link/scene.rs"]
mod scene;
#[path = "site_link/whole.rs"]
mod whole;
