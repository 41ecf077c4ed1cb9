//! Failover and failback on two real clusters: nothing is lost that had been mirrored, and what has
//! failed over can be written to while the other site is away.
//!
//! By default a sample that covers every column of mode (journal, snapshot) × site A (alive, killed,
//! hung); all six with `--run-ignored all`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "replication/drill.rs"]
mod drill;
#[path = "replication/group.rs"]
mod group;
#[path = "replication/planned.rs"]
mod planned;
#[path = "replication/tool.rs"]
mod tool;
#[path = "replication/unplanned.rs"]
mod unplanned;
