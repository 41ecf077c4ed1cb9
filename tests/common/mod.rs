//! The harness of the suites that run on real components.
//!
//! The problem: a dozen processes take fifteen seconds to start and a test may leave any of them
//! killed, paused or failed over; tests must neither meet what an earlier one left nor run beside
//! each other. So there is one lab, taken by one test at a time ([`Lab::get`]), healthy at the start,
//! and looked through at the end: a test that leaves work undone (a volume, an image, an open
//! operation, quota) fails even when its own assertions hold.
//!
//! The subject is `scoria-volume`, or with `SCORIA_TEST_SERVICE=cinder-volume` the stock service on
//! the same backends: what passes there shows that the suite asks for Cinder's behaviour and not for
//! ours. Tests of what only Scoria does call [`Lab::only_scoria`].

// Every suite uses its part of this.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used)]

mod cinder;
pub(crate) mod conf;
mod driver;
pub(crate) mod env;
mod images;
mod lab;
mod leftovers;
pub(crate) mod luks;

use std::time::{Duration, Instant};

pub(crate) use cinder::{Notification, connector, is_up, row_str};
pub(crate) use driver::{Answer, CallError, Driver};
pub(crate) use images::{ImageFile, checksum, qemu_info};
pub(crate) use lab::{Lab, Subject, is_gone, signal, tool_at, tool_ok_at};

/// Service hosts of the lab's two backends, and the queue that each one's requests go to.
pub(crate) const CEPH: &str = "lab@ceph";
pub(crate) const PLAIN: &str = "lab@plain";
pub(crate) const CEPH_QUEUE: &str = "cinder-volume.lab@ceph.lab";
pub(crate) const PLAIN_QUEUE: &str = "cinder-volume.lab@plain.lab";

/// The long lists and loops instead of CI's sample.
pub(crate) fn full() -> bool {
    std::env::var_os("SCORIA_TEST_FULL").is_some_and(|v| !v.is_empty() && v != "0")
}

/// Ask again until there is an answer. Panics with `what` when there is none for `seconds`: a limit
/// against hanging for ever, generous, and never a statement about speed.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, seconds: u64, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut pause = Duration::from_millis(20);
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {seconds} s");
        std::thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(300));
    }
}

/// `wait_until`, and what `why` says when it does not come true.
#[track_caller]
pub(crate) fn wait_or_tell(
    what: &str,
    seconds: u64,
    mut ask: impl FnMut() -> bool,
    why: impl FnOnce() -> String,
) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !ask() {
        if Instant::now() >= end {
            panic!("{what}: not within {seconds} s\n{}", why());
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// `wait_for` of something that is true or not yet.
#[track_caller]
pub(crate) fn wait_until(what: &str, seconds: u64, mut ask: impl FnMut() -> bool) {
    wait_for(what, seconds, || ask().then_some(()));
}
