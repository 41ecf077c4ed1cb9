//! Links between sites: from two clusters that have nothing in common to mirrored pools, and back.
//!
//! By hand this is a page of commands on two clusters, with keys carried between them, and whoever is interrupted has
//! half a link that nobody knows. Here it is an order: what is to be done is found out by a look at both sides
//! (`plan`), written down, done step by step, each of which may be done again (`connect`), and proven by an image that
//! is mirrored and compared (`canary`). `disconnect` takes it apart, with what it would cost said first (`census`), and
//! with the backups that are on the site that goes (`stored`).
//!
//! It takes administrators' keys. They are files for the length of one order, removed with its end, and never outlive
//! the process that has begun it: an order that is taken up after a restart says that they have to be given again.

mod canary;
mod census;
mod connect;
mod disconnect;
mod erasure;
mod give_up;
mod orders;
mod pair;
mod plan;
mod purge;
mod stored;
mod unmirror;
mod view;

pub use erasure::{check as check_erasure, check_replicated, domains};
pub use orders::{BackupsGo, Connect, DataPool, Disconnect, Make, Mode, Purge};
pub use pair::admin_files;
pub use view::{Link, all as links};

pub(super) use connect::connect;
pub(super) use disconnect::disconnect;
pub(super) use give_up::{GIVEN_UP, How as GiveUp, give_up};
