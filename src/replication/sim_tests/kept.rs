//! A source that dies while its volumes are being restored to it, or cannot be read when all is over.

use super::*;
use crate::rbd::RbdErrorKind as Kind;
use crate::rbd::sim::Fault;

#[tokio::test(start_paused = true)]
async fn a_source_that_dies_while_it_is_restored_is_forced_after_all() {
    for health in [Health::Dead, Health::Hung, Health::MonOnly] {
        let world = pair().await;
        let restoring = |w: &World| w.volumes.iter().all(|v| w.rows.step(&v.id) == Some(Step::Restoring));
        // Neither side accepts a promotion for now.
        world.sim.inject(Fault::on("MirrorPromote").fails(When::Before, Kind::Busy).always());
        let killer = async {
            while !restoring(&world) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            world.sim.clear_faults();
            world.set_health("a", health);
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = world.run() => outcome,
            () = killer => unreachable!(),
        };
        world.assert_moved(&outcome).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_the_target_does_not_answer_for_is_restored_to_the_source() {
    for mode in MODES {
        let world = world(SimConfig::default(), &[mode]).await;
        // Demoted; from then on the target answers nothing for this image, and yet is alive.
        let sticker = async {
            while world.primary("a", "v0") {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            world.sim.inject(Fault::any().site("b").image("v0").sticks().always());
            std::future::pending::<()>().await;
        };
        let outcome = tokio::select! {
            outcome = world.run() => outcome,
            () = sticker => unreachable!(),
        };
        world.failed(&outcome, Reason::PromoteNotAccepted);
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_that_the_target_never_answered_for_is_served_where_it_was() {
    let world = pair().await;
    world.sim.inject(Fault::any().site("b").image("v0").sticks().always());
    let outcome = world.run().await;
    world.assert_settled(&outcome);
    assert!(matches!(&outcome["id0"], Step::Failed { reason } if reason.served_from() == ServedFrom::Source));
    assert_eq!(outcome["id1"], Step::Moved);
    assert_eq!(world.sim.count("MirrorDemote"), 1);
}
