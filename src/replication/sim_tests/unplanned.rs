//! Unplanned failover: the source is dead, hung, or half dead, and may come back at the worst moment.

use super::*;
use crate::rbd::RbdErrorKind as Kind;
use crate::rbd::sim::Fault;
use crate::replication::verdict::{self, Verdict};

const AWAY: [Health; 4] = [Health::Dead, Health::Hung, Health::MonOnly, Health::OsdOnly];

async fn without(health: Health) -> World {
    let world = pair().await;
    world.set_health("a", health);
    world.sim.advance(secs(20)).await;
    world.sim.clear_log();
    world
}

#[tokio::test(start_paused = true)]
async fn what_is_forced_accepts_writers_wherever_the_service_is_killed() {
    for health in AWAY {
        let world = without(health).await;
        world.assert_moved(&world.run().await).await;
        let check = async |world: &World, outcome: &Outcome| world.assert_moved(outcome).await;
        every_crash(async || without(health).await, async |_| {}, check).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_returns_while_the_service_is_away_is_not_made_a_second_primary() {
    for health in AWAY {
        for pause in [1, 100] {
            let meanwhile = async |world: &World| {
                world.set_health("a", Health::Alive);
                world.sim.advance(secs(pause)).await;
            };
            let check = async |world: &World, outcome: &Outcome| {
                world.assert_settled(outcome);
                for v in &world.volumes {
                    // What had been forced before stays where it is; the rest is moved in good order.
                    assert_eq!(outcome[&v.id], Step::Moved, "{}", v.id);
                }
            };
            every_crash(async || without(health).await, meanwhile, check).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_verdict_does_not_outlive_the_site_that_it_condemned() {
    // Thousands of volumes wait for their turn, and the source comes back: from then on nothing is forced.
    for health in [Health::Dead, Health::Hung] {
        let modes: Vec<_> = (0..40).map(|n| MODES[n % 2]).collect();
        let mut world = world(SimConfig::default(), &modes).await;
        world.limits.concurrency = 2;
        world.set_health("a", health);
        // Each forced promotion takes its time, as in snapshot mode on real Ceph.
        world.sim.inject(Fault::on("MirrorPromote").site("b").delays(secs(4)).always());
        let back = Mutex::new(None);
        let returns = async {
            while world.volumes.iter().filter(|v| world.primary("b", &v.image)).count() < 4 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            world.set_health("a", Health::Alive);
            *back.lock().unwrap() = Some(world.sim.log().len());
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = world.run() => outcome,
            () = returns => unreachable!(),
        };
        let from = back.lock().unwrap().unwrap();
        let log = world.sim.log();
        let returned = log[from - 1].at;
        let late = log[from..].iter().filter(|c| {
            matches!(&c.arguments, Request::MirrorPromote(p) if p.force) && c.at > returned + secs(7)
        });
        assert_eq!(late.count(), 0, "forced although the source is back:\n{}", world.sim.log_text());
        assert!(outcome.values().all(|s| *s == Step::Moved), "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_forced_on_a_verdict_that_has_grown_old() {
    // Between the verdict and the first volume lies a database that makes us wait, or a stopped process.
    for health in AWAY {
        let world = without(health).await;
        let engine = world.engine().await;
        world.sim.advance(secs(60)).await;
        world.set_health("a", Health::Alive);
        world.sim.advance(secs(60)).await;
        let outcome = engine.run(world.jobs()).await.unwrap();
        world.assert_moved_whole(&outcome).await;
        let log = world.sim.log();
        let forced = log.iter().filter(|c| matches!(&c.arguments, Request::MirrorPromote(p) if p.force));
        assert_eq!(forced.count(), 0, "{health:?}\n{}", world.sim.log_text());
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_site_is_looked_at_by_one_for_all() {
    let modes: Vec<_> = (0..40).map(|n| MODES[n % 2]).collect();
    let mut world = world(SimConfig::default(), &modes).await;
    world.limits.concurrency = 4;
    world.set_health("a", Health::Dead);
    world.sim.inject(Fault::on("MirrorPromote").site("b").delays(secs(4)).always());
    let began = tokio::time::Instant::now();
    world.assert_moved(&world.run().await).await;
    let log = world.sim.log();
    let looks = log.iter().filter(|c| c.site == "a" && matches!(c.arguments, Request::ProbeMon(_))).count();
    // Three for the verdict, then one at a time, each as long as its timeout.
    let most = 3 + began.elapsed().as_secs() / 5;
    assert!(looks as u64 <= most, "{looks} in {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_lock_of_a_vm_is_never_broken() {
    for health in AWAY {
        let world = world(SimConfig::default(), &[MODES[0], MODES[1], MODES[0], MODES[1]]).await;
        world.set_health("a", health);
        let vms: Vec<_> = ["v0", "v1"].iter().map(|i| world.sim.occupy("b", POOL, i).unwrap()).collect();
        let outcome = world.run().await;
        world.assert_settled(&outcome);
        for (n, vm) in vms.iter().enumerate() {
            assert_eq!(outcome[&format!("id{n}")], Step::Failed { reason: Reason::NotWritable });
            let image = world.sim.image("b", POOL, &format!("v{n}")).unwrap();
            assert_eq!(image.lock.as_ref(), Some(vm), "the VM has lost its lock");
            let fenced = world.sim.site("b").call(BlocklistList {}).await.unwrap();
            assert!(!fenced.contains(vm));
        }
        assert!((2..4).all(|n| outcome[&format!("id{n}")] == Step::Moved), "{outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn images_that_cannot_be_opened_do_not_keep_others_from_accepting_writers() {
    // Each stuck image would hold an exclusive turn for a minute, as long as the others may take.
    let mut world = world(SimConfig::default(), &[MODES[0]; 12]).await;
    world.limits.concurrency = 12;
    world.set_health("a", Health::Hung);
    let stick = || {
        for n in 0..4 {
            let image = format!("v{n}");
            for request in ["CheckWritable", "LockOwners"] {
                world.sim.inject(Fault::on(request).site("b").image(&image).sticks().always());
            }
        }
    };
    stick();
    // At first nobody can tell which locks are a daemon's.
    world.sim.inject(Fault::on("MirrorDaemons").site("b").fails(When::Before, Kind::Other).always());
    let tell = async {
        world.sim.advance(secs(45)).await;
        world.sim.clear_faults();
        stick();
    };
    let (outcome, ()) = tokio::join!(world.run(), tell);
    world.assert_settled(&outcome);
    for n in 0..12 {
        let expected = if n < 4 { Step::Failed { reason: Reason::NotWritable } } else { Step::Moved };
        assert_eq!(outcome[&format!("id{n}")], expected, "id{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_broken_lock_is_enough_for_all() {
    let modes = [MODES[0]; 40];
    let world = world(SimConfig::default(), &modes).await;
    world.set_health("a", Health::Dead);
    world.assert_moved(&world.run().await).await;
    assert_eq!(world.sim.count("LockBreak"), 1, "{}", world.sim.log_text());
}

#[tokio::test(start_paused = true)]
async fn a_degraded_source_never_forces() {
    // Slower than every deadline, but for the probes: demotions time out, the verdict stays.
    for (request, kind) in [("ProbeOsd", Kind::Permission), ("ProbeMon", Kind::Permission)] {
        let world = pair().await;
        world.sim.inject(Fault::on(request).site("a").fails(When::Before, kind).always());
        for request in ["MirrorDemote", "MirrorInfo", "MirrorInfoMany"] {
            world.sim.inject(Fault::on(request).site("a").sticks().always());
        }
        let outcome = world.run().await;
        world.failed(&outcome, Reason::SourceUnreadable);
        assert_eq!(world.sim.count("MirrorPromote"), 0);
    }
    let world = pair().await;
    world.sim.inject(Fault::on("MirrorDemote").site("a").sticks().always());
    let outcome = world.run().await;
    world.failed(&outcome, Reason::DemoteFailed);
    assert_eq!(world.sim.count("MirrorPromote"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_site_that_stutters_while_it_is_judged_is_not_dead() {
    let world = pair().await;
    world.sim.inject(Fault::on("ProbeMon").site("a").times(2).sticks());
    world.sim.inject(Fault::on("ProbeOsd").site("a").times(1).sticks());
    world.assert_moved_whole(&world.run().await).await;
}

#[tokio::test(start_paused = true)]
async fn silence_that_was_met_before_counts_but_never_alone() {
    let timeout = secs(5);
    for health in AWAY {
        let world = pair().await;
        let site = world.sim.site("a");
        // The verdict, and how many probes of the same half it took.
        let judged = async || {
            world.sim.clear_log();
            let verdict = verdict::take(&site, POOL, timeout).await;
            (verdict, world.sim.count("ProbeMon").max(world.sim.count("ProbeOsd")))
        };
        assert_eq!(judged().await, (Verdict::Alive, 1));
        world.set_health("a", health);
        // Two looks of somebody else's, a minute apart.
        for _ in 0..2 {
            verdict::answers(&site, POOL, timeout).await;
            world.sim.advance(secs(60)).await;
        }
        assert_eq!(judged().await, (Verdict::Dead, 1), "{health:?}");
        // Whatever was, a site that answers is alive at once, and begins anew.
        world.set_health("a", Health::Alive);
        world.sim.advance(secs(60)).await;
        assert_eq!(judged().await, (Verdict::Alive, 1), "{health:?}");
        world.set_health("a", health);
        assert_eq!(judged().await, (Verdict::Dead, 3), "{health:?}");
        // Long ago is never.
        world.sim.advance(secs(600)).await;
        assert_eq!(judged().await, (Verdict::Dead, 3), "{health:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_dies_while_its_copies_are_awaited_is_forced() {
    // The copies do not replay at first, so nothing is demoted; then there is nothing left to wait for.
    for health in AWAY {
        let world = pair().await;
        world.sim.stop_daemon("b");
        world.sim.advance(secs(60)).await;
        let outcome = world.run_changed(20, |world| world.set_health("a", health)).await;
        world.assert_moved(&outcome).await;
    }
}

#[tokio::test(start_paused = true)]
async fn with_both_sites_away_nothing_is_claimed() {
    for crash in [None, Some(Crash::Record(1, When::After)), Some(Crash::Record(3, When::After))] {
        let world = pair().await;
        if let Some(crash) = crash {
            assert!(world.run_into(crash).await.is_none());
        }
        world.set_health("a", Health::Dead);
        world.set_health("b", Health::Hung);
        world.restart();
        let outcome = world.run().await;
        world.assert_settled(&outcome);
        assert!(outcome.values().all(|s| matches!(s, Step::Failed { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn a_target_without_copies_is_not_claimed_to_serve() {
    let world = pair().await;
    for v in &world.volumes {
        // A copy that was never made.
        let image = v.image.clone();
        world.sim.site("b").call(MirrorDisable { pool: POOL.into(), image, force: true }).await.unwrap();
        world.sim.stop_daemon("b");
    }
    world.set_health("a", Health::Dead);
    let outcome = world.run().await;
    world.failed(&outcome, Reason::PeerMissing);
    world.set_health("a", Health::Alive);
    world.sim.advance(secs(90)).await;
    let world = World { rows: Rows::new(), ..world };
    let outcome = world.run().await;
    world.assert_settled(&outcome);
    assert!(outcome.values().all(|s| matches!(s, Step::Failed { .. })), "{outcome:?}");
}
