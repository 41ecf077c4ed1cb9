#![allow(clippy::unwrap_used, clippy::expect_used)]
//! The replication engine in the simulator: killed at every call to Ceph and at every record of its journal,
//! with sites that come and go in between.
//!
//! [`World`] is two or three sites with mirrored volumes of both modes whose contents are known; [`Rows`]
//! is the journal's rows, which survive what kills the engine; [`every_crash`] kills and resumes.

mod enabling;
mod group;
mod intents;
mod kept;
mod planned;
mod random;
mod resync;
mod twenty;
mod unplanned;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::engine::{Engine, Job, Ledger, Limits};
use super::intent::Intent;
use super::plan::{Reason, ServedFrom, Step};
use crate::error::{Code, Error, Result};
use crate::rbd::protocol::*;
use crate::rbd::sim::crash::explored;
use crate::rbd::sim::{Health, Sim, SimConfig, When};
use crate::rbd::types::MirrorMode;

pub(super) const POOL: &str = "volumes";
pub(super) const MODES: [MirrorMode; 2] = [MirrorMode::Journal, MirrorMode::Snapshot];
pub(super) type Outcome = HashMap<String, Step>;

pub(super) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// As configured by default.
pub(super) fn limits() -> Limits {
    Limits {
        concurrency: 32,
        verdict: secs(5),
        peer: secs(30),
        link: secs(45),
        demote: secs(30),
        promote: secs(60),
        writable: secs(60),
    }
}

/// The steps as the journal's rows hold them.
pub(super) struct Rows<S> {
    state: Mutex<RowsState<S>>,
}

struct RowsState<S> {
    steps: HashMap<String, S>,
    records: usize,
    dies_at: Option<(usize, When)>,
    dead: bool,
}

impl<S: Clone> Rows<S> {
    pub(super) fn new() -> Arc<Rows<S>> {
        let state = RowsState { steps: HashMap::new(), records: 0, dies_at: None, dead: false };
        Arc::new(Rows { state: Mutex::new(state) })
    }

    /// The `n`-th record from now (1 is the next) is the last thing that its writer does.
    pub(super) fn die_at(&self, n: usize, when: When) {
        let mut state = self.state.lock().unwrap();
        state.dies_at = Some((state.records + n, when));
    }

    pub(super) fn revive(&self) {
        let mut state = self.state.lock().unwrap();
        (state.dead, state.dies_at) = (false, None);
    }

    pub(super) fn records(&self) -> usize {
        self.state.lock().unwrap().records
    }

    pub(super) fn step(&self, id: &str) -> Option<S> {
        self.state.lock().unwrap().steps.get(id).cloned()
    }
}

#[async_trait]
impl<S: Clone + Send + Sync> Ledger<S> for Rows<S> {
    async fn record(&self, volume_id: &str, step: &S) -> Result<()> {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let gone = || Error::new(Code::Cancelled, "killed");
        let mut state = self.state.lock().unwrap();
        if state.dead {
            return Err(gone());
        }
        state.records += 1;
        let dies = state.dies_at.filter(|(n, _)| *n == state.records).map(|(_, when)| when);
        if dies != Some(When::Before) {
            state.steps.insert(volume_id.to_owned(), step.clone());
        }
        if dies.is_some() {
            state.dead = true;
            return Err(gone());
        }
        Ok(())
    }
}

/// Where a process is killed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Crash {
    /// At a call to Ceph.
    Call(usize, When),
    /// At a record in the journal.
    Record(usize, When),
}

impl Crash {
    /// All places of a run, thinned out where it mostly polls.
    pub(super) fn most(calls: usize, records: usize) -> Vec<Crash> {
        let polls = (calls / 60).max(1);
        let kept = |crash: &Crash| !matches!(crash, Crash::Call(k, _) if *k > 40 && k % polls != 0);
        Crash::all(calls, records).into_iter().filter(kept).collect()
    }

    /// Those at the journal: where a run waits for its deadlines, its calls are all alike.
    pub(super) fn all_records(_: usize, records: usize) -> Vec<Crash> {
        Crash::all(0, records)
    }

    /// All places of a run.
    pub(super) fn all(calls: usize, records: usize) -> Vec<Crash> {
        let both = |of: fn(usize, When) -> Crash, n| [of(n, When::Before), of(n, When::After)];
        let calls = (1..=calls).flat_map(|k| both(Crash::Call, k));
        calls.chain((1..=records).flat_map(|n| both(Crash::Record, n))).collect()
    }
}

pub(super) struct Volume {
    pub(super) id: String,
    pub(super) image: String,
    pub(super) mode: MirrorMode,
    /// Of its contents after the last acknowledged write.
    pub(super) checksum: u64,
}

