//! A backend of twenty volumes, killed at every step of every one of them.
//!
//! With two volumes the steps of one hardly overlap with those of the other. Twenty are in all states at
//! once, and more than are moved at a time, so that a crash finds some ended, some half way, and some not begun.

use super::*;

async fn twenty() -> World {
    let modes: Vec<_> = (0..20).map(|n| MODES[n % 2]).collect();
    let mut world = world(SimConfig::default(), &modes).await;
    world.limits.concurrency = 8;
    world.write("last").await;
    world.sim.clear_log();
    world
}

async fn twenty_without(health: Health) -> World {
    let world = twenty().await;
    world.set_health("a", health);
    world.sim.advance(secs(20)).await;
    world.sim.clear_log();
    world
}

#[tokio::test(start_paused = true)]
async fn a_planned_failover_of_twenty_is_ended_after_a_crash_at_any_step_of_any_volume() {
    let check = async |world: &World, outcome: &Outcome| world.assert_moved_whole(outcome).await;
    let points = every_crash_of(Crash::all, twenty, async |_| {}, check).await;
    // At least a demotion, a promotion and two records each, before and after.
    assert!(points >= 20 * 8, "{points}");
}

#[tokio::test(start_paused = true)]
async fn an_unplanned_failover_of_twenty_is_ended_after_a_crash_at_any_step_of_any_volume() {
    for health in [Health::Dead, Health::Hung] {
        let check = async |world: &World, outcome: &Outcome| world.assert_moved(outcome).await;
        let build = async || twenty_without(health).await;
        let points = every_crash_of(Crash::all, build, async |_| {}, check).await;
        // At least a promotion, a proof that a writer is accepted, and two records each.
        assert!(points >= 20 * 8, "{health:?}: {points}");
    }
}
