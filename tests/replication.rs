//! Failover and failback on two real clusters: nothing is lost that had been mirrored, and what has
//! failed over can be written to while the other site is away.
//!
//! By default a sample that has every intent once, and each mode and state of a site several times; the whole
//! matrix (docs/replication-tests.md) with `--run-ignored all`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "replication/adopt.rs"]
mod adopt;
#[path = "replication/calls.rs"]
mod calls;
#[path = "replication/drill.rs"]
mod drill;
#[path = "replication/group.rs"]
mod group;
#[path = "replication/lag.rs"]
mod lag;
#[path = "replication/modes.rs"]
mod modes;
#[path = "replication/planned.rs"]
mod planned;
#[path = "replication/stubborn.rs"]
mod stubborn;
#[path = "replication/tool.rs"]
mod tool;
#[path = "replication/unplanned.rs"]
mod unplanned;
