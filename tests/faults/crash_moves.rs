//! What an operator orders with his tool, and everybody dies: a set of volumes on its way to the other site, a drill, the
//! repair of what an audit has found. In the end each volume has one primary, where its row says, with its data.
//!
//! The sample has the service die at one step of each kind; the whole matrix has all steps, workers instead of the
//! service, an order by force, and broker, database and sites that are killed meanwhile.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::common::conf::Conf;
use crate::common::{CEPH, Lab, row_str, wait_for, wait_until};
use crate::crash::{WHY, delete_all, wait_death, wait_quiet};
use crate::workers::workers_died_at;

/// Every kind of step of a set that is moved in good order.
const MOVE: &[&str] = &[
    "move:accepted",
    "move:decided",
    "failover:demoting:2",
    "failover:promoting:2",
    "failover:moved:2",
    "move:all_moved",
    "move:written",
];
const DRILL_BEGINS: &[&str] = &[
    "replication_test:begun",
    "replication_test:taken",
    "replication_test:cloning",
    "replication_test:cloned",
    "replication_test:ready",
];
const DRILL_ENDS: &[&str] =
    &["replication_test:stopping", "replication_test:clone_removed", "replication_test:snapshot_removed"];
const ADOPTION: &[&str] = &["adopt:accepted", "adopt:proven", "adopt:written"];
const REPAIR: &[&str] = &["repair:enabling", "repair:mirrored", "repair:written"];

/// Seconds after which a demotion has failed, and a probe is silence.
const OPTIONS: &str = "scoria_demote_timeout = 6\nscoria_verdict_timeout = 2";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    Service,
    Workers,
}

fn fresh() -> u32 {
    static SEED: AtomicU32 = AtomicU32::new(70_000);
    SEED.fetch_add(1, Ordering::Relaxed)
}

/// Volumes of both modes, by id and what their first megabyte is.
struct Fleet<'a> {
    lab: &'a Lab,
    conf: String,
    volumes: Vec<(String, String)>,
}

