//! A volume's life through cinder-api, the scheduler, RabbitMQ, MariaDB and Ceph, as its users see it.
//!
//! With `SCORIA_TEST_SERVICE=cinder-volume` the same tests run against the stock service: what passes
//! there is Cinder's behaviour and no invention of ours.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "lifecycle/attach.rs"]
mod attach;
#[path = "lifecycle/basics.rs"]
mod basics;
#[path = "lifecycle/cli.rs"]
mod cli;
#[path = "lifecycle/copies.rs"]
mod copies;
#[path = "lifecycle/encryption.rs"]
mod encryption;
#[path = "lifecycle/extend.rs"]
mod extend;
#[path = "lifecycle/failures.rs"]
mod failures;
#[path = "lifecycle/groups.rs"]
mod groups;
#[path = "lifecycle/manage.rs"]
mod manage;
#[path = "lifecycle/moving.rs"]
mod moving;
#[path = "lifecycle/notifications.rs"]
mod notifications;
#[path = "lifecycle/service.rs"]
mod service;
#[path = "lifecycle/sites.rs"]
mod sites;
#[path = "lifecycle/trash.rs"]
mod trash;
#[path = "lifecycle/without_glance.rs"]
mod without_glance;
