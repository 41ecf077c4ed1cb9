//! Volumes and images: what cinder-volume does with Glance, with Keystone asking who is who.
//!
//! With `SCORIA_TEST_SERVICE=cinder-volume` the same tests run against the stock service.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;

mod accounts;
mod crash;
mod encryption;
mod from_image;
mod upload;
mod zones;