impl<'a> Fleet<'a> {
    fn new(lab: &'a Lab, pairs: usize) -> Fleet<'a> {
        let types = ["replicated", "replicated-snapshot"].repeat(pairs);
        let ids: Vec<String> = types.iter().map(|t| lab.create(json!({"volume_type": t}))).collect();
        for id in &ids {
            lab.wait_status(id, "available");
        }
        for id in &ids {
            lab.wait_mirrored(id, "b");
        }
        let conf = lab.root.join("conf/tests-moves.conf");
        fs::write(&conf, format!("[ceph]\n{OPTIONS}\n")).unwrap();
        let volumes = ids.into_iter().map(|id| (id, String::new())).collect();
        let mut fleet = Fleet { lab, conf: conf.to_str().unwrap().to_owned(), volumes };
        fleet.rewrite("a");
        fleet
    }

    fn ids(&self) -> Vec<String> {
        self.volumes.iter().map(|(id, _)| id.clone()).collect()
    }

    /// New data that has arrived on the other site.
    fn rewrite(&mut self, site: &str) {
        let seeds: Vec<u32> = self.volumes.iter().map(|_| fresh()).collect();
        for ((id, sum), seed) in self.volumes.iter_mut().zip(&seeds) {
            *sum = self.lab.write(site, id, *seed);
        }
        let written: Vec<(&str, u32)> = self.volumes.iter().map(|(id, _)| id.as_str()).zip(seeds).collect();
        self.lab.wait_all_replicated(&written, site);
    }

    /// An order of the tool, which does not wait for its end.
    fn order(&self, words: &[&str]) {
        let out = self.lab.manage(&[&["replication"], words, &["--backend", CEPH, "--no-wait"]].concat());
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// All volumes, one by one, to another site.
    fn go(&self, target: &str, intent: &str) {
        let named = self.volumes.iter().flat_map(|(id, _)| ["--volume", id.as_str()]);
        let words: Vec<&str> =
            ["failover", "--to", target, intent, "--yes"].into_iter().chain(named).collect();
        self.order(&words);
    }

    fn start(&self, env: &[(&str, &str)]) {
        // One that dies while it starts is no failure here.
        let _ = self.lab.try_start_service_with(&["--config-file", &self.conf], env);
    }

    /// The order is given, and `victim` dies at each of the points, one life after the other.
    fn disturbed(&self, victim: Victim, points: &[&str], order: impl FnOnce()) {
        let what = points.join(",");
        self.lab.stop_service();
        match victim {
            Victim::Workers => {
                self.start(&[("SCORIA_KILL_WORKERS_AT", &what)]);
                let service = self.lab.service_pids().first().copied().unwrap_or_default();
                order();
                wait_quiet(self.lab, &what);
                workers_died_at(self.lab, service, points);
            }
            Victim::Service => {
                self.start(&[("SCORIA_CRASH_AT", points[0])]);
                order();
                for (n, point) in points.iter().enumerate() {
                    wait_death(self.lab, point);
                    match points.get(n + 1) {
                        Some(next) => self.start(&[("SCORIA_CRASH_AT", next)]),
                        None => self.start(&[]),
                    }
                }
                wait_quiet(self.lab, &what);
            }
        }
    }

    /// Those of `ids` that the rows call moved to `target` are there; what was left behind says why, and is primary where
    /// it was. Nothing has two primaries, and nothing is lost. How many were left.
    fn look(&self, target: &str, what: &str) -> usize {
        let (there, here, status) =
            if target == "default" { ("a", "b", "enabled") } else { ("b", "a", "failed-over") };
        let mut left = 0;
        for (id, sum) in &self.volumes {
            let row = self.lab.volume(id);
            let (site, other) = if row["replication_status"] == status {
                (there, here)
            } else {
                assert_eq!(row["replication_status"], "failover-error", "{what}: {row}");
                assert!(!row_str(&row, "replication_extended_status").is_empty(), "{what}: {row}");
                left += 1;
                (here, there)
            };
            assert_eq!(self.lab.image(site, id)["primary"], true, "{what}: {row}");
            assert_eq!(self.lab.image(other, id)["primary"], false, "{what}: {row} has two primaries");
            assert_eq!(&self.lab.checksum(site, id), sum, "{what}: {row}");
        }
        left
    }

    /// There, wherever it died: what could not be moved (a demotion may be cut short inside of librbd, so that its peer
    /// never hears of it) follows when it is ordered.
    fn arrived(&mut self, target: &str, what: &str) {
        let left = self.look(target, what);
        if left > 0 {
            eprintln!("{what}: {left} left behind");
            let from = if target == "default" { "b" } else { "a" };
            // A write shows that the copy follows again.
            let rows: Vec<Value> = self.volumes.iter().map(|(id, _)| self.lab.volume(id)).collect();
            for ((id, sum), row) in self.volumes.iter_mut().zip(rows) {
                if row["replication_status"] == "failover-error" {
                    let seed = fresh();
                    *sum = self.lab.write(from, id, seed);
                    self.lab.wait_replicated(id, from, seed);
                }
            }
            self.go(target, "--planned");
            wait_quiet(self.lab, what);
            assert_eq!(self.look(target, what), 0, "{what}");
        }
        self.rewrite(if target == "default" { "a" } else { "b" });
        let service = self.lab.service(CEPH);
        assert_eq!((row_str(&service, "replication_status"), &service["disabled"]), ("enabled", &json!(0)));
    }

    /// `test start` of all volumes, and its end, while `victim` dies.
    fn tried_out(&self, victim: Victim, begin: &[&str], end: &[&str]) {
        let lab = self.lab;
        let ids = self.ids();
        let named: Vec<&str> = ids.iter().flat_map(|id| ["--volume", id.as_str()]).collect();
        self.disturbed(victim, begin, || self.order(&[&["test", "start"], &named[..]].concat()));
        let query = "SELECT volume_id, state, clone FROM scoria_tests ORDER BY volume_id";
        let rows = lab.rows(query, &[]);
        assert_eq!(rows.len(), self.volumes.len(), "{rows:?}");
        for row in rows {
            assert_eq!(row["state"], "ready", "{row}");
            let (_, sum) = self.volumes.iter().find(|(id, _)| row["volume_id"] == *id).unwrap();
            let clone = json!({"site": "b", "image": row_str(&row, "clone")});
            assert_eq!(lab.ceph("checksum", clone), json!(sum), "{row}");
        }
        self.disturbed(victim, end, || self.order(&["test", "stop"]));
        assert!(lab.rows(query, &[]).is_empty());
        let images = lab.ceph("images", json!({"site": "b"}));
        let left =
            images.as_array().unwrap().iter().filter(|i| i.as_str().unwrap().starts_with("scoria-test-"));
        assert_eq!(left.count(), 0, "{images}");
        assert_eq!(self.look("default", "a drill"), 0);
    }

    /// An image that is not mirrored any more, and a row that does not say that its image is.
    fn mended(&mut self, victim: Victim, points: &[&str]) {
        let lab = self.lab;
        let (image, row) = (self.volumes[0].0.clone(), self.volumes[1].0.clone());
        lab.tool(&["rbd", "a", "mirror", "image", "disable", &format!("volumes/volume-{image}")]);
        wait_until("its copy is gone", 60, || lab.image("b", &image).is_null());
        lab.sql("UPDATE volumes SET replication_status = 'disabled' WHERE id = %s", &[json!(row)]);
        self.disturbed(victim, points, || self.order(&["audit", "--repair", "--yes"]));
        for (id, _) in &self.volumes {
            assert_eq!(lab.volume(id)["replication_status"], "enabled", "{points:?}");
        }
        lab.wait_mirrored(&image, "b");
        self.rewrite("a");
    }
}

fn fleet(pairs: usize, work: impl FnOnce(&mut Fleet<'_>)) {
    let lab = Lab::get();
    if lab.only_scoria(WHY) {
        let mut fleet = Fleet::new(&lab, pairs);
        work(&mut fleet);
        delete_all(&lab, &fleet.ids());
    }
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn sets_drills_and_repairs_outlive_the_service() {
    fleet(1, |f| {
        let points = &["failover:demoting:2", "move:all_moved"];
        f.disturbed(Victim::Service, points, || f.go("site-b", "--planned"));
        f.arrived("site-b", "there");
        f.disturbed(Victim::Workers, &["failover:promoting"], || f.go("default", "--planned"));
        f.arrived("default", "back");
        f.tried_out(Victim::Service, &["replication_test:cloning"], &["replication_test:clone_removed"]);
        f.mended(Victim::Service, &["repair:mirrored"]);
    });
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn whole_matrix_a_set_dies_at_each_step() {
    fleet(3, |f| {
        for victim in [Victim::Service, Victim::Workers] {
            // Nothing is under way at the last one.
            let points = if victim == Victim::Service { MOVE } else { &MOVE[..MOVE.len() - 1] };
            for target in ["site-b", "default"] {
                f.disturbed(victim, points, || f.go(target, "--planned"));
                f.arrived(target, &points.join(","));
            }
            for point in points {
                for target in ["site-b", "default"] {
                    f.disturbed(victim, &[point], || f.go(target, "--planned"));
                    f.arrived(target, point);
                }
            }
        }
    });
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn whole_matrix_a_drill_dies_at_each_step() {
    fleet(1, |f| {
        f.tried_out(Victim::Service, DRILL_BEGINS, DRILL_ENDS);
        for (begin, end) in DRILL_BEGINS.iter().zip(DRILL_ENDS.iter().cycle()) {
            f.tried_out(Victim::Service, &[begin], &[end]);
            f.tried_out(Victim::Workers, &[begin], &[end]);
        }
    });
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn whole_matrix_a_repair_dies_at_each_step() {
    fleet(1, |f| {
        f.mended(Victim::Service, REPAIR);
        for point in REPAIR {
            f.mended(Victim::Service, &[point]);
        }
        f.mended(Victim::Workers, &REPAIR[..2]);
    });
}

/// The secondary becomes the backend's own site, and later the old one again, while the service dies; each new process
/// reads the file in which the sites have changed places already.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn whole_matrix_an_adoption_dies_at_each_step() {
    fleet(1, |f| {
        let lab = f.lab;
        let conf = Conf::of(lab);
        let mut deaths = vec![ADOPTION.to_vec()];
        deaths.extend(ADOPTION.iter().map(|point| vec![*point]));
        for (round, points) in deaths.iter().enumerate() {
            // The peer is called what the file calls it: `site-b`, and `site-a` once they have changed places.
            let (peer, there, here) =
                if round % 2 == 0 { ("site-b", "b", "a") } else { ("site-a", "a", "b") };
            let moved = lab.manage(&[
                "replication",
                "failover",
                "--backend",
                CEPH,
                "--to",
                peer,
                "--planned",
                "--yes",
            ]);
            assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
            if round % 2 == 0 {
                conf.swap()
            } else {
                conf.restore()
            }
            f.disturbed(Victim::Service, points, || f.order(&["adopt", "--yes"]));
            let row = lab.service(CEPH);
            assert_eq!(
                (row_str(&row, "replication_status"), &row["active_backend_id"], &row["disabled"]),
                ("enabled", &json!(null), &json!(0)),
                "{points:?}"
            );
            for (id, sum) in &f.volumes {
                assert_eq!(lab.volume(id)["replication_status"], "enabled", "{points:?}");
                assert_eq!(lab.image(there, id)["primary"], true, "{points:?}");
                assert_eq!(lab.image(here, id)["primary"], false, "{points:?}");
                assert_eq!(&lab.checksum(there, id), sum, "{points:?}");
            }
            f.rewrite(there);
        }
    });
}

/// A client that gives its lock to nobody, so that only force leaves it.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn whole_matrix_what_is_forced_beside_a_living_site_dies_at_each_step() {
    const POINTS: &[&str] = &["move:decided", "failover:overriding", "failover:opening", "move:all_moved"];
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    for victim in [Victim::Service, Victim::Workers] {
        let f = Fleet::new(&lab, 2);
        let machine = lab.machine();
        for (id, _) in &f.volumes[..2] {
            let image = format!("volume-{id}");
            machine.call("hold", json!({"site": "a", "image": image, "exclusive": true})).unwrap();
        }
        f.disturbed(victim, POINTS, || f.go("site-b", "--force"));
        for (n, (id, sum)) in f.volumes.iter().enumerate() {
            assert_eq!(lab.volume(id)["replication_status"], "failed-over");
            assert_eq!(lab.image("b", id)["primary"], true);
            assert_eq!(lab.image("a", id)["primary"], n < 2, "only what does not demote is split");
            assert_eq!(&lab.checksum("b", id), sum);
            assert_eq!(lab.try_write("b", id, fresh()), "ok");
        }
        drop(machine);
        lab.forget_everything();
    }
}

/// Until one of the volumes of the open move has been recorded so; false when it is over.
fn reached(lab: &Lab, step: &str) -> bool {
    let query = "SELECT o.state, (SELECT COUNT(*) FROM scoria_operation_steps s WHERE s.operation_id = o.id AND \
                 s.step = %s) AS n FROM scoria_operations o WHERE o.method = 'scoria.replication.move' \
                 ORDER BY o.id DESC LIMIT 1";
    wait_for(&format!("the move is {step}"), 60, || {
        let row = lab.rows(query, &[json!(step)]).into_iter().next()?;
        let found = row["n"].as_u64().unwrap_or_default() > 0;
        (found || row["state"] == "closed").then_some(found)
    })
}

/// Somebody else is killed when the move is there, and comes back.
fn struck(f: &mut Fleet<'_>, name: &str, mend: impl Fn(&Lab)) {
    let mut met = 0;
    for step in ["demoting", "promoting", "moved"] {
        for target in ["site-b", "default"] {
            f.go(target, "--planned");
            met += usize::from(reached(f.lab, step));
            f.lab.kill(name);
            mend(f.lab);
            f.lab.driver.call("forget_connections", json!({})).unwrap();
            wait_quiet(f.lab, name);
            f.arrived(target, &format!("{name} killed at {step}"));
        }
    }
    assert!(met >= 3, "{name} was killed in the middle of a move {met} times of 6");
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn whole_matrix_a_set_moves_while_broker_and_database_are_killed() {
    fleet(4, |f| {
        struck(f, "rabbitmq", |lab| lab.start("rabbitmq"));
        struck(f, "mariadb", |lab| lab.start("mariadb"));
    });
}

/// What is ordered as planned is never forced: it arrives, or it is where it was when the site is back.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn whole_matrix_a_set_moves_while_a_site_is_killed() {
    fleet(2, |f| {
        struck(f, "site-a", |lab| lab.start_site("site-a"));
        struck(f, "site-b", |lab| lab.start_site("site-b"));
    });
}
