//! Cinder's database and the journal against a real MariaDB.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

#[path = "../common/env.rs"]
mod env;
#[path = "../common/db.rs"]
mod support;

mod adopt;
mod attach_recovery;
mod attachment_update;
mod backend_crashes;
mod backend_files;
mod backend_scene;
mod backends;
mod backup_crashes;
mod backup_faults;
mod backup_scene;
mod backup_sites;
mod backups;
mod cleanup;
mod create;
mod create_site;
mod defects;
mod deletes;
mod drills;
mod encryption;
mod extend_in_use;
mod extends;
mod failover;
mod failover_rows;
mod fences;
mod foresight;
mod frozen;
mod group_replication;
mod groups;
mod images;
mod journal;
mod lag;
mod lease;
mod link_scene;
mod links;
mod locks;
mod manage;
mod migrates;
mod mirror_daemons;
mod modes;
mod moves;
mod nova_copies;
mod ordering;
mod parting;
mod proxy;
mod quota;
mod replies;
mod requests;
mod retry;
mod retypes;
mod revert;
mod rows;
mod scratch;
mod seed;
mod services;
mod site_tools;
mod sites;
mod stage;
mod standing;
mod trash;
