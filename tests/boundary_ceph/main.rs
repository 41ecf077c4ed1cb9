//! The process boundary on real Ceph: each command once, and everything that can go wrong with a worker
//! or a site.
//!
//! Needs two sites with two-way mirroring of the pool `volumes` in mode `image`, a pool `images`, and a
//! user `cinder`: those of the lab, or those whose ceph.conf SITE_A_CONF and SITE_B_CONF name.
//!
//! Tests that stop a site's daemons (by tools/lab, or by the pid files in the conf's `run_dir`) take the lab
//! alone.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod commands;
mod common;
#[path = "../common/env.rs"]
mod env;
mod failures;
mod mirroring;
mod trash;
