//! Twenty volumes on their way to the other site, and the service dies, or its workers: in the end every
//! one has exactly one primary, on the side that the database says, with its data.
//!
//! The sample kills at every kind of step in one failover, again and again (a *chain*); the whole matrix
//! has each step, early and late, in a failover of its own.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use crate::common::{CEPH, Lab, row_str, wait_for, wait_until};
use crate::crash::{WHY, delete_all, name_of, wait_death, wait_quiet};
use crate::workers::{killed_at, workers_died_at};

const COUNT: usize = 20;
/// One of each kind of step, in the order in which they come, somewhere among the volumes.
const PLANNED: &[&str] = &[
    "failover:accepted",
    "failover:decided",
    "failover:demoting:3",
    "failover:promoting:5",
    "failover:moved:7",
    "failover:all_moved",
];
/// The same when the site that is left is dead.
const FORCED: &[&str] = &[
    "failover:accepted",
    "failover:decided",
    "failover:forcing:3",
    "failover:opening:5",
    "failover:moved:7",
    "failover:all_moved",
];
/// What only a forced failover has. (Each life of a service whose site is dead begins with half a minute of
/// waiting for it.)
const FORCED_ONLY: &[&str] = &["failover:forcing:3", "failover:opening:5"];
/// Promotions that are not accepted.
const GIVEN_UP: &[&str] = &["failover:restoring:3", "failover:failed:5", "failover:all_moved"];

/// A dead site is known to be dead after three probes, here of two seconds each.
const QUICK_VERDICT: &str = "scoria_verdict_timeout = 2";

/// Data of volumes by their ids.
type Known = BTreeMap<String, String>;

/// Who dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Service,
    Workers,
    /// Workers at the first volume, and then the service too.
    Both,
}

/// A failover that is disturbed.
struct Drill<'a> {
    lab: &'a Lab,
    /// Second configuration file.
    conf: String,
}

/// Data that no volume has had before: that it arrives shows that it was replicated.
fn fresh() -> u32 {
    static SEED: AtomicU32 = AtomicU32::new(50_000);
    SEED.fetch_add(1, Ordering::Relaxed)
}

/// New data on `site` that has reached the other one.
fn rewrite(lab: &Lab, known: &mut Known, site: &str) {
    let mut seeds = Vec::new();
    for (id, sum) in known.iter_mut() {
        let seed = fresh();
        *sum = lab.write(site, id, seed);
        seeds.push((id.clone(), seed));
    }
    for (id, seed) in seeds {
        lab.wait_replicated(&id, site, seed);
    }
}

/// Volumes with known data that have reached site B.
fn volumes(lab: &Lab) -> Known {
    let ids: Vec<String> = (0..COUNT).map(|_| lab.create(json!({"volume_type": "replicated"}))).collect();
    for id in &ids {
        lab.wait_status(id, "available");
    }
    for id in &ids {
        lab.wait_mirrored(id, "b");
    }
    let mut known = ids.into_iter().map(|id| (id, String::new())).collect();
    rewrite(lab, &mut known, "a");
    known
}

fn order(lab: &Lab, target: &str) {
    wait_until("the API takes the order", 90, || {
        lab.try_api("services.failover_host", json!([CEPH]), json!({"backend_id": target})).is_ok()
    });
}

fn decided(lab: &Lab, point: &str) -> String {
    wait_for(&format!("{point}: the failover is decided"), 240, || {
        let status = row_str(&lab.service(CEPH), "replication_status").to_owned();
        (status != "failing-over").then_some(status)
    })
}

/// What site, service and volumes are called after a failover to `target`.
fn names(target: &str) -> (&'static str, &'static str) {
    if target == "default" { ("a", "enabled") } else { ("b", "failed-over") }
}

