//! Discarding one side's copies: killed anywhere, ordered for what must not be discarded, with sites away.

use super::*;
use crate::rbd::RbdErrorKind as Kind;
use crate::rbd::sim::Fault;
use crate::replication::resync::plan::{Reason, Step};
use crate::replication::resync::{Job, Limits as Times, run};

/// Both sides written to after an unplanned failover: `b` is to be kept, `a` to be discarded.
struct Split {
    world: World,
    rows: Arc<Rows<Step>>,
}

type Ends = HashMap<String, Step>;

async fn split() -> Split {
    let world = pair().await;
    world.set_health("a", Health::Dead);
    world.assert_moved(&world.run().await).await;
    let mut world = world.turn("b", "a");
    world.write("on b").await;
    world.set_health("a", Health::Alive);
    world.sim.advance(secs(120)).await;
    assert_eq!(world.sim.primaries(POOL, "v0"), ["a", "b"]);
    for v in world.volumes.iter().filter(|v| v.mode == MirrorMode::Snapshot) {
        let publish = MirrorSnapshot { pool: POOL.into(), image: v.image.clone() };
        world.sim.site("b").call(publish).await.unwrap();
    }
    world.sim.clear_log();
    Split { world, rows: Rows::new() }
}

impl Split {
    async fn attempt(&self) -> Result<Ends> {
        let limits =
            Times { concurrency: 32, answer: secs(10), settle: secs(60), demote: secs(30), sync: secs(1800) };
        let job = |v: &Volume| Job {
            volume_id: v.id.clone(),
            image: v.image.clone(),
            step: self.rows.step(&v.id).unwrap_or(Step::Pending),
        };
        let (keeper, loser) = (self.world.sim.site("b"), self.world.sim.site("a"));
        let jobs = self.world.volumes.iter().map(job).collect();
        run(POOL, &keeper, &loser, limits, self.rows.clone(), jobs).await
    }

    async fn run(&self) -> Ends {
        self.attempt().await.unwrap()
    }

    async fn run_into(&self, crash: Crash) -> Option<Ends> {
        match crash {
            Crash::Call(k, when) => {
                self.world.sim.kill_at(k, when);
                tokio::select! {
                    biased;
                    () = self.world.sim.crashed() => None,
                    ends = self.run() => Some(ends),
                }
            }
            Crash::Record(n, when) => {
                self.rows.die_at(n, when);
                self.attempt().await.ok()
            }
        }
    }

    fn restart(&self) {
        self.world.sim.restart();
        self.rows.revive();
    }

    /// The discarded side has what the kept side has.
    async fn assert_healed(&self, ends: &Ends) {
        assert!(ends.values().all(|s| *s == Step::Replaying), "{ends:?}");
        self.world.sim.advance(secs(90)).await;
        self.world.sim.assert_sides_agree();
        for v in &self.world.volumes {
            assert_eq!(self.world.sim.image("a", POOL, &v.image).unwrap().checksum, v.checksum);
            assert_eq!(self.world.sim.primaries(POOL, &v.image), ["b"]);
        }
    }

    fn assert_failed(&self, ends: &Ends, reason: Reason) {
        assert!(ends.values().all(|s| *s == Step::Failed { reason }), "{ends:?}");
    }

    /// Nothing was thrown away on either side.
    fn assert_untouched(&self) {
        for request in ["MirrorDemote", "MirrorResync", "MirrorPromote"] {
            assert_eq!(self.world.sim.count(request), 0, "{}", self.world.sim.log_text());
        }
    }
}

async fn every_crash_of_a_resync(
    build: impl AsyncFn() -> Split,
    meanwhile: impl AsyncFn(&Split),
    check: impl AsyncFn(&Split, &Ends),
) {
    let split = build().await;
    split.run().await;
    let places = Crash::most(split.world.sim.log().len(), split.rows.records());
    let mut points = 0;
    for crash in places {
        let split = build().await;
        let _report = Report(crash, split.world.sim.clone());
        if split.run_into(crash).await.is_none() {
            points += 1;
            meanwhile(&split).await;
            split.restart();
            let ends = split.run().await;
            check(&split, &ends).await;
        }
    }
    explored(points);
}