/// Sites, volumes, and an operation that moves them from `source` to `target`.
pub(super) struct World {
    pub(super) sim: Sim,
    pub(super) volumes: Vec<Volume>,
    pub(super) source: &'static str,
    pub(super) target: &'static str,
    pub(super) limits: Limits,
    pub(super) intent: Intent,
    pub(super) rows: Arc<Rows<Step>>,
    away: Mutex<BTreeSet<String>>,
}

pub(super) async fn world(config: SimConfig, modes: &[MirrorMode]) -> World {
    let sim = Sim::new(config);
    let a = sim.site("a");
    let mut volumes = vec![];
    for (n, mode) in modes.iter().enumerate() {
        let (id, image) = (format!("id{n}"), format!("v{n}"));
        let (pool, name) = (POOL.to_owned(), image.clone());
        let create = ImageCreate { pool, image: name, size: 1 << 30, order: 22, features: 61 };
        a.call(create).await.unwrap();
        a.call(MirrorEnable { pool: POOL.into(), image: image.clone(), mode: *mode }).await.unwrap();
        volumes.push(Volume { id, image, mode: *mode, checksum: 0 });
    }
    let mut world = World {
        sim,
        volumes,
        source: "a",
        target: "b",
        limits: limits(),
        intent: Intent::Automatic,
        rows: Rows::new(),
        away: Mutex::default(),
    };
    for site in ["a", "b", "c"] {
        let _ = world.sim.site(site).call(ProbeMon {}).await;
    }
    world.write("first").await;
    world.sim.advance(secs(90)).await;
    world.sim.assert_sides_agree();
    world.sim.clear_log();
    world
}

/// One volume of each mode.
pub(super) async fn pair() -> World {
    world(SimConfig::default(), &MODES).await
}

impl World {
    /// Writes to all volumes where they are primary (`source`), as their VMs would, and remembers it.
    pub(super) async fn write(&mut self, text: &str) {
        let site = self.sim.site(self.source);
        for v in &mut self.volumes {
            let data = format!("{text} of {}", v.id).into_bytes();
            let image = v.image.clone();
            site.call(ImageWrite { pool: POOL.into(), image: image.clone(), offset: 512, data })
                .await
                .unwrap();
            if v.mode == MirrorMode::Snapshot && text == "first" {
                site.call(MirrorSnapshot { pool: POOL.into(), image }).await.unwrap();
            }
            v.checksum = self.sim.image(self.source, POOL, &v.image).unwrap().checksum;
        }
    }

    pub(super) fn set_health(&self, site: &str, health: Health) {
        self.sim.set_health(site, health);
        let mut away = self.away.lock().unwrap();
        match health {
            Health::Dead | Health::Hung | Health::MonOnly | Health::OsdOnly => away.insert(site.to_owned()),
            Health::Alive | Health::Slow(_) | Health::Denied => away.remove(site),
        };
    }

    pub(super) fn is_away(&self, site: &str) -> bool {
        self.away.lock().unwrap().contains(site)
    }

    /// A new operation: nothing recorded yet.
    pub(super) fn turn(mut self, source: &'static str, target: &'static str) -> World {
        (self.source, self.target, self.rows) = (source, target, Rows::new());
        self
    }

    /// The volumes, with what was last recorded of them.
    pub(super) fn jobs(&self) -> Vec<Job> {
        let job = |v: &Volume| Job {
            volume_id: v.id.clone(),
            image: v.image.clone(),
            step: self.rows.step(&v.id).unwrap_or(Step::Pending),
        };
        self.volumes.iter().map(job).collect()
    }

    pub(super) async fn engine(&self) -> Engine {
        let (source, target) = (self.sim.site(self.source), self.sim.site(self.target));
        let engine = Engine::new(POOL, source, target, self.limits, self.rows.clone()).await;
        engine.with_intent(self.intent)
    }

    pub(super) async fn attempt(&self) -> Result<Outcome> {
        self.engine().await.run(self.jobs()).await
    }

    pub(super) async fn run(&self) -> Outcome {
        self.attempt().await.unwrap()
    }

    /// Runs until it is killed; the outcome when it ended before.
    pub(super) async fn run_into(&self, crash: Crash) -> Option<Outcome> {
        match crash {
            Crash::Call(k, when) => {
                self.sim.kill_at(k, when);
                tokio::select! {
                    biased;
                    () = self.sim.crashed() => None,
                    outcome = self.run() => Some(outcome),
                }
            }
            Crash::Record(n, when) => {
                self.rows.die_at(n, when);
                self.attempt().await.ok()
            }
        }
    }

    pub(super) fn restart(&self) {
        self.sim.restart();
        self.rows.revive();
    }

