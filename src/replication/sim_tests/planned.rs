//! Planned failover, failback and retry: both sites are there, and one of them may go away half way.

use super::*;
use crate::rbd::RbdErrorKind as Kind;
use crate::rbd::sim::{Fault, PoolSpec, SiteSpec};

/// A pair whose last writes have not been replicated when the failover begins.
async fn freshly_written() -> World {
    let mut world = pair().await;
    world.write("last").await;
    world.sim.clear_log();
    world
}

#[tokio::test(start_paused = true)]
async fn a_planned_failover_loses_nothing_wherever_it_is_killed() {
    let world = freshly_written().await;
    world.assert_moved_whole(&world.run().await).await;
    let check = async |world: &World, outcome: &Outcome| world.assert_moved_whole(outcome).await;
    every_crash(freshly_written, async |_| {}, check).await;
}

/// The daemon of the site that it goes to holds the lock for a while after the promotion, and refuses writers.
#[tokio::test(start_paused = true)]
async fn a_volume_that_has_moved_takes_writers_at_once_wherever_it_was_killed() {
    let build = async || {
        let mut config = SimConfig::default();
        config.timing.let_go = secs(4);
        world(config, &MODES).await
    };
    let check = async |world: &World, outcome: &Outcome| world.assert_moved_whole(outcome).await;
    let world = build().await;
    check(&world, &world.run().await).await;
    every_crash(build, async |_| {}, check).await;
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_the_daemon_never_lets_go_of_does_not_hold_up_a_failover() {
    let mut config = SimConfig::default();
    config.timing.let_go = secs(3600);
    let world = world(config, &MODES).await;
    let from = tokio::time::Instant::now();
    let outcome = world.run().await;
    assert!(outcome.values().all(|step| *step == Step::Moved), "{outcome:?}");
    assert!(from.elapsed() < secs(60), "{:?}", from.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_copy_is_not_promoted_before_the_old_side_can_follow_it() {
    let mut config = SimConfig::default();
    (config.timing.register, config.timing.jitter_percent) = (secs(100), 100);
    let world = world(config, &MODES).await;
    let outcome = world.run().await;
    world.assert_moved_whole(&outcome).await;
    let mut world = world.turn("b", "a");
    world.write("on b").await;
    world.sim.advance(secs(60)).await;
    world.sim.assert_no_split_brain_created();
    for v in &world.volumes {
        let seen = world.sim.image("a", POOL, &v.image).unwrap().checksum;
        assert!(v.mode == MirrorMode::Snapshot || seen == v.checksum, "{} is not followed", v.id);
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_side_without_a_daemon_does_not_hold_up_a_failover_for_ever() {
    let mut config = SimConfig::default();
    config.timing.register = secs(100);
    let world = world(config, &MODES).await;
    world.sim.stop_daemon("a");
    let from = tokio::time::Instant::now();
    let outcome = world.run().await;
    world.assert_moved_whole(&outcome).await;
    assert!(from.elapsed() < secs(100), "{:?}", from.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_any_length_between_death_and_resumption_changes_nothing() {
    let check = async |world: &World, outcome: &Outcome| world.assert_moved_whole(outcome).await;
    every_crash(freshly_written, async |world| world.sim.advance(secs(120)).await, check).await;
}

#[tokio::test(start_paused = true)]
async fn a_failback_loses_nothing_wherever_it_is_killed() {
    let build = async || {
        let world = pair().await;
        world.run().await;
        world.sim.advance(secs(30)).await;
        let mut world = world.turn("b", "a");
        world.write("on b").await;
        world.sim.clear_log();
        world
    };
    let check = async |world: &World, outcome: &Outcome| {
        world.assert_moved_whole(outcome).await;
        world.sim.advance(secs(60)).await;
        world.sim.assert_sides_agree();
    };
    every_crash(build, async |_| {}, check).await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_dies_while_the_service_is_away_is_forced() {
    for health in [Health::Dead, Health::Hung, Health::MonOnly] {
        let meanwhile = async |world: &World| world.set_health("a", health);
        let check = async |world: &World, outcome: &Outcome| world.assert_moved(outcome).await;
        every_crash(pair, meanwhile, check).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_dies_in_the_middle_is_forced() {
    for health in [Health::Dead, Health::Hung, Health::MonOnly, Health::OsdOnly] {
        for k in 1..40 {
            let world = pair().await;
            let _report = Report((health, k), world.sim.clone());
            let outcome = world.run_changed(k, |world| world.set_health("a", health)).await;
            world.assert_moved(&outcome).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_dies_is_forced_long_before_the_promotion_would_have_been_given_up() {
    // The demotion is done and does not arrive any more: waiting for it is in vain.
    let world = pair().await;
    let world = World { limits: Limits { promote: secs(3600), ..world.limits }, ..world };
    let from = tokio::time::Instant::now();
    let demoted = |w: &World| w.volumes.iter().all(|v| !w.primary("a", &v.image));
    let killer = async {
        while !demoted(&world) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.set_health("a", Health::Dead);
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = world.run() => outcome,
        () = killer => unreachable!(),
    };
    world.assert_moved(&outcome).await;
    assert!(from.elapsed() < secs(600), "{:?}", from.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_dies_leaves_every_volume_on_the_source() {
    for health in [Health::Dead, Health::Hung, Health::MonOnly] {
        // What was moved before stays moved: the operation had ended for it.
        let check = async |world: &World, outcome: &Outcome| {
            world.assert_settled(outcome);
            for v in &world.volumes {
                let primary = world.primary("a", &v.image) || world.primary("b", &v.image);
                assert!(primary, "{} is primary nowhere: {:?}", v.id, outcome[&v.id]);
            }
        };
        every_crash(pair, async |world| world.set_health("b", health), check).await;
        for k in 1..40 {
            let world = pair().await;
            let _report = Report((health, k), world.sim.clone());
            let outcome = world.run_changed(k, |world| world.set_health("b", health)).await;
            check(&world, &outcome).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_promotion_that_is_never_accepted_is_undone() {
    let build = async || {
        let world = freshly_written().await;
        // Replays when asked, and is stopped as soon as the source has been demoted: the demotion never arrives.
        world.sim.inject(Fault::on("MirrorPromote").site("b").fails(When::Before, Kind::Busy).always());
        world
    };
    let check = async |world: &World, outcome: &Outcome| {
        world.assert_settled(outcome);
        for v in &world.volumes {
            // Only a service killed by the answer itself has got a promotion through.
            let site = if outcome[&v.id] == Step::Moved { "b" } else { "a" };
            assert_eq!(world.sim.image(site, POOL, &v.image).unwrap().checksum, v.checksum);
            let check = CheckWritable { pool: POOL.into(), image: v.image.clone() };
            world.sim.site(site).call(check).await.unwrap();
        }
    };
    let world = build().await;
    let outcome = world.run().await;
    world.failed(&outcome, Reason::PromoteNotAccepted);
    check(&world, &outcome).await;
    every_crash(build, async |_| {}, check).await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_stops_after_the_demotion_ends_in_a_restored_source() {
    let world = pair().await;
    let stopper = async {
        while world.volumes.iter().any(|v| world.primary("a", &v.image)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.sim.stop_daemon("b");
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = world.run() => outcome,
        () = stopper => unreachable!(),
    };
    world.assert_settled(&outcome);
    // The snapshot mode's demotion may have arrived before the daemon stopped.
    let journal = Step::Failed { reason: Reason::PromoteNotAccepted };
    assert_eq!(outcome["id0"], journal);
    // Afterwards, with the daemon back, a retry moves what was left behind.
    world.sim.start_daemon("b");
    world.sim.advance(secs(60)).await;
    let world = World { rows: Rows::new(), ..world };
    world.assert_moved_whole(&world.run().await).await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_does_not_replay_is_not_touched() {
    let world = freshly_written().await;
    world.sim.stop_daemon("b");
    world.sim.advance(secs(60)).await;
    world.sim.clear_log();
    let outcome = world.run().await;
    world.failed(&outcome, Reason::PeerNotReady);
    for request in ["MirrorDemote", "MirrorPromote", "LockBreak"] {
        assert_eq!(world.sim.count(request), 0, "{request}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_stopped_while_the_service_was_away_stops_the_demotion_too() {
    // Ordered and recorded, not done: after the restart the copy must be seen replaying again.
    let world = pair().await;
    world.rows.die_at(1, When::After);
    assert!(world.attempt().await.is_err());
    world.sim.stop_daemon("b");
    world.sim.advance(secs(60)).await;
    world.restart();
    let outcome = world.run().await;
    world.failed(&outcome, Reason::PeerNotReady);
    assert_eq!(world.sim.count("MirrorDemote"), 0, "{}", world.sim.log_text());
}

#[tokio::test(start_paused = true)]
async fn two_primaries_are_left_alone() {
    let world = pair().await;
    world.set_health("a", Health::Dead);
    world.assert_moved(&world.run().await).await;
    world.set_health("a", Health::Alive);
    world.sim.advance(secs(120)).await;
    for (source, target) in [("b", "a"), ("a", "b")] {
        let world = World { rows: Rows::new(), ..pair_of(&world, source, target) };
        world.sim.clear_log();
        let outcome = world.run().await;
        world.failed(&outcome, Reason::BothPrimary);
        for request in ["MirrorDemote", "MirrorPromote", "MirrorResync", "LockBreak"] {
            assert_eq!(world.sim.count(request), 0, "{request}");
        }
    }
}

/// The same world under another operation.
fn pair_of(world: &World, source: &'static str, target: &'static str) -> World {
    let volumes = world.volumes.iter().map(|v| Volume {
        id: v.id.clone(),
        image: v.image.clone(),
        mode: v.mode,
        checksum: v.checksum,
    });
    World {
        sim: world.sim.clone(),
        volumes: volumes.collect(),
        source,
        target,
        limits: world.limits,
        intent: world.intent,
        rows: Rows::new(),
        away: Mutex::default(),
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_left_behind_is_moved_by_a_retry() {
    for (site, request) in [("a", "MirrorDemote"), ("b", "MirrorPromote"), ("b", "MirrorInfo")] {
        let world = world(SimConfig::default(), &[MODES[0], MODES[1], MODES[0], MODES[1]]).await;
        world.sim.inject(Fault::on(request).site(site).image("v0").sticks().always());
        for many in ["MirrorInfoMany", "MirrorStatusMany"] {
            world.sim.inject(Fault::on(many).site(site).image("v0").sticks().always());
        }
        let outcome = world.run().await;
        world.assert_settled(&outcome);
        assert!(matches!(outcome["id0"], Step::Failed { .. }), "{request}: {outcome:?}");
        assert!(world.primary("a", "v0"), "{request}");
        assert!((1..4).all(|n| outcome[&format!("id{n}")] == Step::Moved), "{request}: {outcome:?}");
        world.sim.clear_faults();
        world.sim.advance(secs(30)).await;
        let world = World { rows: Rows::new(), ..world };
        world.assert_moved_whole(&world.run().await).await;
    }
}

#[tokio::test(start_paused = true)]
async fn stuck_images_delay_nobody_else() {
    for (site, request) in [
        ("a", "MirrorDemote"),
        ("a", "MirrorInfo"),
        ("b", "MirrorPromote"),
        ("b", "MirrorInfo"),
        ("b", "MirrorStatus"),
    ] {
        let modes: Vec<_> = (0..60).map(|n| MODES[n % 2]).collect();
        let mut world = world(SimConfig::default(), &modes).await;
        world.limits.concurrency = 8;
        // More stuck images than there are slots, and they come first.
        for n in 0..20 {
            let image = format!("v{n}");
            world.sim.inject(Fault::on(request).site(site).image(&image).sticks().always());
            for many in ["MirrorInfoMany", "MirrorStatusMany"] {
                world.sim.inject(Fault::on(many).site(site).image(&image).sticks().always());
            }
        }
        world.sim.clear_log();
        let begun = tokio::time::Instant::now();
        let rest_moved = async {
            while !(20..60).all(|n| world.primary("b", &format!("v{n}"))) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            begun.elapsed()
        };
        let (outcome, took) = tokio::join!(world.run(), rest_moved);
        world.assert_settled(&outcome);
        // Virtual time. Each stuck call takes 10 to 30 s, each stuck volume a minute.
        assert!(took < secs(40), "{request} on {site}: the others waited {took:?}");
        assert!(outcome.values().any(|s| matches!(s, Step::Failed { .. })), "{request}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_worker_at_any_call_does_not_matter() {
    let world = freshly_written().await;
    world.run().await;
    for k in 1..=world.sim.log().len() {
        for when in [When::Before, When::After] {
            let world = freshly_written().await;
            let _report = Report((k, when), world.sim.clone());
            world.sim.lose_worker_at(k, when);
            world.assert_moved_whole(&world.run().await).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_third_site_follows() {
    let site = |name: &str| SiteSpec {
        name: name.to_owned(),
        aliases: vec![],
        pools: vec![PoolSpec::mirrored(POOL)],
    };
    let three = || SimConfig { sites: vec![site("a"), site("b"), site("c")], ..SimConfig::default() };
    let build = async || {
        let mut world = world(three(), &MODES).await.turn("a", "c");
        world.write("last").await;
        world.sim.clear_log();
        world
    };
    let check = async |world: &World, outcome: &Outcome| {
        world.assert_moved_whole(outcome).await;
        world.sim.advance(secs(90)).await;
        world.sim.assert_sides_agree();
    };
    every_crash(build, async |_| {}, check).await;
    let world = build().await;
    world.set_health("a", Health::Dead);
    world.assert_moved(&world.run().await).await;
    assert!(MODES.iter().enumerate().all(|(n, _)| !world.primary("b", &format!("v{n}"))));
}
