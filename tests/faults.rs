//! What is accepted is never lost, and what is wrong never hurts: crashes at every kind of step, broker
//! and database restarts under load, bad messages, backends that cannot come up.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

#[path = "faults/backends.rs"]
mod backends;
#[path = "faults/crash.rs"]
mod crash;
#[path = "faults/crash_encryption.rs"]
mod crash_encryption;
#[path = "faults/crash_extend.rs"]
mod crash_extend;
#[path = "faults/crash_failover.rs"]
mod crash_failover;
#[path = "faults/crash_groups.rs"]
mod crash_groups;
#[path = "faults/crash_manage.rs"]
mod crash_manage;
#[path = "faults/crash_moves.rs"]
mod crash_moves;
#[path = "faults/crash_moving.rs"]
mod crash_moving;
#[path = "faults/crash_nova_copy.rs"]
mod crash_nova_copy;
#[path = "faults/input.rs"]
mod input;
#[path = "faults/nova.rs"]
mod nova;
#[path = "faults/restarts.rs"]
mod restarts;
#[path = "faults/workers.rs"]
mod workers;