/// Every volume has one primary, on `site`, with its data.
fn expect_on(lab: &Lab, known: &mut Known, target: &str, point: &str) {
    let (site, status) = names(target);
    let other = if site == "a" { "b" } else { "a" };
    for (id, sum) in known.iter() {
        assert_eq!(lab.volume(id)["replication_status"], status, "{point}: {id}");
        assert_eq!(lab.image(site, id)["primary"], true, "{point}: {id}");
        assert_eq!(lab.image(other, id)["primary"], false, "{point}: {id} has two primaries");
        assert_eq!(&lab.checksum(site, id), sum, "{point}: {id}");
    }
    rewrite(lab, known, site);
}

impl<'a> Drill<'a> {
    fn new(lab: &'a Lab) -> Drill<'a> {
        let conf = lab.root.join("conf/tests-failover.conf");
        let drill = Drill { lab, conf: conf.to_str().unwrap().to_owned() };
        drill.configure(QUICK_VERDICT);
        drill
    }

    fn configure(&self, options: &str) {
        // The only way to know later why one of twenty was not moved.
        let debug = "[DEFAULT]\ndefault_log_levels = scoria.replication=DEBUG";
        fs::write(&self.conf, format!("{debug}\n[ceph]\n{options}\n")).unwrap();
    }

    fn start(&self, env: &[(&str, &str)]) {
        // One that dies while it starts is no failure here.
        let _ = self.lab.try_start_service_with(&["--config-file", &self.conf], env);
    }

    /// Start the service afresh so that `victim` dies at `points`; the service's process.
    fn arm(&self, victim: Victim, points: &[&str]) -> i32 {
        self.lab.stop_service();
        match victim {
            Victim::Service | Victim::Both => self.live_until(victim, points[0]),
            Victim::Workers => self.start(&[("SCORIA_KILL_WORKERS_AT", &points.join(","))]),
        }
        self.lab.service_pids().first().copied().unwrap_or_default()
    }

    /// One life of the service, which ends at `point`.
    fn live_until(&self, victim: Victim, point: &str) {
        match victim {
            Victim::Both => {
                self.start(&[("SCORIA_KILL_WORKERS_AT", name_of(point)), ("SCORIA_CRASH_AT", point)])
            }
            _ => self.start(&[("SCORIA_CRASH_AT", point)]),
        }
    }

    /// Until `victim` has died at all of them and nobody works on anything any more: how it was decided.
    fn survive(&self, victim: Victim, points: &[&str], service: i32) -> String {
        let what = points.join(",");
        if victim != Victim::Workers {
            for (n, point) in points.iter().enumerate() {
                wait_death(self.lab, point);
                match points.get(n + 1) {
                    Some(next) => self.live_until(victim, next),
                    None => self.start(&[]),
                }
            }
        }
        let decided = decided(self.lab, &what);
        wait_quiet(self.lab, &what);
        if victim == Victim::Workers {
            workers_died_at(self.lab, service, points);
        }
        decided
    }

    /// A failover while `victim` dies at `points`.
    fn disturbed(&self, victim: Victim, target: &str, points: &[&str]) {
        let service = self.arm(victim, points);
        order(self.lab, target);
        let decided = self.survive(victim, points, service);
        assert_eq!(decided, names(target).1, "{}", points.join(","));
    }

    /// A demotion that is cut short inside of librbd makes an image secondary without its peer ever hearing of
    /// it. Such a volume is primary again where it was, says what to do, and comes along when it is ordered.
    fn fetch_those_left_behind(&self, known: &mut Known, target: &str) {
        let query = "SELECT id, replication_extended_status FROM volumes WHERE deleted = 0 AND \
                     replication_status = 'failover-error'";
        let left = self.lab.rows(query, &[]);
        if left.is_empty() {
            return;
        }
        let (site, from) = if target == "default" { ("b", "site-b") } else { ("a", "default") };
        let mut stayed = Known::new();
        for row in &left {
            let (id, advice) = (row_str(row, "id"), row_str(row, "replication_extended_status"));
            eprintln!("left behind: {id}: {advice}");
            assert!(advice.starts_with("the target site did not accept the promotion in time, "), "{row}");
            assert!(
                advice.contains(&format!("served from {from}; then: scoria-manage replication retry")),
                "{row}"
            );
            assert_eq!(self.lab.image(site, id)["primary"], true, "{id} is without a primary");
            assert_eq!(self.lab.checksum(site, id), known[id], "{id}");
            stayed.insert(id.to_owned(), String::new());
        }
        assert!(stayed.len() < known.len(), "some were not in the middle of it");
        rewrite(self.lab, &mut stayed, site);
        known.extend(stayed);
        self.undisturbed(target);
    }

    fn undisturbed(&self, target: &str) {
        order(self.lab, target);
        assert_eq!(decided(self.lab, target), names(target).1);
        wait_quiet(self.lab, target);
    }

    /// There and back, with everything looked at after each.
    fn there_and_back(&self, victim: Victim, known: &mut Known, points: &[&str]) {
        for target in ["site-b", "default"] {
            self.one_way(victim, known, target, points);
        }
    }

    fn one_way(&self, victim: Victim, known: &mut Known, target: &str, points: &[&str]) {
        self.disturbed(victim, target, points);
        self.fetch_those_left_behind(known, target);
        expect_on(self.lab, known, target, &points.join(","));
    }

    /// The site that volumes are on dies, and they are forced to the other one, `target`.
    fn forced(&self, victim: Victim, known: &Known, target: &str, points: &[&str]) {
        let lab = self.lab;
        let dead = if target == "default" { "site-b" } else { "site-a" };
        lab.kill(dead);
        self.disturbed(victim, target, points);
        let (site, status) = names(target);
        let point = points.join(",");
        for (id, sum) in known {
            assert_eq!(lab.volume(id)["replication_status"], status, "{point}: {id}");
            assert_eq!(&lab.checksum(site, id), sum, "{point}: {id}");
            assert_eq!(lab.try_write(site, id, fresh()), "ok", "{point}: {id}, {dead} still away");
        }
        lab.start_site(dead);
        lab.forget_everything();
    }

    /// The same in a drill of its own.
    fn forced_afresh(&self, victim: Victim, target: &str, points: &[&str]) {
        let mut known = volumes(self.lab);
        if target == "default" {
            self.undisturbed("site-b");
            expect_on(self.lab, &mut known, "site-b", "the way there");
        }
        self.forced(victim, &known, target, points);
    }

    /// Site B's mirror daemon hangs, so that no promotion is accepted; then there is one again.
    fn given_up(&self, victim: Victim, known: &mut Known, points: &[&str]) {
        let lab = self.lab;
        let what = points.join(",");
        self.configure("scoria_promote_timeout = 8");
        let service = self.arm(victim, points);
        // Only now: it must still be thought to be alive when volumes are demoted.
        lab.pause("rbd-mirror-b");
        order(lab, "site-b");
        self.survive(victim, points, service);
        for (id, sum) in known.iter() {
            let row = lab.volume(id);
            assert_eq!(row["replication_status"], "failover-error", "{what}: {row}");
            assert!(row_str(&row, "replication_extended_status").contains("served from default"), "{row}");
            assert_eq!(lab.image("a", id)["primary"], true, "{what}: {id} is without a primary");
            assert_eq!(&lab.checksum("a", id), sum, "{what}: {id}");
            assert_eq!(lab.try_write("a", id, fresh()), "ok", "{what}: {id}");
        }
        // One that was stopped for so long does not find its way back by itself.
        lab.kill("rbd-mirror-b");
        lab.start("rbd-mirror-b");
        lab.wait_mirroring();
        rewrite(lab, known, "a");
        self.configure(QUICK_VERDICT);
    }
}

fn drill(work: impl FnOnce(&Drill<'_>)) {
    let lab = Lab::get();
    if lab.only_scoria(WHY) {
        work(&Drill::new(&lab));
    }
}

/// All that needs twenty volumes on both sites, one after the other: making them takes as long as four
/// failovers.
#[test]
fn failovers_die_at_every_kind_of_step() {
    drill(|d| {
        let mut known = volumes(d.lab);
        d.one_way(Victim::Service, &mut known, "site-b", PLANNED);
        d.forced(Victim::Both, &known, "default", FORCED_ONLY);
        for point in FORCED_ONLY {
            assert!(killed_at(&d.lab.service_log(), point) > Some(0), "workers were killed at {point}, too");
        }
    });
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn whole_matrix_a_failover_is_forced_through_all_deaths() {
    drill(|d| d.forced_afresh(Victim::Both, "site-b", FORCED));
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn whole_matrix_a_failback_is_forced_through_all_deaths_of_workers() {
    drill(|d| d.forced_afresh(Victim::Workers, "default", FORCED));
}

/// Each kind of step by itself: the first volume, one in the middle, the last.
fn alone(points: &[&str]) -> Vec<String> {
    let each = points.iter().flat_map(|point| {
        let name = name_of(point);
        let counts: &[usize] = if name == *point { &[1] } else { &[1, 11, COUNT] };
        counts.iter().map(move |n| format!("{name}:{n}"))
    });
    each.collect()
}

fn each_planned(victim: Victim) {
    drill(|d| {
        let mut known = volumes(d.lab);
        for point in alone(PLANNED) {
            d.there_and_back(victim, &mut known, &[&point]);
        }
        delete_all(d.lab, &known.into_keys().collect::<Vec<_>>());
    });
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn whole_matrix_a_planned_failover_dies_at_each_step() {
    each_planned(Victim::Service);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn whole_matrix_a_planned_failover_loses_its_workers_at_each_step() {
    each_planned(Victim::Workers);
}

/// Forced points in a fresh drill each: there is no way back from one that costs less.
macro_rules! forced {
    ($($name:ident: $victim:ident, $target:literal, $point:literal;)*) => { $(
        #[test]
        #[ignore = "whole matrix: tools/test --full"]
        fn $name() {
            drill(|d| d.forced_afresh(Victim::$victim, $target, &[$point]));
        }
    )* };
}

forced! {
    whole_matrix_forced_to_b_dies_accepted: Service, "site-b", "failover:accepted";
    whole_matrix_forced_to_b_dies_decided: Service, "site-b", "failover:decided";
    whole_matrix_forced_to_b_dies_forcing: Service, "site-b", "failover:forcing:11";
    whole_matrix_forced_to_b_dies_opening: Service, "site-b", "failover:opening:12";
    whole_matrix_forced_to_b_dies_moved: Service, "site-b", "failover:moved:20";
    whole_matrix_forced_to_a_dies_forcing: Service, "default", "failover:forcing:5";
    whole_matrix_forced_to_a_dies_opening: Service, "default", "failover:opening";
    whole_matrix_forced_to_a_dies_moved: Service, "default", "failover:all_moved";
    whole_matrix_forced_to_b_without_workers_forcing: Workers, "site-b", "failover:forcing:11";
    whole_matrix_forced_to_b_without_workers_opening: Workers, "site-b", "failover:opening:12";
    whole_matrix_forced_to_b_without_workers_moved: Workers, "site-b", "failover:moved:3";
}

fn each_given_up(victim: Victim, points: &[&str]) {
    drill(|d| {
        let mut known = volumes(d.lab);
        d.given_up(victim, &mut known, points);
        d.undisturbed("site-b");
        expect_on(d.lab, &mut known, "site-b", "ordered again");
        d.lab.forget_everything();
    });
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn whole_matrix_a_failover_that_is_not_accepted_dies_restoring() {
    each_given_up(Victim::Service, GIVEN_UP);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn whole_matrix_a_failover_that_is_not_accepted_loses_its_workers() {
    each_given_up(Victim::Workers, GIVEN_UP);
}