    /// Runs while `change` is made after the `k`-th call from now.
    pub(super) async fn run_changed(&self, k: usize, change: impl FnOnce(&World)) -> Outcome {
        let from = self.sim.log().len();
        let changer = async {
            while self.sim.log().len() < from + k {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            change(self);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            outcome = self.run() => outcome,
            () = changer => unreachable!(),
        }
    }

    pub(super) fn primary(&self, site: &str, image: &str) -> bool {
        self.sim.image(site, POOL, image).is_some_and(|i| i.primary)
    }

    /// What holds after every operation, however it went: each volume has ended; it is served from where
    /// its row will say; what is served nowhere could not be served by a site that is there; nothing was
    /// promoted beside a living primary.
    pub(super) fn assert_settled(&self, outcome: &Outcome) {
        self.sim.assert_no_split_brain_created();
        for v in &self.volumes {
            let step = &outcome[&v.id];
            assert_eq!(self.rows.step(&v.id).as_ref(), Some(step), "{} is not what was recorded", v.id);
            let (source, target) = (self.primary(self.source, &v.image), self.primary(self.target, &v.image));
            let told = format!("{} {:?} ended {step:?}, primary: {source}, {target}", v.id, v.mode);
            match step {
                Step::Moved => assert!(target, "{told}"),
                Step::Failed { reason } => match reason.served_from() {
                    ServedFrom::Source => assert!(source, "{told}"),
                    ServedFrom::Target => assert!(target, "{told}"),
                    ServedFrom::Nowhere => {
                        let served =
                            source && !self.is_away(self.source) || target && !self.is_away(self.target);
                        let all_there = !self.is_away(self.source) && !self.is_away(self.target);
                        assert!(!served && !all_there, "{told}");
                    }
                },
                other => panic!("{} has not ended: {other:?}", v.id),
            }
        }
    }

    /// Every volume was moved, and accepts a writer.
    pub(super) async fn assert_moved(&self, outcome: &Outcome) {
        self.assert_settled(outcome);
        for v in &self.volumes {
            assert_eq!(outcome[&v.id], Step::Moved, "{}", v.id);
            let check = CheckWritable { pool: POOL.into(), image: v.image.clone() };
            self.sim.site(self.target).call(check).await.unwrap();
        }
    }

    /// And has the last acknowledged write.
    pub(super) async fn assert_moved_whole(&self, outcome: &Outcome) {
        self.assert_moved(outcome).await;
        for v in &self.volumes {
            let found = self.sim.image(self.target, POOL, &v.image).unwrap();
            assert_eq!(found.checksum, v.checksum, "{} {:?} has lost data", v.id, v.mode);
            assert!(!self.primary(self.source, &v.image) || self.is_away(self.source));
        }
    }

    pub(super) fn failed(&self, outcome: &Outcome, reason: Reason) {
        self.assert_settled(outcome);
        for v in &self.volumes {
            assert_eq!(outcome[&v.id], Step::Failed { reason }, "{}", v.id);
        }
    }
}

/// Kills an operation at each of its calls and records, lets `meanwhile` happen, resumes it with what was
/// recorded, and looks at the end.
pub(super) async fn every_crash(
    build: impl AsyncFn() -> World,
    meanwhile: impl AsyncFn(&World),
    check: impl AsyncFn(&World, &Outcome),
) -> usize {
    every_crash_of(Crash::most, build, meanwhile, check).await
}

/// The same at the places that `crashes` chooses, from the numbers of calls and records of a run that nothing disturbs.
pub(super) async fn every_crash_of(
    crashes: fn(usize, usize) -> Vec<Crash>,
    build: impl AsyncFn() -> World,
    meanwhile: impl AsyncFn(&World),
    check: impl AsyncFn(&World, &Outcome),
) -> usize {
    let world = build().await;
    let (calls, records) = (world.sim.log().len(), world.rows.records());
    world.run().await;
    let (calls, records) = (world.sim.log().len() - calls, world.rows.records() - records);
    assert!(calls > 0 && records > 0);
    let mut points = 0;
    for crash in crashes(calls, records) {
        let world = build().await;
        let _report = Report(crash, world.sim.clone());
        if world.run_into(crash).await.is_some() {
            continue;
        }
        points += 1;
        meanwhile(&world).await;
        world.restart();
        let outcome = world.run().await;
        check(&world, &outcome).await;
    }
    assert!(points > records, "too few of the crash points were reached: {points}");
    explored(points);
    points
}

/// Says which crash point it was, when something panics in its scope.
pub(super) struct Report<T: std::fmt::Debug>(pub(super) T, pub(super) Sim);

impl<T: std::fmt::Debug> Drop for Report<T> {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("at {:?}\n{}", self.0, self.1.log_text());
        }
    }
}
