#![allow(clippy::unwrap_used, clippy::expect_used)]
//! What only the simulator can show: dead and hung sites, crash points, races.

use std::collections::BTreeSet;

use super::crash::{Attempt, Killed, for_every_crash_point};
use super::*;
use crate::rbd::RbdErrorKind as Kind;
use crate::rbd::protocol::*;
use crate::rbd::types::MirrorMode;

const POOL: &str = "volumes";

fn create(image: &str) -> ImageCreate {
    ImageCreate { pool: POOL.into(), image: image.into(), size: 1 << 30, order: 22, features: 61 }
}

fn write(image: &str, data: &[u8]) -> ImageWrite {
    ImageWrite { pool: POOL.into(), image: image.into(), offset: 0, data: data.into() }
}

fn enable(image: &str, mode: MirrorMode) -> MirrorEnable {
    MirrorEnable { pool: POOL.into(), image: image.into(), mode }
}

fn promote(image: &str, force: bool) -> MirrorPromote {
    MirrorPromote { pool: POOL.into(), image: image.into(), force }
}

fn demote(image: &str) -> MirrorDemote {
    MirrorDemote { pool: POOL.into(), image: image.into() }
}

fn resync(image: &str) -> MirrorResync {
    MirrorResync { pool: POOL.into(), image: image.into() }
}

fn writable(image: &str) -> CheckWritable {
    CheckWritable { pool: POOL.into(), image: image.into() }
}

fn remove(image: &str) -> ImageRemove {
    ImageRemove { pool: POOL.into(), image: image.into() }
}