#[tokio::test(start_paused = true)]
async fn a_split_brain_is_healed_wherever_the_service_is_killed() {
    let undisturbed = split().await;
    let ends = undisturbed.run().await;
    undisturbed.assert_healed(&ends).await;
    for pause in [0, 120] {
        let meanwhile = async |split: &Split| split.world.sim.advance(secs(pause)).await;
        every_crash_of_a_resync(split, meanwhile, async |split, ends| split.assert_healed(ends).await).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_reported_of_the_copy_thrown_away_is_not_believed_of_its_successor() {
    let split = split().await;
    let ends = split.run().await;
    assert!(ends.values().all(|s| *s == Step::Replaying), "{ends:?}");
    for v in &split.world.volumes {
        let copy = split.world.sim.image("a", POOL, &v.image).unwrap();
        assert_eq!(copy.checksum, v.checksum, "{} was said to replay before it had been copied", v.id);
    }
}

#[tokio::test(start_paused = true)]
async fn lost_answers_do_not_matter() {
    for request in ["MirrorDemote", "MirrorResync", "MirrorInfo", "MirrorStatus", "ImageStat"] {
        for when in [When::Before, When::After] {
            for kind in [Kind::WorkerLost, Kind::TimedOut] {
                let split = split().await;
                let _report = Report((request, when, kind), split.world.sim.clone());
                split.world.sim.inject(Fault::on(request).site("a").times(3).fails(when, kind));
                let ends = split.run().await;
                if (request, when, kind) == ("MirrorDemote", When::Before, Kind::TimedOut) {
                    // One such call is all the time that a demotion has. Nothing is lost, it is ordered again.
                    split.assert_failed(&ends, Reason::DemoteFailed);
                    assert_eq!(split.world.sim.count("MirrorResync"), 0);
                    split.world.sim.clear_faults();
                    let split = Split { rows: Rows::new(), ..split };
                    let ends = split.run().await;
                    split.assert_healed(&ends).await;
                    continue;
                }
                split.assert_healed(&ends).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_was_demoted_by_hand_is_resynced_when_it_does_not_replay() {
    let by_hand = async || {
        let split = split().await;
        for v in &split.world.volumes {
            let demote = MirrorDemote { pool: POOL.into(), image: v.image.clone() };
            split.world.sim.site("a").call(demote).await.unwrap();
        }
        split.world.sim.advance(secs(60)).await;
        split.world.sim.clear_log();
        split
    };
    let split = by_hand().await;
    let ends = split.run().await;
    split.assert_healed(&ends).await;
    let check = async |split: &Split, ends: &Ends| split.assert_healed(ends).await;
    every_crash_of_a_resync(by_hand, async |_| {}, check).await;
}

#[tokio::test(start_paused = true)]
async fn healthy_copies_are_never_resynced() {
    let world = pair().await;
    world.assert_moved_whole(&world.run().await).await;
    world.sim.advance(secs(60)).await;
    let split = Split { world: world.turn("b", "a"), rows: Rows::new() };
    split.world.sim.clear_log();
    let ends = split.run().await;
    split.assert_healed(&ends).await;
    split.assert_untouched();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_discarded_for_a_keeper_that_is_not_primary() {
    let split = Split { world: pair().await, rows: Rows::new() };
    let ends = split.run().await;
    split.assert_failed(&ends, Reason::KeeperNotPrimary);
    split.assert_untouched();

    // It is looked at again before each order, after a crash too.
    let demoted = async |split: &Split| {
        for v in &split.world.volumes {
            let demote = MirrorDemote { pool: POOL.into(), image: v.image.clone() };
            let _ = split.world.sim.another_client().site("b").call(demote).await;
        }
        split.world.sim.clear_log();
    };
    let check = async |split: &Split, ends: &Ends| {
        // What had been healed before stays healed.
        for step in ends.values() {
            let refused = *step == Step::Failed { reason: Reason::KeeperNotPrimary };
            assert!(refused || *step == Step::Replaying, "{step:?}");
        }
        split.assert_untouched();
    };
    let meanwhile = async |split: &Split| {
        split.restart();
        demoted(split).await;
    };
    every_crash_of_a_resync(split_again, meanwhile, check).await;
}

async fn split_again() -> Split {
    split().await
}

#[tokio::test(start_paused = true)]
async fn a_loser_that_is_away_is_an_error_and_the_order_can_be_given_again() {
    for health in [Health::Dead, Health::Hung, Health::MonOnly] {
        let split = split().await;
        split.world.set_health("a", health);
        let ends = split.run().await;
        split.assert_failed(&ends, Reason::Unreadable);
        split.assert_untouched();
        split.world.set_health("a", Health::Alive);
        split.world.sim.advance(secs(120)).await;
        let split = Split { rows: Rows::new(), ..split };
        let ends = split.run().await;
        split.assert_healed(&ends).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_is_away_discards_nothing() {
    for health in [Health::Dead, Health::Hung, Health::MonOnly] {
        let split = split().await;
        split.world.set_health("b", health);
        let ends = split.run().await;
        split.assert_failed(&ends, Reason::Unreadable);
        split.assert_untouched();
    }
}
