#![allow(clippy::unwrap_used, clippy::expect_used)]
//! Deferred deletions and their purge, killed at every call to Ceph and run again.

use super::super::Shape;
use super::*;
use crate::rbd::sim::crash::{Attempt as Run, Killed, for_every_crash_point};
use crate::rbd::sim::{Sim, SimConfig};
use crate::rbd::types::{MirrorMode, features};

const POOL: &str = "volumes";
const MIB: u64 = 1 << 20;
const SHAPE: Shape = Shape { order: 22, features: features::LAYERING | features::EXCLUSIVE_LOCK };
const WEEK: Duration = Duration::from_secs(604_800);

fn place(sim: &Sim) -> Place {
    Place { site: sim.site("a"), pool: POOL.to_owned() }
}

async fn trash(sim: &Sim) -> Vec<String> {
    let entries = sim.site("a").call(TrashList { pool: POOL.to_owned() }).await.unwrap();
    let mut names: Vec<String> = entries.into_iter().map(|e| e.name).collect();
    names.sort();
    names
}

async fn id(sim: &Sim, image: &str) -> String {
    place(sim).stat(image).await.unwrap().id
}

async fn delete(p: &Place, image: &str, delay: Duration) -> Result<(), RbdError> {
    let found = p.inspect(image).await?;
    p.delete(image, found.as_ref(), Some(delay), &p.helpers(image, found.as_ref()).await?).await
}

/// base <- one <- two, by helper snapshots.
async fn chain(config: SimConfig) -> Sim {
    let sim = Sim::new(config);
    let p = place(&sim);
    p.create("base", MIB, SHAPE, Attempt::First).await.unwrap();
    p.clone_volume("base", "one", MIB, SHAPE, 5, Attempt::First).await.unwrap();
    p.clone_volume("one", "two", MIB, SHAPE, 5, Attempt::First).await.unwrap();
    sim
}

fn formats() -> [SimConfig; 2] {
    [SimConfig::default(), SimConfig { clone_v2: true, ..SimConfig::default() }]
}

#[tokio::test(start_paused = true)]
async fn a_deferred_deletion_keeps_the_image_however_often_it_is_cut_short() {
    let build = async || {
        let sim = chain(SimConfig::default()).await;
        let dead = sim.client_address();
        (sim, dead)
    };
    let run = async |sim: Sim, dead: String, run: Run| {
        if run == Run::Resumed {
            sim.site("a").call(BlocklistAdd { address: dead, seconds: 60 }).await.unwrap();
        }
        delete(&place(&sim), "two", WEEK).await
    };
    let check = async |sim: Sim, _| {
        assert_eq!(sim.images("a", POOL), ["base", "one"], "{}", sim.log_text());
        assert_eq!(trash(&sim).await, ["two"]);
        // It is a clone still: what it hangs on is there.
        assert_eq!(sim.image("a", POOL, "one").unwrap().snaps, ["two.clone_snap"]);
    };
    assert!(for_every_crash_point(Killed::Service, build, run, check).await > 2);
}

