//! Some of a backend's volumes moved by themselves, as a group is: killed anywhere, with the site they leave
//! alive or dead, there and back; the others never notice.

use super::*;

/// The first two of four are the group.
const MEMBERS: usize = 2;

async fn four() -> World {
    world(SimConfig::default(), &[MODES[0], MODES[1], MODES[0], MODES[1]]).await
}

/// The world as the group's failover sees it, and the volumes that it is not about.
fn split(mut world: World) -> (World, Vec<Volume>) {
    let others = world.volumes.split_off(MEMBERS);
    (world, others)
}

fn untouched(world: &World, others: &[Volume]) {
    for v in others {
        assert!(world.primary("a", &v.image) && !world.primary("b", &v.image), "{} has moved", v.id);
        assert_eq!(world.sim.image("a", POOL, &v.image).unwrap().checksum, v.checksum, "{}", v.id);
        assert!(world.rows.step(&v.id).is_none(), "{} has a step", v.id);
    }
}

fn others_stay(world: &World) {
    for image in ["v2", "v3"] {
        assert_eq!(world.sim.primaries(POOL, image), ["a"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_moves_alone_whenever_it_is_killed() {
    let build = async || split(four().await).0;
    let check = async |world: &World, outcome: &Outcome| {
        world.assert_moved_whole(outcome).await;
        others_stay(world);
    };
    every_crash(build, async |_| {}, check).await;
}

#[tokio::test(start_paused = true)]
async fn a_group_leaves_a_dead_site_alone_whenever_it_is_killed() {
    let build = async || {
        let world = split(four().await).0;
        world.set_health("a", Health::Dead);
        world
    };
    let check = async |world: &World, outcome: &Outcome| {
        world.assert_moved(outcome).await;
        for image in ["v2", "v3"] {
            assert!(!world.primary("b", image), "{image} is not of the group, and nothing may force it");
        }
    };
    every_crash(build, async |_| {}, check).await;
}

#[tokio::test(start_paused = true)]
async fn a_group_comes_back_while_its_backend_stays_whenever_it_is_killed() {
    let build = async || {
        let (world, _) = split(four().await);
        let outcome = world.run().await;
        world.assert_moved_whole(&outcome).await;
        world.sim.advance(secs(90)).await;
        world.turn("b", "a")
    };
    let check = async |world: &World, outcome: &Outcome| {
        world.assert_moved_whole(outcome).await;
        others_stay(world);
    };
    every_crash(build, async |_| {}, check).await;
}

#[tokio::test(start_paused = true)]
async fn a_failover_of_the_backend_finds_a_group_that_went_ahead() {
    let (mut world, others) = split(four().await);
    let outcome = world.run().await;
    world.assert_moved_whole(&outcome).await;
    untouched(&world, &others);
    world.volumes.extend(others);
    let world = world.turn("a", "b");
    let demoted = world.sim.count("MirrorDemote");
    let outcome = world.run().await;
    world.assert_moved_whole(&outcome).await;
    assert_eq!(world.sim.count("MirrorDemote") - demoted, 2, "only those that were still there");
}
