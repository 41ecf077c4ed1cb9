//! Cinder's database and the journal against a real MariaDB.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

#[path = "../common/env.rs"]
mod env;
#[path = "../common/db.rs"]
mod support;

mod attaching;
mod cleanup;
mod creates;
mod deletes;
mod extends;
mod failover;
mod journal;
mod lease;
mod proxy;
mod quota;
mod replies;
mod retry;
mod rows;
mod seed;
mod services;
mod stage;
mod unserved;