#[tokio::test(start_paused = true)]
async fn a_purge_takes_along_what_only_the_image_needed() {
    for config in formats() {
        let sim = chain(config).await;
        let p = place(&sim);
        let two = id(&sim, "two").await;
        delete(&p, "two", Duration::from_secs(5)).await.unwrap();
        // Needed by what is in the trash.
        delete(&p, "one", Duration::from_secs(5)).await.unwrap();
        assert_eq!(sim.images("a", POOL), ["base", "one.deleted"]);
        assert_eq!(p.remove_from_trash(&two).await.unwrap(), Some(Kept::InUse), "not due");
        sim.advance(Duration::from_secs(6)).await;
        let found = p.inspect(&in_trash(&two)).await.unwrap();
        let helpers = p.helpers("two", found.as_ref()).await.unwrap();
        assert_eq!(helpers.len(), 2, "{helpers:?}");
        assert_eq!(p.remove_from_trash(&two).await.unwrap(), None);
        p.tidy(&helpers, Some(Duration::ZERO)).await;
        // The parent waits its own time, and needs its own parent.
        assert_eq!(
            (sim.images("a", POOL), trash(&sim).await),
            (vec!["base".into()], vec!["one.deleted".into()])
        );
        assert_eq!(sim.image("a", POOL, "base").unwrap().snaps, ["one.clone_snap"]);
        assert_eq!(p.remove_from_trash(&two).await.unwrap(), None, "gone already");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_purge_that_was_cut_short_has_left_is_tidied_later() {
    for config in formats() {
        let sim = chain(config).await;
        let p = place(&sim);
        let two = id(&sim, "two").await;
        delete(&p, "two", Duration::ZERO).await.unwrap();
        delete(&p, "one", Duration::ZERO).await.unwrap();
        p.tidy_parent("one.deleted", WEEK).await.unwrap();
        assert_eq!(sim.images("a", POOL), ["base", "one.deleted"], "needed");
        assert_eq!(p.remove_from_trash(&two).await.unwrap(), None);
        // Here it died.
        p.tidy_parent("one.deleted", WEEK).await.unwrap();
        assert_eq!(
            (sim.images("a", POOL), trash(&sim).await),
            (vec!["base".into()], vec!["one.deleted".into()])
        );
        p.tidy_parent("one.deleted", WEEK).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_open_somewhere_is_not_moved_and_clones_keep_what_they_need() {
    let sim = chain(SimConfig { clone_v2: true, ..SimConfig::default() }).await;
    let p = place(&sim);
    let watcher = sim.watch("a", POOL, "two").unwrap();
    assert_eq!(delete(&p, "two", WEEK).await.unwrap_err().kind, RbdErrorKind::Busy);
    assert!(trash(&sim).await.is_empty());
    sim.release("a", POOL, "two", &watcher);

    // A clone of a snapshot that has been deleted since.
    p.snapshot("two", "snap", Attempt::First).await.unwrap();
    p.clone_from("two", "snap", "three", MIB, SHAPE, Attempt::First).await.unwrap();
    p.remove_snapshot("two", "snap").await.unwrap();
    let two = id(&sim, "two").await;
    delete(&p, "two", Duration::ZERO).await.unwrap();
    assert_eq!(p.remove_from_trash(&two).await.unwrap(), Some(Kept::Needed(1)));
    assert!(sim.image("a", POOL, "three").is_some());
    p.clear_away("three").await.unwrap();
    assert_eq!(p.remove_from_trash(&two).await.unwrap(), None);
}

/// Clone format 1: the snapshot is in use as long as the clone hangs on it.
#[tokio::test(start_paused = true)]
async fn a_snapshot_can_be_deleted_although_its_clone_waits_in_the_trash() {
    let sim = chain(SimConfig::default()).await;
    let p = place(&sim);
    p.snapshot("base", "snap", Attempt::First).await.unwrap();
    p.clone_from("base", "snap", "new", MIB, SHAPE, Attempt::First).await.unwrap();
    delete(&p, "new", WEEK).await.unwrap();
    p.remove_snapshot("base", "snap").await.unwrap();
    assert_eq!(trash(&sim).await, ["new"]);
    assert_eq!(sim.count("ImageFlatten"), 1);
}

#[tokio::test(start_paused = true)]
async fn the_copy_of_a_mirrored_image_goes_when_it_is_deferred() {
    for mode in [MirrorMode::Journal, MirrorMode::Snapshot] {
        let sim = chain(SimConfig::default()).await;
        let p = place(&sim);
        p.create("mine", MIB, Shape { order: 22, features: 61 }, Attempt::First).await.unwrap();
        let (pool, image) = (POOL.to_owned(), "mine".to_owned());
        sim.site("a").call(MirrorEnable { pool, image, mode }).await.unwrap();
        sim.advance(Duration::from_secs(60)).await;
        assert!(sim.image("b", POOL, "mine").is_some());
        // The peer's daemon looks like any client, and lets go when mirroring ends.
        let daemon = sim.watch("a", POOL, "mine").unwrap();
        let lets_go = async {
            while sim.image("a", POOL, "mine").is_some_and(|i| i.mirror.is_some()) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            sim.release("a", POOL, "mine", &daemon);
        };
        let mine = id(&sim, "mine").await;
        let (deleted, ()) = tokio::join!(delete(&p, "mine", Duration::ZERO), lets_go);
        deleted.unwrap();
        sim.advance(Duration::from_secs(60)).await;
        assert_eq!(trash(&sim).await, ["mine"]);
        assert!(sim.image("b", POOL, "mine").is_none());
        assert_eq!(p.remove_from_trash(&mine).await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_mirrored_image_that_is_in_use_is_mirrored_again() {
    for mode in [MirrorMode::Journal, MirrorMode::Snapshot] {
        let sim = chain(SimConfig::default()).await;
        let p = place(&sim);
        p.create("mine", MIB, Shape { order: 22, features: 61 }, Attempt::First).await.unwrap();
        let (pool, image) = (POOL.to_owned(), "mine".to_owned());
        sim.site("a").call(MirrorEnable { pool, image, mode }).await.unwrap();
        sim.advance(Duration::from_secs(60)).await;
        sim.watch("a", POOL, "mine").unwrap();
        assert_eq!(delete(&p, "mine", WEEK).await.unwrap_err().kind, RbdErrorKind::Busy);
        assert!(trash(&sim).await.is_empty());
        p.mirror_again("mine", mode).await.unwrap();
        assert!(sim.image("a", POOL, "mine").unwrap().mirror.is_some());
        p.mirror_again("mine", mode).await.unwrap();
        // Two are more than the peer's daemon: nothing is touched.
        sim.watch("a", POOL, "mine").unwrap();
        let disabled = sim.count("MirrorDisable");
        assert_eq!(delete(&p, "mine", WEEK).await.unwrap_err().kind, RbdErrorKind::Busy);
        assert_eq!(sim.count("MirrorDisable"), disabled);
    }
}
