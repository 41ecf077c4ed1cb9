//! Random orders of deaths, returns, faults and crashes; what must hold after any of them.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::rbd::RbdErrorKind as Kind;
use crate::rbd::sim::Fault;

fn pick<T: Copy>(rng: &mut StdRng, from: &[T]) -> T {
    from[rng.random_range(0..from.len())]
}

fn fault(rng: &mut StdRng) -> Fault {
    const REQUESTS: [&str; 10] = [
        "MirrorDemote",
        "MirrorPromote",
        "MirrorInfo",
        "MirrorInfoMany",
        "MirrorStatus",
        "MirrorStatusMany",
        "CheckWritable",
        "LockOwners",
        "LockBreak",
        "MirrorDaemons",
    ];
    let fault = Fault::on(pick(rng, &REQUESTS)).site(pick(rng, &["a", "b"])).nth(rng.random_range(1..6));
    let fault = fault.times(rng.random_range(1..4));
    match rng.random_range(0..4) {
        0 => fault.sticks(),
        1 => fault.delays(Duration::from_millis(rng.random_range(1..9000))),
        2 => {
            fault.fails(When::Before, pick(rng, &[Kind::WorkerLost, Kind::TimedOut, Kind::Busy, Kind::Other]))
        }
        // Refusals come before the effect; only a lost answer comes after it.
        _ => fault.fails(When::After, pick(rng, &[Kind::WorkerLost, Kind::TimedOut])),
    }
}

/// Runs with other seeds.
const SEEDS: u64 = 120;

/// What an operator may say of a site without choosing between two primaries.
const GENTLE: [Intent; 3] = [Intent::Automatic, Intent::Planned, Intent::Unplanned];

/// A crash now and then and faults everywhere, with both sites there: whatever happened, after a retry
/// without faults every volume is on the target with its last write.
#[tokio::test(start_paused = true)]
async fn faults_and_crashes_lose_nothing_while_both_sites_live() {
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let modes: Vec<_> = (0..rng.random_range(1..6)).map(|_| pick(&mut rng, &MODES)).collect();
        let mut world = world(SimConfig::seeded(seed), &modes).await;
        world.limits.concurrency = rng.random_range(1..6);
        world.intent = GENTLE[seed as usize % GENTLE.len()];
        let _report = Report(seed, world.sim.clone());
        world.write("last").await;
        for _ in 0..rng.random_range(0..5) {
            world.sim.inject(fault(&mut rng));
        }
        for _ in 0..rng.random_range(0..4) {
            let (n, when) = (rng.random_range(1..30), pick(&mut rng, &[When::Before, When::After]));
            let crash = if rng.random() { Crash::Call(n, when) } else { Crash::Record(n / 4 + 1, when) };
            world.run_into(crash).await;
            world.restart();
            world.sim.advance(Duration::from_millis(rng.random_range(0..5000))).await;
        }
        let outcome = world.run().await;
        world.assert_settled(&outcome);
        for v in &world.volumes {
            let there =
                world.sim.image(if outcome[&v.id] == Step::Moved { "b" } else { "a" }, POOL, &v.image);
            assert_eq!(there.unwrap().checksum, v.checksum, "{} has lost data", v.id);
        }
        world.sim.clear_faults();
        world.sim.advance(secs(60)).await;
        let world = World { rows: Rows::new(), ..world };
        world.assert_moved_whole(&world.run().await).await;
    }
    explored(SEEDS as usize);
}

/// Sites that come and go: every volume ends, is where its row says, and is not promoted beside a living
/// primary, but for the moment that a returning site takes to be noticed.
#[tokio::test(start_paused = true)]
async fn sites_that_come_and_go_end_in_rows_that_are_true() {
    const HEALTHS: [Health; 5] =
        [Health::Alive, Health::Dead, Health::Hung, Health::MonOnly, Health::OsdOnly];
    for seed in 0..SEEDS {
        let mut rng = StdRng::seed_from_u64(seed);
        let modes: Vec<_> = (0..rng.random_range(1..6)).map(|_| pick(&mut rng, &MODES)).collect();
        let mut world = world(SimConfig::seeded(seed), &modes).await;
        world.limits.concurrency = rng.random_range(1..6);
        world.intent = GENTLE[seed as usize % GENTLE.len()];
        let _report = Report(seed, world.sim.clone());
        let started = tokio::time::Instant::now();
        // The log's clock, by a call.
        let _ = world.sim.site("b").call(ProbeMon {}).await;
        let offset = world.sim.log().last().unwrap().at;
        let mut changes = vec![(offset, Health::Alive)];
        let weather = async {
            for _ in 0..rng.random_range(1..6) {
                tokio::time::sleep(Duration::from_millis(rng.random_range(0..20_000))).await;
                let health = pick(&mut rng, &HEALTHS);
                world.set_health("a", health);
                changes.push((offset + started.elapsed(), health));
            }
        };
        // Waits for both: the end is judged when the weather has settled.
        let (outcome, ()) = tokio::join!(world.run(), weather);
        for call in world.sim.log() {
            if matches!(&call.arguments, Request::MirrorPromote(p) if p.force) {
                assert_ne!(world.intent, Intent::Planned, "forced in a planned move");
                let (since, health) = changes.iter().rfind(|(at, _)| *at <= call.at).unwrap();
                // A probe that was under way, a pause, and the probes of a new verdict.
                let noticed = call.at > *since + secs(12);
                assert!(
                    *health != Health::Alive || !noticed,
                    "forced although a has been back since {since:?}"
                );
            }
        }
        for v in &world.volumes {
            let step = &outcome[&v.id];
            assert_eq!(world.rows.step(&v.id).as_ref(), Some(step));
            let (a, b) = (world.primary("a", &v.image), world.primary("b", &v.image));
            match step {
                Step::Moved => assert!(b),
                Step::Failed { reason } => match reason.served_from() {
                    ServedFrom::Source => assert!(a, "{}: {step:?}", v.id),
                    ServedFrom::Target => assert!(b, "{}: {step:?}", v.id),
                    // Demoted in good order, and its site died before that had arrived: nothing was to be forced.
                    ServedFrom::Nowhere if world.intent == Intent::Planned => assert!(!a && !b, "{step:?}"),
                    ServedFrom::Nowhere => panic!("{}: the target is there all the time: {step:?}", v.id),
                },
                other => panic!("{other:?}"),
            }
        }
    }
    explored(SEEDS as usize);
}
