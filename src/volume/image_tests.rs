#![allow(clippy::unwrap_used, clippy::expect_used)]
//! Operations on images, killed at every call to Ceph and run again.

#[path = "image_revert_tests.rs"]
mod reverting;

use std::sync::{Arc, Mutex};

use super::*;
use crate::rbd::sim::crash::{Attempt as Run, Killed, for_every_crash_point};
use crate::rbd::sim::{Fault, ImageView, Sim, SimConfig, When};
use crate::rbd::types::{MirrorMode, SnapOf};

const POOL: &str = "volumes";
const MIB: u64 = 1 << 20;
const SHAPE: Shape = Shape { order: 22, features: 61 };

fn place(sim: &Sim) -> Place {
    Place { site: sim.site("a"), pool: POOL.to_owned() }
}

fn attempt(run: Run) -> Attempt {
    match run {
        Run::First => Attempt::First,
        Run::Resumed => Attempt::Again,
    }
}

async fn write(sim: &Sim, image: &str, text: &str) {
    let (pool, image, data) = (POOL.to_owned(), image.to_owned(), text.as_bytes().to_vec());
    sim.site("a").call(ImageWrite { pool, image, offset: 4096, data }).await.unwrap();
}

/// Somebody else's images, which no operation may touch: a volume with a snapshot and a clone of it.
async fn with_bystanders(config: SimConfig) -> Sim {
    let sim = Sim::new(config);
    let p = place(&sim);
    p.create("other", MIB, SHAPE, Attempt::First).await.unwrap();
    write(&sim, "other", "other").await;
    p.snapshot("other", "snapshot-other", Attempt::First).await.unwrap();
    p.clone_from("other", "snapshot-other", "other-clone", MIB, SHAPE, Attempt::First).await.unwrap();
    p.create("base", MIB, SHAPE, Attempt::First).await.unwrap();
    write(&sim, "base", "base").await;
    sim
}

/// All that can be seen of a pool, watchers left out: a dead worker's watch ends by itself.
fn pool(sim: &Sim) -> Vec<(String, ImageView)> {
    let view = |name: String| {
        let image = sim.image("a", POOL, &name).unwrap_or_else(|| panic!("half of {name} is left"));
        (name, ImageView { watchers: vec![], ..image })
    };
    sim.images("a", POOL).into_iter().map(view).collect()
}

/// What an operation has remembered, and finds again when it is resumed.
type Journal = Mutex<Option<Vec<Parent>>>;

/// As `delete_volume` does it.
async fn delete(p: &Place, image: &str, journal: &Journal) -> Result<(), RbdError> {
    let found = p.inspect(image).await?;
    let known = journal.lock().unwrap().clone();
    let helpers = match known {
        Some(helpers) => helpers,
        None => p.helpers(image, found.as_ref()).await?,
    };
    *journal.lock().unwrap() = Some(helpers.clone());
    p.delete(image, found.as_ref(), None, &helpers).await
}

/// Runs `operation` undisturbed, then killed at each of its calls and run again by the next service, which
/// fences the dead one as recovery does: the same images with the same contents are there at the end.
async fn same_end(
    config: fn() -> SimConfig,
    prepare: impl AsyncFn(&Sim),
    operation: impl AsyncFn(Place, Attempt, &Journal) -> Result<(), RbdError>,
) -> Vec<String> {
    let build = async || {
        let sim = with_bystanders(config()).await;
        prepare(&sim).await;
        (sim.clone(), (sim.client_address(), Arc::new(Journal::default())))
    };
    let (sim, (_, journal)) = build().await;
    let before = pool(&sim);
    operation(place(&sim), Attempt::First, &journal).await.unwrap();
    let end = pool(&sim);
    for name in ["other", "other-clone"] {
        let of = |p: &Vec<(String, ImageView)>| p.iter().find(|(n, _)| n == name).cloned();
        assert_eq!(of(&before), of(&end), "{name} is somebody else's");
    }
    let run = async |sim: Sim, (dead, journal): (String, Arc<Journal>), run: Run| {
        if run == Run::Resumed {
            sim.site("a").call(BlocklistAdd { address: dead, seconds: 60 }).await.unwrap();
        }
        operation(place(&sim), attempt(run), &journal).await
    };
    let check = async |sim: Sim, _| assert_eq!(pool(&sim), end, "{}", sim.log_text());
    assert!(for_every_crash_point(Killed::Service, build, run, check).await > 0);
    end.into_iter().map(|(name, _)| name).collect()
}

