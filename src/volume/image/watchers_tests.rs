#![allow(clippy::unwrap_used, clippy::expect_used)]
//! Who counts as a user of an image.

use std::time::Duration;

use super::super::{Attempt, Shape};
use super::*;
use crate::rbd::protocol::MirrorEnable;
use crate::rbd::sim::{Sim, SimConfig};

const POOL: &str = "volumes";

async fn world(mode: Option<MirrorMode>) -> (Sim, Place) {
    let sim = Sim::new(SimConfig::default());
    let p = Place { site: sim.site("a"), pool: POOL.to_owned() };
    p.create("v", 1 << 20, Shape { order: 22, features: 61 }, Attempt::First).await.unwrap();
    if let Some(mode) = mode {
        let enable = MirrorEnable { pool: POOL.into(), image: "v".into(), mode };
        sim.site("a").call(enable).await.unwrap();
        sim.advance(Duration::from_secs(120)).await;
    }
    (sim, p)
}

#[tokio::test(start_paused = true)]
async fn whoever_has_it_open_uses_it_unless_he_is_dead() {
    let (sim, p) = world(None).await;
    p.refuse_watched("v").await.unwrap();
    sim.haunt("a", POOL, "v", None);
    p.refuse_watched("v").await.unwrap();
    p.refuse_open("v").await.unwrap();
    let watcher = sim.watch("a", POOL, "v").unwrap();
    assert_eq!(p.user_of("v").await.unwrap().unwrap().address, watcher);
    let refused = p.refuse_watched("v").await.unwrap_err();
    assert_eq!(refused.kind, RbdErrorKind::Busy);
    assert_eq!(refused.message, format!("volumes/v is open at {watcher}"));
}

#[tokio::test(start_paused = true)]
async fn the_daemon_that_follows_a_primary_by_snapshots_is_no_user() {
    let (sim, p) = world(Some(MirrorMode::Snapshot)).await;
    let daemon = sim.watch("a", POOL, "v").unwrap();
    assert_eq!(p.user_of("v").await.unwrap(), None);
    assert_eq!(p.refuse_open("v").await.unwrap_err().kind, RbdErrorKind::Busy);
    // One more than there are daemons, and one that has the lock.
    let user = sim.watch("a", POOL, "v").unwrap();
    assert_eq!(p.refuse_watched("v").await.unwrap_err().kind, RbdErrorKind::Busy);
    for address in [&daemon, &user] {
        sim.release("a", POOL, "v", address);
    }
    sim.occupy("a", POOL, "v").unwrap();
    assert_eq!(p.refuse_watched("v").await.unwrap_err().kind, RbdErrorKind::Busy);
}

#[tokio::test(start_paused = true)]
async fn nobody_follows_by_journal_or_from_a_site_whose_daemon_is_down() {
    let (sim, p) = world(Some(MirrorMode::Journal)).await;
    sim.watch("a", POOL, "v").unwrap();
    assert_eq!(p.refuse_watched("v").await.unwrap_err().kind, RbdErrorKind::Busy);
    let (sim, p) = world(Some(MirrorMode::Snapshot)).await;
    sim.stop_daemon("b");
    sim.advance(Duration::from_secs(120)).await;
    sim.watch("a", POOL, "v").unwrap();
    assert_eq!(p.refuse_watched("v").await.unwrap_err().kind, RbdErrorKind::Busy);
}
