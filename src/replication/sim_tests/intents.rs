//! What an operator says of the source widens or narrows what is forced, and never beyond what he said; killed
//! anywhere.

use super::*;
use crate::rbd::RbdErrorKind as Kind;
use crate::rbd::sim::Fault;
use crate::replication::intent::Intent;

async fn pair_with(intent: Intent) -> World {
    World { intent, ..pair().await }
}

fn forced(world: &World) -> usize {
    let log = world.sim.log();
    log.iter().filter(|c| matches!(&c.arguments, Request::MirrorPromote(p) if p.force)).count()
}

/// Answers its probes in part, and demotes nothing in time.
fn degrade(world: &World) {
    world.sim.inject(Fault::on("ProbeOsd").site("a").fails(When::Before, Kind::Permission).always());
    world.sim.inject(Fault::on("MirrorDemote").site("a").sticks().always());
}

#[tokio::test(start_paused = true)]
async fn in_good_order_every_intent_is_the_same() {
    for intent in Intent::ALL {
        let world = pair_with(intent).await;
        world.assert_moved_whole(&world.run().await).await;
        assert_eq!(forced(&world), 0, "{intent:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_planned_move_forces_nothing_even_when_its_site_dies_under_it() {
    for health in [Health::Dead, Health::Hung, Health::MonOnly, Health::OsdOnly] {
        for after in [1, 6, 12, 20, 30] {
            let world = pair_with(Intent::Planned).await;
            let outcome = world.run_changed(after, |world| world.set_health("a", health)).await;
            assert_eq!(forced(&world), 0, "{health:?} after {after}");
            world.sim.assert_no_split_brain_created();
            for (id, step) in &outcome {
                assert!(matches!(step, Step::Moved | Step::Failed { .. }), "{id} {step:?}");
            }
        }
    }
    let build = async || {
        let world = pair_with(Intent::Planned).await;
        world.set_health("a", Health::Dead);
        world
    };
    every_crash_of(
        Crash::all_records,
        build,
        async |_| {},
        async |world, outcome| {
            assert!(
                outcome.values().all(|s| *s == Step::Failed { reason: Reason::SourceDied }),
                "{outcome:?}"
            );
            assert_eq!(forced(world), 0);
        },
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_site_is_left_whatever_else_was_ordered() {
    for intent in [Intent::Unplanned, Intent::Force] {
        let build = async || {
            let world = pair_with(intent).await;
            world.set_health("a", Health::Dead);
            world
        };
        let check = async |world: &World, outcome: &Outcome| world.assert_moved(outcome).await;
        every_crash(build, async |_| {}, check).await;
    }
}

#[tokio::test(start_paused = true)]
async fn unplanned_leaves_a_site_that_does_not_answer_for_its_images_and_no_other() {
    for (intent, moves) in [(Intent::Automatic, false), (Intent::Planned, false), (Intent::Unplanned, true)] {
        let world = pair_with(intent).await;
        world.sim.inject(Fault::on("ProbeOsd").site("a").fails(When::Before, Kind::Permission).always());
        for request in ["MirrorDemote", "MirrorInfo", "MirrorInfoMany"] {
            world.sim.inject(Fault::on(request).site("a").sticks().always());
        }
        let outcome = world.run().await;
        let expected = if moves { Step::Moved } else { Step::Failed { reason: Reason::SourceUnreadable } };
        assert!(outcome.values().all(|s| *s == expected), "{intent:?} {outcome:?}");
        assert_eq!(forced(&world) > 0, moves);
    }
    // It says that it is primary: only an order to force leaves it then.
    let world = pair_with(Intent::Unplanned).await;
    degrade(&world);
    let outcome = world.run().await;
    world.failed(&outcome, Reason::DemoteFailed);
    assert_eq!(forced(&world), 0);
}

#[tokio::test(start_paused = true)]
async fn force_waits_until_the_demotion_has_had_its_time() {
    for degraded in [true, false] {
        let world = pair_with(Intent::Force).await;
        world.sim.inject(Fault::on("MirrorDemote").site("a").image("v0").sticks().always());
        if degraded {
            world.sim.inject(Fault::on("ProbeOsd").site("a").fails(When::Before, Kind::Permission).always());
        }
        let outcome = world.run().await;
        assert!(outcome.values().all(|s| *s == Step::Moved), "{outcome:?}");
        let log = world.sim.log();
        let at = |image: &str, find: fn(&Request, &str) -> bool| {
            log.iter().find(|c| find(&c.arguments, image)).map(|c| c.at)
        };
        let demoted = at("v0", |r, i| matches!(r, Request::MirrorDemote(d) if d.image == i)).unwrap();
        let forced =
            at("v0", |r, i| matches!(r, Request::MirrorPromote(p) if p.force && p.image == i)).unwrap();
        assert!(forced >= demoted + world.limits.demote, "{:?}", forced - demoted);
        let other = at("v1", |r, i| matches!(r, Request::MirrorPromote(p) if p.force && p.image == i));
        assert_eq!(other, None, "what could be demoted is moved in good order");
    }
}

#[tokio::test(start_paused = true)]
async fn what_force_has_begun_it_ends_wherever_it_is_killed() {
    let build = async || {
        let world = pair_with(Intent::Force).await;
        degrade(&world);
        world
    };
    let check = async |world: &World, outcome: &Outcome| {
        for v in &world.volumes {
            assert_eq!(outcome[&v.id], Step::Moved, "{}", v.id);
            assert!(world.primary("b", &v.image));
            let check = CheckWritable { pool: POOL.into(), image: v.image.clone() };
            world.sim.site("b").call(check).await.unwrap();
        }
    };
    every_crash_of(Crash::all_records, build, async |_| {}, check).await;
}

#[tokio::test(start_paused = true)]
async fn a_site_that_is_well_again_is_left_in_good_order_after_all() {
    // Killed after the force was recorded; the site has recovered before the successor looks.
    let world = pair_with(Intent::Unplanned).await;
    world.sim.inject(Fault::on("ProbeOsd").site("a").fails(When::Before, Kind::Permission).always());
    for request in ["MirrorDemote", "MirrorInfo", "MirrorInfoMany"] {
        world.sim.inject(Fault::on(request).site("a").sticks().always());
    }
    world.sim.inject(Fault::on("MirrorPromote").site("b").fails(When::Before, Kind::Busy).always());
    let overriding = async {
        while !world.volumes.iter().all(|v| world.rows.step(&v.id) == Some(Step::Overriding)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        outcome = world.run() => panic!("{outcome:?}"),
        () = overriding => {}
    }
    world.sim.clear_faults();
    world.restart();
    let before = forced(&world);
    world.assert_moved_whole(&world.run().await).await;
    assert_eq!(forced(&world), before, "nothing is forced beside a living primary");
}