fn plain() -> SimConfig {
    SimConfig::default()
}

fn second_format() -> SimConfig {
    SimConfig { clone_v2: true, ..SimConfig::default() }
}

const FORMATS: [fn() -> SimConfig; 2] = [plain, second_format];

#[tokio::test(start_paused = true)]
async fn creation() {
    let names =
        same_end(plain, async |_| {}, async |p: Place, a, _: &Journal| p.create("new", MIB, SHAPE, a).await)
            .await;
    assert_eq!(names, ["base", "new", "other", "other-clone"]);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_made_is_not_taken_for_our_own() {
    let sim = with_bystanders(plain()).await;
    let before = pool(&sim);
    let p = place(&sim);
    let exists = |e: RbdError| assert_eq!(e.kind, RbdErrorKind::Exists);
    exists(p.create("other", MIB, SHAPE, Attempt::First).await.unwrap_err());
    exists(p.snapshot("other", "snapshot-other", Attempt::First).await.unwrap_err());
    exists(p.clone_volume("base", "other", MIB, SHAPE, 5, Attempt::First).await.unwrap_err());
    exists(p.clone_volume("base", "other", MIB, SHAPE, 0, Attempt::First).await.unwrap_err());
    exists(p.clone_from("other", "snapshot-other", "base", MIB, SHAPE, Attempt::First).await.unwrap_err());
    assert_eq!(pool(&sim), before);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_made_is_not_our_own_when_a_worker_dies_over_it() {
    let sim = with_bystanders(plain()).await;
    let p = place(&sim);
    p.clone_from("other", "snapshot-other", "twin", MIB, SHAPE, Attempt::First).await.unwrap();
    let before = pool(&sim);
    for op in ["ImageId", "ImageCreate", "ImageClone"] {
        for when in [When::Before, When::After] {
            sim.inject(Fault::on(op).fails(when, RbdErrorKind::WorkerLost));
            // As large as ours is to be, and a clone of what ours is to be a clone of.
            let made = p.create("other", MIB, SHAPE, Attempt::First).await;
            assert_eq!(made.unwrap_err().kind, RbdErrorKind::Exists, "{op}");
            let clone = p.clone_from("other", "snapshot-other", "twin", MIB, SHAPE, Attempt::First).await;
            assert_eq!(clone.unwrap_err().kind, RbdErrorKind::Exists, "{op}");
            assert_eq!(pool(&sim), before, "{op}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_clone_of_a_snapshot_that_grows_and_is_flattened() {
    for config in FORMATS {
        for flatten in [false, true] {
            let prepare =
                async |sim: &Sim| place(sim).snapshot("base", "snap", Attempt::First).await.unwrap();
            let operation = async |p: Place, a, _: &Journal| {
                p.clone_from("base", "snap", "new", 3 * MIB, SHAPE, a).await?;
                if flatten { p.flatten("new").await } else { Ok(()) }
            };
            same_end(config, prepare, operation).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn clones_of_a_volume_by_depth() {
    for config in FORMATS {
        for depth in [0, 1, 2, 5] {
            // base <- middle <- new: with a depth of 1, new is flattened.
            let prepare = async |sim: &Sim| {
                let p = place(sim);
                p.clone_volume("base", "middle", MIB, SHAPE, 5, Attempt::First).await.unwrap();
                write(sim, "middle", "middle").await;
            };
            let operation = async |p: Place, a, _: &Journal| {
                p.clone_volume("middle", "new", 2 * MIB, SHAPE, depth, a).await
            };
            same_end(config, prepare, operation).await;
        }
    }
    let sim = with_bystanders(plain()).await;
    let p = place(&sim);
    p.clone_volume("base", "one", MIB, SHAPE, 2, Attempt::First).await.unwrap();
    p.clone_volume("one", "two", MIB, SHAPE, 2, Attempt::First).await.unwrap();
    assert_eq!(p.clone_depth("two").await.unwrap(), 2);
    p.clone_volume("two", "three", MIB, SHAPE, 2, Attempt::First).await.unwrap();
    assert_eq!(p.clone_depth("three").await.unwrap(), 0, "flattened");
    assert!(sim.image("a", POOL, "two").unwrap().snaps.is_empty());
    assert_eq!(
        sim.image("a", POOL, "three").unwrap().checksum,
        sim.image("a", POOL, "base").unwrap().checksum
    );
}

#[tokio::test(start_paused = true)]
async fn snapshots() {
    for config in FORMATS {
        let take = async |p: Place, a, _: &Journal| p.snapshot("base", "snap", a).await;
        same_end(config, async |_| {}, take).await;
        for children in [0, 2] {
            let prepare = async |sim: &Sim| {
                let p = place(sim);
                p.snapshot("base", "snap", Attempt::First).await.unwrap();
                for n in 0..children {
                    let child = format!("child{n}");
                    p.clone_from("base", "snap", &child, MIB, SHAPE, Attempt::First).await.unwrap();
                }
            };
            let remove = async |p: Place, _, _: &Journal| p.remove_snapshot("base", "snap").await;
            same_end(config, prepare, remove).await;
        }
    }
}

fn members(images: &[&str]) -> Vec<SnapOf> {
    images.iter().map(|i| SnapOf { image: (*i).to_owned(), snap: format!("snapshot-of-{i}") }).collect()
}

async fn with_members(sim: &Sim) {
    for name in ["one", "two"] {
        place(sim).create(name, MIB, SHAPE, Attempt::First).await.unwrap();
        write(sim, name, name).await;
    }
}

#[tokio::test(start_paused = true)]
async fn snapshots_of_several_images() {
    let set = members(&["base", "one", "two"]);
    let take = async |p: Place, a, _: &Journal| {
        let taken = p.snapshot_together(&set, a).await?;
        assert_eq!(taken, Consistency::Whole);
        Ok(())
    };
    same_end(plain, with_members, take).await;
    // One after the other where one of them cannot be frozen.
    let many_writers = async |sim: &Sim| {
        with_members(sim).await;
        let p = place(sim);
        let shape = Shape { features: features::LAYERING, ..SHAPE };
        p.create("shared", MIB, shape, Attempt::First).await.unwrap();
    };
    let set = members(&["base", "one", "shared"]);
    let take = async |p: Place, a, _: &Journal| {
        let taken = p.snapshot_together(&set, a).await?;
        assert!(matches!(&taken, Consistency::Apart(why) if why.contains("exclusive lock")), "{taken:?}");
        Ok(())
    };
    same_end(plain, many_writers, take).await;
}

#[tokio::test(start_paused = true)]
async fn a_set_of_snapshots_survives_the_loss_of_workers() {
    let set = &members(&["base", "one", "two"]);
    let build = async || {
        let sim = with_bystanders(plain()).await;
        with_members(&sim).await;
        (sim, ())
    };
    let run = async |sim: Sim, (): (), run: Run| {
        place(&sim).snapshot_together(set, attempt(run)).await.map(|taken| {
            assert_eq!(taken, Consistency::Whole, "a lost worker is no reason to take them one by one");
        })
    };
    let check = async |sim: Sim, (): ()| {
        for m in set {
            let snaps = sim.image("a", POOL, &m.image).unwrap().snaps;
            assert_eq!(snaps.len(), 1, "{}", sim.log_text());
        }
    };
    assert!(for_every_crash_point(Killed::Worker, build, run, check).await > 0);
}

#[tokio::test(start_paused = true)]
async fn a_set_of_snapshots_is_not_begun_over_somebody_elses() {
    let sim = with_bystanders(plain()).await;
    with_members(&sim).await;
    place(&sim).snapshot("one", "snapshot-of-one", Attempt::First).await.unwrap();
    let before = pool(&sim);
    let refused = place(&sim).snapshot_together(&members(&["base", "one"]), Attempt::First).await;
    assert_eq!(refused.unwrap_err().kind, RbdErrorKind::Exists);
    assert_eq!(pool(&sim), before, "not even the first of them");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_hangs_is_not_waited_for() {
    let sim = with_bystanders(plain()).await;
    with_members(&sim).await;
    sim.inject(Fault::on("SnapCreateTogether").fails(When::After, RbdErrorKind::TimedOut));
    let taken = place(&sim).snapshot_together(&members(&["base", "one"]), Attempt::First).await.unwrap();
    assert!(matches!(taken, Consistency::Apart(_)), "{taken:?}");
    for image in ["base", "one"] {
        assert_eq!(sim.image("a", POOL, image).unwrap().snaps.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn growth() {
    let prepare = async |sim: &Sim| {
        let (pool, image) = (POOL.to_owned(), "base".to_owned());
        sim.site("a").call(MirrorEnable { pool, image, mode: MirrorMode::Snapshot }).await.unwrap();
    };
    same_end(plain, prepare, async |p: Place, _, _: &Journal| p.grow("base", 7 * MIB).await).await;
    let sim = with_bystanders(plain()).await;
    place(&sim).grow("base", 1).await.unwrap();
    assert_eq!(sim.image("a", POOL, "base").unwrap().size, MIB, "never made smaller");
}

#[tokio::test(start_paused = true)]
async fn deletion_of_a_plain_and_of_a_mirrored_volume() {
    let names =
        same_end(plain, async |_| {}, async |p: Place, _, j: &Journal| delete(&p, "base", j).await).await;
    assert_eq!(names, ["other", "other-clone"]);
    for mode in [MirrorMode::Journal, MirrorMode::Snapshot] {
        let prepare = async |sim: &Sim| {
            let (pool, image) = (POOL.to_owned(), "base".to_owned());
            sim.site("a").call(MirrorEnable { pool, image, mode }).await.unwrap();
            sim.advance(Duration::from_secs(60)).await;
        };
        same_end(plain, prepare, async |p: Place, _, j: &Journal| delete(&p, "base", j).await).await;
    }
}

/// A mirrored volume whose first copy takes `copy` and has just begun.
async fn being_copied(copy: Duration) -> Sim {
    let mut config = plain();
    config.timing.start_journal = copy;
    let sim = with_bystanders(config).await;
    let (pool, image) = (POOL.to_owned(), "base".to_owned());
    let mode = MirrorMode::Journal;
    sim.site("a").call(MirrorEnable { pool, image, mode }).await.unwrap();
    while sim.image("b", POOL, "base").is_none() {
        sim.advance(Duration::from_millis(100)).await;
    }
    sim
}

const WEEK: Duration = Duration::from_secs(604_800);

async fn trash(sim: &Sim) -> usize {
    sim.site("a").call(TrashList { pool: POOL.to_owned() }).await.unwrap().len()
}

#[tokio::test(start_paused = true)]
async fn deletion_during_the_first_copy_leaves_nothing_behind() {
    let cases = [(20, None, 0, 0), (3600, None, 1, 0), (3600, Some(WEEK), 1, 1)];
    for (copy, delay, moves, kept) in cases {
        let sim = being_copied(Duration::from_secs(copy)).await;
        let p = place(&sim);
        let began = tokio::time::Instant::now();
        p.delete("base", p.inspect("base").await.unwrap().as_ref(), delay, &[]).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(90), "{copy}: {:?}", began.elapsed());
        assert_eq!((sim.count("TrashMove"), trash(&sim).await), (moves, kept), "{copy}\n{}", sim.log_text());
        assert!(!sim.images("a", POOL).contains(&"base".to_owned()));
        sim.advance(Duration::from_secs(60)).await;
        assert!(sim.image("b", POOL, "base").is_none(), "the copy goes too");
    }
}

/// A copy that was forced to be the primary has the snapshot of its own making still, and hands it on.
#[tokio::test(start_paused = true)]
async fn deletion_does_not_wait_for_what_an_interrupted_copy_has_left() {
    for mirrored in [true, false] {
        let sim = with_bystanders(plain()).await;
        let (pool, image) = (POOL.to_owned(), "base".to_owned());
        if mirrored {
            let enable = MirrorEnable { pool: pool.clone(), image: image.clone(), mode: MirrorMode::Journal };
            sim.site("a").call(enable).await.unwrap();
            sim.advance(Duration::from_secs(60)).await;
        }
        let left = SnapCreate { pool, image, snap: ".rbd-mirror.1304fa5a.8307d1f3".to_owned() };
        sim.site("a").call(left).await.unwrap();
        let p = place(&sim);
        let found = p.inspect("base").await.unwrap();
        assert!(found.as_ref().unwrap().snaps.is_empty(), "nobody's");
        let began = tokio::time::Instant::now();
        p.delete("base", found.as_ref(), None, &[]).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5), "mirrored: {mirrored}, {:?}", began.elapsed());
        assert_eq!((sim.count("TrashMove"), trash(&sim).await), (0, 0), "{}", sim.log_text());
        assert!(sim.image("a", POOL, "base").is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn deletion_of_a_volume_with_backup_snapshots() {
    let prepare = async |sim: &Sim| {
        let p = place(sim);
        p.snapshot("base", "backup.1a.snap.17.5", Attempt::First).await.unwrap();
    };
    let names = same_end(plain, prepare, async |p: Place, _, j: &Journal| delete(&p, "base", j).await).await;
    assert_eq!(names, ["other", "other-clone"]);
}

/// base <- one <- two, by `.clone_snap`.
async fn chain(sim: &Sim) {
    let p = place(sim);
    p.clone_volume("base", "one", MIB, SHAPE, 5, Attempt::First).await.unwrap();
    p.clone_volume("one", "two", MIB, SHAPE, 5, Attempt::First).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn deletion_of_a_volume_whose_clones_need_it_renames_it() {
    for config in FORMATS {
        let names =
            same_end(config, chain, async |p: Place, _, j: &Journal| delete(&p, "one", j).await).await;
        assert_eq!(names, ["base", "one.deleted", "other", "other-clone", "two"]);
    }
}

#[tokio::test(start_paused = true)]
async fn deletion_of_the_last_clone_takes_its_deleted_ancestors_along() {
    for config in FORMATS {
        let prepare = async |sim: &Sim| {
            chain(sim).await;
            let p = place(sim);
            delete(&p, "base", &Journal::default()).await.unwrap();
            delete(&p, "one", &Journal::default()).await.unwrap();
        };
        let names =
            same_end(config, prepare, async |p: Place, _, j: &Journal| delete(&p, "two", j).await).await;
        assert_eq!(names, ["other", "other-clone"]);
    }
}

#[tokio::test(start_paused = true)]
async fn deletion_of_a_clone_takes_its_helper_snapshot_along() {
    for config in FORMATS {
        let names =
            same_end(config, chain, async |p: Place, _, j: &Journal| delete(&p, "two", j).await).await;
        assert_eq!(names, ["base", "one", "other", "other-clone"]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_in_use_is_busy_and_whole() {
    let sim = with_bystanders(plain()).await;
    let watcher = sim.watch("a", POOL, "base").unwrap();
    let before = pool(&sim);
    assert_eq!(delete(&place(&sim), "base", &Journal::default()).await.unwrap_err().kind, RbdErrorKind::Busy);
    assert_eq!(pool(&sim), before);
    sim.release("a", POOL, "base", &watcher);
    delete(&place(&sim), "base", &Journal::default()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_watch_of_a_dead_client_delays_a_deletion_and_does_not_prevent_it() {
    for (lasts, in_trash) in [(Some(Duration::from_secs(40)), false), (None, true)] {
        let sim = with_bystanders(plain()).await;
        sim.haunt("a", POOL, "base", lasts);
        delete(&place(&sim), "base", &Journal::default()).await.unwrap();
        assert!(!sim.images("a", POOL).contains(&"base".to_owned()));
        let trash = sim.site("a").call(TrashList { pool: POOL.into() }).await.unwrap();
        assert_eq!(trash.iter().any(|t| t.name == "base"), in_trash, "{trash:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_failed_creation_left_is_removed() {
    for config in FORMATS {
        // Failed at any call, then undone, which is killed anywhere too.
        let prepare = async |sim: &Sim| {
            let p = place(sim);
            p.clone_volume("base", "new", MIB, SHAPE, 5, Attempt::First).await.unwrap();
        };
        let names = same_end(config, prepare, async |p: Place, _, _: &Journal| {
            p.undo_create("new", Some("base")).await
        })
        .await;
        assert_eq!(names, ["base", "other", "other-clone"]);
        for k in 1..=12 {
            for when in [When::Before, When::After] {
                let sim = with_bystanders(config()).await;
                let (p, before) = (place(&sim), pool(&sim));
                let dead = sim.client_address();
                sim.crash_at(k, when);
                let _ = p.clone_volume("base", "new", 2 * MIB, SHAPE, 1, Attempt::First).await;
                sim.restart();
                p.site.call(BlocklistAdd { address: dead, seconds: 60 }).await.unwrap();
                p.undo_create("new", Some("base")).await.unwrap();
                assert_eq!(pool(&sim), before, "{when:?} {k}\n{}", sim.log_text());
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_worker_is_survived_without_a_restart() {
    type Operation = fn(Place) -> futures::future::BoxFuture<'static, Result<(), RbdError>>;
    let operations: [Operation; 5] = [
        |p| Box::pin(async move { p.create("new", MIB, SHAPE, Attempt::First).await }),
        |p| Box::pin(async move { p.clone_volume("base", "new", 2 * MIB, SHAPE, 5, Attempt::First).await }),
        |p| Box::pin(async move { p.clone_volume("base", "new", 2 * MIB, SHAPE, 1, Attempt::First).await }),
        |p| Box::pin(async move { p.snapshot("base", "snap", Attempt::First).await }),
        |p| Box::pin(async move { p.grow("base", 2 * MIB).await }),
    ];
    for operation in operations {
        // Lives and is fenced by the service, so that it leaves no watch for long.
        let config = || SimConfig { lost_worker_leaves_watch: false, ..plain() };
        let sim = with_bystanders(config()).await;
        operation(place(&sim)).await.unwrap();
        let end = pool(&sim);
        let build = async || (with_bystanders(config()).await, ());
        let run = async |sim: Sim, (), _| operation(place(&sim)).await;
        let check = async |sim: Sim, ()| assert_eq!(pool(&sim), end);
        assert!(for_every_crash_point(Killed::Worker, build, run, check).await > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn flattens_wait_for_a_place_among_those_that_may_run_at_once() {
    let sim = with_bystanders(SimConfig::default()).await;
    let places = Arc::new(tokio::sync::Semaphore::new(1));
    let p = Place { site: sim.site("a").sharing_flattens(places), pool: POOL.to_owned() };
    for child in ["one", "two"] {
        p.clone_from("other", "snapshot-other", child, MIB, SHAPE, Attempt::First).await.unwrap();
    }
    let second = std::time::Duration::from_secs(1);
    sim.inject(crate::rbd::sim::Fault::on("ImageFlatten").always().delays(second));
    let begun = tokio::time::Instant::now();
    let (one, two) = tokio::join!(p.flatten("one"), p.flatten("two"));
    one.unwrap();
    two.unwrap();
    assert!(begun.elapsed() >= 2 * second, "one after the other");
}

const REVERTED: &str = "snapshot-of-base";

#[tokio::test(start_paused = true)]
async fn taking_over_an_image_and_a_snapshot() {
    let operation = async |p: Place, _, _: &Journal| {
        // The id is what the journal has kept.
        let id = match p.stat("base").await {
            Ok(info) => info.id,
            Err(_) => p.stat("volume-new").await?.id,
        };
        p.rename("base", "volume-new", &id).await
    };
    let names = same_end(plain, async |_| {}, operation).await;
    assert_eq!(names, ["other", "other-clone", "volume-new"]);

    let prepare = async |sim: &Sim| {
        let (pool, image, snap) = (POOL.to_owned(), "base".to_owned(), "mine".to_owned());
        sim.site("a").call(SnapCreate { pool, image, snap }).await.unwrap();
    };
    let operation = async |p: Place, _, _: &Journal| {
        p.rename_snapshot("base", "mine", "snapshot-new").await?;
        p.protect("base", "snapshot-new").await
    };
    same_end(plain, prepare, operation).await;
}

#[tokio::test(start_paused = true)]
async fn nobodys_name_is_taken() {
    let sim = with_bystanders(plain()).await;
    let p = place(&sim);
    let id = p.stat("base").await.unwrap().id;
    let before = pool(&sim);
    assert_eq!(p.rename("base", "other", &id).await.unwrap_err().kind, RbdErrorKind::Exists);
    assert_eq!(p.rename("missing", "new", &id).await.unwrap_err().kind, RbdErrorKind::NotFound);
    let missing = p.rename_snapshot("other", "missing", "new").await.unwrap_err();
    assert_eq!(missing.kind, RbdErrorKind::NotFound);
    assert_eq!(pool(&sim), before);
}
