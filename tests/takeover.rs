//! Whoever takes over finds everything usable: Scoria from a stock cinder-volume, stock from Scoria, one
//! member of a Cinder cluster from another.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "takeover/cluster.rs"]
mod cluster;
#[path = "takeover/drain.rs"]
mod drain;
#[path = "takeover/estate.rs"]
mod estate;
#[path = "takeover/swap.rs"]
mod swap;