fn status(image: &str) -> MirrorStatus {
    MirrorStatus { pool: POOL.into(), image: image.into() }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[track_caller]
fn kind<T: std::fmt::Debug>(result: Result<T, RbdError>) -> Kind {
    result.expect_err("refusal").kind
}

/// A world with one mirrored, replayed image `v`.
async fn mirrored(config: SimConfig, mode: MirrorMode) -> Sim {
    let sim = Sim::new(config);
    let a = sim.site("a");
    a.call(create("v")).await.unwrap();
    a.call(enable("v", mode)).await.unwrap();
    a.call(write("v", b"data")).await.unwrap();
    if mode == MirrorMode::Snapshot {
        a.call(MirrorSnapshot { pool: POOL.into(), image: "v".into() }).await.unwrap();
    }
    // The worlds of a test connect while all is well.
    sim.site("b").call(ProbeMon {}).await.unwrap();
    sim.advance(secs(60)).await;
    sim.assert_sides_agree();
    sim
}

#[tokio::test(start_paused = true)]
async fn forced_promotion_with_the_peer_away_is_writable_only_after_the_daemons_lock_is_broken() {
    let sim = mirrored(SimConfig::default(), MirrorMode::Journal).await;
    let b = sim.site("b");
    sim.set_health("a", Health::Dead);
    sim.advance(secs(30)).await;
    assert_eq!(kind(b.call(promote("v", false)).await), Kind::Busy);
    b.call(promote("v", true)).await.unwrap();
    assert_eq!(kind(b.call(writable("v")).await), Kind::ReadOnly);
    sim.advance(secs(70)).await;
    assert_eq!(kind(b.call(write("v", b"x")).await), Kind::ReadOnly);

    let (pool, image) = (POOL.to_owned(), "v".to_owned());
    let owners = b.call(LockOwners { pool: pool.clone(), image: image.clone() }).await.unwrap();
    assert_eq!(b.call(MirrorDaemons { pool: pool.clone() }).await.unwrap(), owners);
    let break_lock =
        |owner: &str| LockBreak { pool: pool.clone(), image: image.clone(), owner: owner.into() };
    assert_eq!(kind(b.call(break_lock("127.0.0.1:0/1")).await), Kind::Busy);
    b.call(break_lock(&owners[0])).await.unwrap();
    b.call(writable("v")).await.unwrap();
    assert_eq!(b.call(BlocklistList {}).await.unwrap(), owners);
    sim.assert_no_split_brain_created();

    // The peer comes back: primary on both sides; the split-brain shows once the loser is demoted.
    b.call(write("v", b"new")).await.unwrap();
    sim.set_health("a", Health::Alive);
    sim.advance(secs(120)).await;
    let a = sim.site("a");
    assert_eq!(sim.primaries(POOL, "v"), ["a", "b"]);
    assert_eq!(a.call(status("v")).await.unwrap().local.unwrap().description, "local image is primary");
    sim.assert_no_split_brain_created();
    a.call(demote("v")).await.unwrap();
    sim.advance(secs(30)).await;
    assert_eq!(a.call(status("v")).await.unwrap().local.unwrap().description, "split-brain detected");
    assert_eq!(sim.split_brains().len(), 1);
    a.call(resync("v")).await.unwrap();
    sim.advance(secs(120)).await;
    sim.assert_sides_agree();
    sim.assert_no_image_without_primary();
}

#[tokio::test(start_paused = true)]
async fn one_broken_lock_frees_every_image_of_that_daemon() {
    let sim = Sim::new(SimConfig::default());
    let (a, b) = (sim.site("a"), sim.site("b"));
    for image in ["v1", "v2"] {
        a.call(create(image)).await.unwrap();
        a.call(enable(image, MirrorMode::Journal)).await.unwrap();
    }
    b.call(ProbeMon {}).await.unwrap();
    sim.advance(secs(60)).await;
    sim.set_health("a", Health::Hung);
    for image in ["v1", "v2"] {
        b.call(promote(image, true)).await.unwrap();
        assert_eq!(kind(b.call(writable(image)).await), Kind::ReadOnly);
    }
    let owner = sim.image("b", POOL, "v1").unwrap().lock.unwrap();
    b.call(LockBreak { pool: POOL.into(), image: "v1".into(), owner }).await.unwrap();
    b.call(writable("v1")).await.unwrap();
    b.call(writable("v2")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_lock_falls_by_itself_when_the_peer_returns() {
    let sim = mirrored(SimConfig::default(), MirrorMode::Journal).await;
    let b = sim.site("b");
    sim.set_health("a", Health::Hung);
    b.call(promote("v", true)).await.unwrap();
    assert_eq!(kind(b.call(writable("v")).await), Kind::ReadOnly);
    sim.set_health("a", Health::Alive);
    sim.advance(secs(10)).await;
    b.call(writable("v")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn sites_answer_as_their_health_lets_them() {
    let sim = mirrored(SimConfig::default(), MirrorMode::Journal).await;
    let a = sim.site("a");
    let stranger = sim.another_client().site("a");
    let probe_osd = || ProbeOsd { pool: POOL.into() };
    for health in [Health::Dead, Health::Hung] {
        sim.set_health("a", health);
        let before = tokio::time::Instant::now();
        assert_eq!(kind(a.call(ProbeMon {}).await), Kind::TimedOut);
        assert_eq!(before.elapsed(), Class::Probe.deadline());
        assert_eq!(kind(stranger.call(ProbeMon {}).await), Kind::Unreachable);
    }
    sim.set_health("a", Health::MonOnly);
    a.call(ProbeMon {}).await.unwrap();
    assert_eq!(kind(a.call(probe_osd()).await), Kind::TimedOut);
    sim.set_health("a", Health::OsdOnly);
    assert_eq!(kind(a.call(ProbeMon {}).await), Kind::TimedOut);
    a.call(probe_osd()).await.unwrap();
    sim.set_health("a", Health::Denied);
    assert_eq!(kind(sim.another_client().site("a").call(ProbeMon {}).await), Kind::Permission);
    sim.set_health("a", Health::Slow(secs(60)));
    assert_eq!(kind(a.call(create("slow")).await), Kind::TimedOut);
    assert!(sim.image("a", POOL, "slow").is_some(), "a slow site does it nevertheless");
    sim.set_health("a", Health::Alive);
    stranger.call(ProbeMon {}).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn rules_harm_just_the_calls_that_they_name() {
    let sim = mirrored(SimConfig::default(), MirrorMode::Journal).await;
    let a = sim.site("a");
    sim.inject(Fault::on("ImageCreate").image("x").nth(2).fails(When::Before, Kind::NoSpace));
    a.call(create("x")).await.unwrap();
    a.call(create("y")).await.unwrap();
    assert_eq!(kind(a.call(create("x")).await), Kind::NoSpace);
    assert_eq!(kind(a.call(create("x")).await), Kind::Exists);

    sim.fail_nth(1, When::After, Kind::TimedOut);
    assert_eq!(kind(a.call(create("z")).await), Kind::TimedOut);
    assert!(sim.image("a", POOL, "z").is_some());
    assert!(sim.log().last().unwrap().effect);

    sim.inject(Fault::any().site("a").image("y").sticks().always());
    assert_eq!(kind(a.call(remove("y")).await), Kind::TimedOut);
    a.call(remove("z")).await.unwrap();
    sim.clear_faults();
    a.call(remove("y")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_foreign_lock_is_never_given_up_and_a_watcher_stops_only_removal() {
    let sim = Sim::new(SimConfig::default());
    let a = sim.site("a");
    a.call(create("v")).await.unwrap();
    let vm = sim.occupy("a", POOL, "v").unwrap();
    assert_eq!(kind(a.call(writable("v")).await), Kind::ReadOnly);
    assert_eq!(kind(a.call(remove("v")).await), Kind::Busy);
    let bin = TrashMove { pool: POOL.into(), image: "v".into(), delay: 0 };
    assert_eq!(kind(a.call(bin).await), Kind::Busy);
    let resize = ImageResize { pool: POOL.into(), image: "v".into(), size: 2 << 30 };
    a.call(resize).await.expect("the owner of the lock resizes for others");
    sim.release("a", POOL, "v", &vm);
    let watcher = sim.watch("a", POOL, "v").unwrap();
    a.call(writable("v")).await.unwrap();
    assert_eq!(kind(a.call(remove("v")).await), Kind::Busy);
    a.call(BlocklistAdd { address: watcher, seconds: 60 }).await.unwrap();
    a.call(remove("v")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_workers_watch_stays_for_a_while_or_until_it_is_fenced() {
    let sim = Sim::new(SimConfig::default());
    sim.site("a").call(create("v")).await.unwrap();
    sim.site("a").call(create("w")).await.unwrap();
    for (image, fence) in [("v", false), ("w", true)] {
        let dead = sim.client_address();
        sim.crash_at(1, When::Before);
        assert_eq!(kind(sim.site("a").call(remove(image)).await), Kind::WorkerLost);
        assert_eq!(kind(sim.site("a").call(ProbeMon {}).await), Kind::WorkerLost, "dead until the restart");
        sim.restart();
        assert_ne!(sim.client_address(), dead);
        assert_eq!(kind(sim.site("a").call(remove(image)).await), Kind::Busy);
        if fence {
            sim.site("a").call(BlocklistAdd { address: dead, seconds: 60 }).await.unwrap();
        } else {
            sim.advance(secs(30)).await;
        }
        sim.site("a").call(remove(image)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_unforced_promotion_beside_a_primary_is_noticed_as_a_sin() {
    let config = SimConfig { promote_races_percent: 100, ..SimConfig::default() };
    let sim = mirrored(config, MirrorMode::Journal).await;
    sim.site("b").call(promote("v", false)).await.unwrap();
    assert_eq!(sim.split_brains().len(), 1);
    // The same happens without the switch, as long as the new primary has not been noticed.
    let sim = mirrored(SimConfig::default(), MirrorMode::Journal).await;
    let (a, b) = (sim.site("a"), sim.site("b"));
    a.call(demote("v")).await.unwrap();
    sim.advance(secs(5)).await;
    b.call(promote("v", false)).await.unwrap();
    a.call(promote("v", false)).await.unwrap();
    assert_eq!(sim.primaries(POOL, "v"), ["a", "b"]);
    assert_eq!(sim.split_brains().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_status_may_be_stale() {
    let sim = mirrored(SimConfig::default(), MirrorMode::Journal).await;
    let a = sim.site("a");
    let text = async || a.call(status("v")).await.unwrap().local.unwrap().description;
    assert_eq!(text().await, "local image is primary");
    a.call(demote("v")).await.unwrap();
    assert_eq!(text().await, "local image is primary", "not true any more");
    sim.advance(secs(30)).await;
    assert_eq!(text().await, "remote image is not primary");
}

#[tokio::test(start_paused = true)]
async fn a_stopped_daemon_lets_go_and_a_started_one_catches_up() {
    let sim = mirrored(SimConfig::default(), MirrorMode::Journal).await;
    sim.stop_daemon("b");
    assert_eq!(sim.image("b", POOL, "v").unwrap().lock, None);
    sim.site("a").call(write("v", b"more")).await.unwrap();
    sim.advance(secs(60)).await;
    assert_ne!(sim.image("a", POOL, "v").unwrap().checksum, sim.image("b", POOL, "v").unwrap().checksum);
    sim.start_daemon("b");
    sim.advance(secs(60)).await;
    sim.assert_sides_agree();
}

#[tokio::test(start_paused = true)]
async fn data_written_after_the_last_contact_is_lost_by_a_forced_failover_alone() {
    let sim = mirrored(SimConfig::default(), MirrorMode::Snapshot).await;
    let (a, b) = (sim.site("a"), sim.site("b"));
    a.call(write("v", b"LOST")).await.unwrap();
    sim.set_health("a", Health::Dead);
    b.call(promote("v", true)).await.unwrap();
    let read = ImageRead { pool: POOL.into(), image: "v".into(), snap: None, offset: 0, length: 4 };
    assert_eq!(b.call(read).await.unwrap(), b"data");
    b.call(writable("v")).await.expect("no trap in snapshot mode");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "nowhere primary")]
async fn the_check_finds_an_image_without_primary() {
    let sim = mirrored(SimConfig::default(), MirrorMode::Journal).await;
    sim.site("a").call(demote("v")).await.unwrap();
    sim.assert_no_image_without_primary();
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "not primary on exactly one side")]
async fn the_check_finds_two_primaries() {
    let sim = mirrored(SimConfig::default(), MirrorMode::Journal).await;
    sim.site("b").call(promote("v", true)).await.unwrap();
    sim.assert_sides_agree();
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_log() {
    let run = async |seed| {
        let sim = mirrored(SimConfig::seeded(seed), MirrorMode::Snapshot).await;
        let (a, b) = (sim.site("a"), sim.site("b"));
        a.call(demote("v")).await.unwrap();
        while b.call(promote("v", false)).await.is_err() {}
        sim.log_text()
    };
    assert_eq!(run(7).await, run(7).await);
    let different: BTreeSet<String> = [run(1).await, run(2).await, run(3).await].into();
    assert!(different.len() > 1, "the seed has no influence");
}

/// A create as an operation would do it, made to be resumable.
async fn create_operation(sim: Sim, attempt: Attempt) -> Result<(), RbdError> {
    let a = sim.site("a");
    match a.call(create("new")).await {
        Err(e) if e.kind == Kind::Exists && attempt == Attempt::Resumed => {
            let found = a.call(ImageStat { pool: POOL.into(), image: "new".into() }).await;
            if found.is_err() {
                a.call(ImageRemove { pool: POOL.into(), image: "new".into() }).await?;
                a.call(create("new")).await?;
            }
        }
        other => other?,
    }
    a.call(enable("new", MirrorMode::Journal)).await?;
    a.call(MetadataSet { pool: POOL.into(), image: "new".into(), key: "k".into(), value: "v".into() }).await
}

#[tokio::test(start_paused = true)]
async fn every_crash_point_of_a_sound_operation_is_survived() {
    let build = async || (Sim::new(SimConfig::default()), ());
    let check = async |sim: Sim, ()| {
        sim.advance(secs(60)).await;
        sim.assert_sides_agree();
        assert_eq!(sim.images("b", POOL), ["new"]);
    };
    let run = |sim, (), attempt| create_operation(sim, attempt);
    let points = for_every_crash_point(Killed::Service, build, run, check).await;
    assert_eq!(points, 7, "three calls, before and after, and one in its midst");
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "did not survive the loss of a worker")]
async fn the_helper_finds_an_operation_that_does_not_survive_a_lost_worker() {
    let build = async || (Sim::new(SimConfig::default()), ());
    let run = |sim, (), attempt| create_operation(sim, attempt);
    for_every_crash_point(Killed::Worker, build, run, async |_, ()| {}).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "resumption failed")]
async fn the_helper_finds_an_operation_that_cannot_be_resumed() {
    let build = async || (Sim::new(SimConfig::default()), ());
    let run = |sim, (), _| create_operation(sim, Attempt::First);
    for_every_crash_point(Killed::Service, build, run, async |_, ()| {}).await;
}

#[tokio::test(start_paused = true)]
async fn thousands_of_images_fail_over_in_a_moment_of_real_time() {
    let sim = Sim::new(SimConfig::default());
    let (a, b) = (sim.site("a"), sim.site("b"));
    let names: Vec<String> = (0..1000).map(|n| format!("v{n}")).collect();
    for name in &names {
        a.call(create(name)).await.unwrap();
        a.call(enable(name, MirrorMode::Journal)).await.unwrap();
    }
    sim.advance(secs(120)).await;
    let all = names.iter().map(|name| {
        let (a, b) = (a.clone(), b.clone());
        async move {
            a.call(demote(name)).await.unwrap();
            while b.call(promote(name, false)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    futures::future::join_all(all).await;
    sim.advance(secs(120)).await;
    sim.assert_sides_agree();
    sim.assert_no_split_brain_created();
}
