//! Replication: keeping a second copy of every volume, and moving to it on the worst day.
//!
//! [`plan`] decides, purely, the next action for one volume; [`engine`] carries actions out for many at
//! once and records each step; [`verdict`] says whether a site is alive; `failover`, `group` and `resync` are the
//! operations that the API and the admin tool order; `orders` is how the latter does; `drill` tries a failover
//! out on clones; `schedules` keeps mirror snapshots coming; `parent` is what becomes of a mirrored clone's parent;
//! `standing` is which site a backend works on afterwards, and how the members of a Cinder cluster agree on it;
//! `adopt` makes the site that is active a backend's own; `lag` is how far behind the copies are, `news` what listeners hear, and `foresight` what a failover would do.

pub mod admission;
pub mod adopt;
pub mod arrival;
mod candidates;
pub mod drill;
pub mod enable;
pub mod engine;
pub mod failover;
pub mod fence;
pub mod foresight;
pub mod group;
pub mod intent;
mod judge;
pub mod lag;
mod ledger;
mod news;
pub mod ordered;
pub mod orders;
pub mod parent;
pub mod plan;
pub mod resync;
pub mod schedules;
pub mod set;
#[cfg(test)]
mod sim_tests;
pub mod standing;
pub mod target;
pub mod verdict;
