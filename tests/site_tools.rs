//! Tools for sites and images on two real Ceph clusters: a daemon that the service runs itself, replication of an
//! image that Cinder does not know, and the change of its roles; images that are moved, reverted and finished.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "site_tools/daemon.rs"]
mod daemon;
#[path = "site_tools/images.rs"]
mod images;
