//! The process boundary on real Ceph: each command once, and everything that can go wrong with a worker
//! or a site.
//!
//! Needs two sites with two-way mirroring of the pool `volumes` in mode `image`, a pool `images`, and a
//! user `cinder`: set SITE_A_CONF and SITE_B_CONF to their ceph.conf (tools/lab prints them), then
//!
//! ```text
//! cargo nextest run --test ceph_boundary --run-ignored only
//! ```
//!
//! Tests that stop a site's daemons (by tools/lab, or by the pid files in the conf's `run_dir`) take a
//! lock that keeps the others away meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod commands;
mod common;
mod failures;
mod mirroring;
