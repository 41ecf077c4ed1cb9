//! Failover while a site is dead or hung, by every way to order it, and the way back through an explicit resync.
//!
//! Every drill has volumes of both modes side by side.

use serde_json::{Value, json};

use crate::common::{CEPH, Lab, Subject, row_str, wait_until};
use crate::drill::*;
use crate::group::{delete_group, group_of, group_type, wait_group};

/// How a site is lost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    Killed,
    Hung,
}

impl Loss {
    pub(crate) fn strike(self, lab: &Lab, site: &str) {
        match self {
            Loss::Killed => lab.kill(site),
            Loss::Hung => lab.pause(site),
        }
    }

    pub(crate) fn mend(self, lab: &Lab, site: &str) {
        match self {
            Loss::Killed => lab.start_site(site),
            Loss::Hung => lab.resume_site(site),
        }
    }
}

/// What is moved by the operator's tool, with what he says of the lost site. The rest is left to cinder-api.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Nothing: the verdict decides.
    Api,
    /// One volume of each mode.
    Set(&'static str),
    /// A group with one volume of each mode.
    Group(&'static str),
    /// Everything.
    Backend(&'static str),
}

/// Silence is known for death after three probes; the default's are of five seconds.
const QUICK_VERDICT: &str = "scoria_verdict_timeout = 2";

/// The service anew, with options of the replicated backend.
pub(crate) fn restart_with(lab: &Lab, options: &str) {
    let conf = lab.root.join("conf/tests-replication.conf");
    std::fs::write(&conf, format!("[ceph]\n{options}\n")).unwrap();
    lab.start_service_with(&["--config-file", conf.to_str().unwrap()], &[]);
}

struct Drill<'a> {
    lab: &'a Lab,
    /// The first two are what the tool moves, if it moves some.
    volumes: Vec<Known>,
    group: Option<(String, Value)>,
}

impl<'a> Drill<'a> {
    fn new(lab: &'a Lab, way: Way) -> Drill<'a> {
        if lab.subject == Subject::Stock {
            return Drill { lab, volumes: mirrored_volumes(lab, "replicated", 3), group: None };
        }
        if !matches!(way, Way::Group(_)) {
            return Drill { lab, volumes: mirrored(lab, BOTH), group: None };
        }
        let kind = group_type(lab, "group_replication_enabled");
        let group = group_of(lab, &kind, &BOTH[..2]);
        let mut volumes = mirrored_with(lab, &BOTH[..2], &json!({"group_id": group}));
        volumes.extend(mirrored(lab, &BOTH[2..]));
        lab.api("groups.enable_replication", json!([group]), json!({}));
        wait_group(lab, &group, "enabled");
        Drill { lab, volumes, group: Some((group, kind)) }
    }

    /// `failover` of what the way says, with this word.
    fn order<'b>(&'b self, way: Way, word: &'b str) -> Vec<&'b str> {
        match &self.group {
            Some((group, _)) => [&move_order("site-b", &[], Some(word))[..], &["--group", group]].concat(),
            None if matches!(way, Way::Backend(_)) => move_order("site-b", &[], Some(word)),
            None => move_order("site-b", &self.volumes[..2], Some(word)),
        }
    }

    /// Until everything is served from site B, which is all that there is.
    fn leave(&self, way: Way) {
        let (lab, volumes) = (self.lab, &self.volumes);
        match way {
            Way::Api => {}
            Way::Backend(word) => {
                carry_out(lab, &self.order(way, word));
                return expect_failed_over(lab, volumes);
            }
            Way::Set(word) | Way::Group(word) => {
                carry_out(lab, &self.order(way, word));
                expect_rows(lab, &volumes[..2], "failed-over");
                expect_rows(lab, &volumes[2..], "enabled");
                let service = lab.service(CEPH);
                assert_eq!(
                    (&service["replication_status"], &service["disabled"]),
                    (&json!("enabled"), &json!(0))
                );
                expect_served_from_b(lab, &volumes[..2], true);
                for v in &volumes[2..] {
                    assert_eq!(lab.image("b", &v.id)["primary"], false, "nobody has ordered it");
                }
            }
        }
        fail_over(lab, volumes);
    }

    fn end(self) {
        match &self.group {
            Some((group, kind)) => {
                let row = self.lab.rows("SELECT * FROM `groups` WHERE id = %s", &[json!(group)]).remove(0);
                assert_eq!(row["replication_status"], "enabled");
                self.lab.api("groups.disable_replication", json!([group]), json!({}));
                wait_group(self.lab, group, "disabled");
                delete_group(self.lab, group);
                clean(self.lab, &self.volumes[2..]);
                self.lab.api("group_types.delete", json!([kind]), json!({}));
            }
            None => clean(self.lab, &self.volumes),
        }
    }
}

fn drill(way: Way, loss: Loss, restart: bool) {
    let lab = &Lab::get();
    if (way != Way::Api || restart) && !lab.only_scoria("stock has neither tool nor a start without its site")
    {
        return;
    }
    let mut drill = Drill::new(lab, way);
    loss.strike(lab, "site-a");
    if restart {
        lab.kill_service();
        restart_with(lab, QUICK_VERDICT);
        wait_until("the service is ready for a failover without site A", 90, || {
            lab.service(CEPH)["replication_status"] == "enabled"
        });
    }
    if matches!(way, Way::Group(_) | Way::Backend(_)) {
        let said = refused(lab, &drill.order(way, "--planned"));
        assert!(said.contains("Site default is dead"), "{said}");
        expect_rows(lab, &drill.volumes, "enabled");
    }
    drill.leave(way);
    expect_served_from_b(lab, &drill.volumes, true);
    if lab.subject == Subject::Stock {
        loss.mend(lab, "site-a");
        lab.forget_everything();
        return;
    }
    let seeds: Vec<u32> = drill.volumes.iter().map(|_| fresh()).collect();
    for (v, seed) in drill.volumes.iter_mut().zip(&seeds) {
        v.sum = lab.write("b", &v.id, *seed);
    }

    loss.mend(lab, "site-a");
    refused_failback(lab, &drill.volumes);
    resync(lab, &drill.volumes, "default", &seeds);
    fail_back(lab, &drill.volumes);
    expect_no_split(lab, &drill.volumes);
    expect_served_from_a(lab, &drill.volumes);
    drill.end();
}

/// Both sides have a primary now: going back is refused, and nothing is discarded.
fn refused_failback(lab: &Lab, volumes: &[Known]) {
    assert_eq!(splits(lab, volumes), volumes.len(), "the drill needs two primaries");
    order(lab, "default");
    wait_decided(lab);
    for v in volumes {
        assert_eq!(lab.volume(&v.id)["replication_status"], "failover-error");
        assert_eq!(lab.checksum("b", &v.id), v.sum);
        assert_eq!(lab.try_write("b", &v.id, 12), "ok", "still served from site B");
    }
    assert_eq!(splits(lab, volumes), volumes.len(), "nothing is discarded by a failback");
    for v in volumes {
        let why = row_str(&lab.volume(&v.id), "replication_extended_status").to_owned();
        let command = format!("scoria-manage replication resync --backend {CEPH} --discard default");
        assert!(why.contains("primary on both sites") && why.contains(&command), "{why}");
    }
}

/// The explicit order to discard what a site has, whose volumes have been written with these seeds on the other.
pub(crate) fn resync(lab: &Lab, volumes: &[Known], discard: &str, seeds: &[u32]) {
    let (lost, kept) = if discard == "default" { ("a", "b") } else { ("b", "a") };
    let common = ["replication", "resync", "--backend", CEPH, "--discard", discard];
    let dry = lab.manage(&[&common[..], &["--dry-run"]].concat());
    let text = String::from_utf8_lossy(&dry.stdout).into_owned() + &String::from_utf8_lossy(&dry.stderr);
    assert!(dry.status.success(), "{text}");
    for v in volumes {
        assert!(text.contains(&v.id), "the preview names volume {}:\n{text}", v.id);
        assert_eq!(lab.image(lost, &v.id)["primary"], true, "a preview changes nothing");
    }
    let done = lab.manage(&[&common[..], &["--yes"]].concat());
    let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{text}");
    // In snapshot mode what was written since the last mirror snapshot takes another one.
    let written: Vec<(&str, u32)> =
        volumes.iter().map(|v| v.id.as_str()).zip(seeds.iter().copied()).collect();
    lab.wait_all_replicated(&written, kept);
    for v in volumes {
        assert_eq!(lab.image(lost, &v.id)["primary"], false, "{text}");
        assert_eq!(lab.checksum(lost, &v.id), v.sum, "site {lost} has what was written on {kept}");
        assert_eq!(lab.checksum(kept, &v.id), v.sum);
    }
}

/// Site B is lost while it serves: what it had mirrored is at home, and it is resynced when it is back.
fn forced_home(loss: Loss) {
    let lab = &Lab::get();
    if !lab.only_scoria("stock leaves every volume read-only") {
        return;
    }
    let mut volumes = mirrored(lab, BOTH);
    fail_over(lab, &volumes);
    expect_no_split(lab, &volumes);
    rewrite(lab, &mut volumes, "b");
    loss.strike(lab, "site-b");
    fail_back(lab, &volumes);
    let mut seeds = Vec::new();
    for v in &mut volumes {
        assert_eq!(lab.checksum("a", &v.id), v.sum, "volume {}", v.id);
        let seed = fresh();
        v.sum = lab.write("a", &v.id, seed);
        seeds.push(seed);
    }
    loss.mend(lab, "site-b");
    assert_eq!(splits(lab, &volumes), volumes.len());
    resync(lab, &volumes, "site-b", &seeds);
    expect_no_split(lab, &volumes);
    expect_served_from_a(lab, &volumes);
    clean(lab, &volumes);
}

/// The volumes that are not named go by cinder-api, whose orders leave it to the verdict.
#[test]
fn a_set_leaves_a_hung_site_as_unplanned_and_the_rest_follows() {
    drill(Way::Set("--unplanned"), Loss::Hung, true);
}

#[test]
fn the_service_restarts_while_site_a_is_dead_and_a_set_is_forced_out_of_it() {
    drill(Way::Set("--force"), Loss::Killed, true);
}

macro_rules! matrix {
    ($($name:ident: $way:expr, $loss:ident;)*) => { $(
        #[test]
        #[ignore = "whole matrix: tools/test --full"]
        fn $name() {
            drill($way, Loss::$loss, false);
        }
    )* };
}

matrix! {
    site_a_killed_ordered_by_the_api: Way::Api, Killed;
    site_a_killed_a_set_as_unplanned: Way::Set("--unplanned"), Killed;
    site_a_killed_a_group_as_unplanned: Way::Group("--unplanned"), Killed;
    site_a_killed_a_group_by_force: Way::Group("--force"), Killed;
    site_a_killed_the_backend_as_unplanned: Way::Backend("--unplanned"), Killed;
    site_a_hung_ordered_by_the_api: Way::Api, Hung;
    site_a_hung_a_set_by_force: Way::Set("--force"), Hung;
    site_a_hung_a_group_as_unplanned: Way::Group("--unplanned"), Hung;
    site_a_hung_the_backend_as_unplanned: Way::Backend("--unplanned"), Hung;
    site_a_hung_the_backend_by_force: Way::Backend("--force"), Hung;
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn site_b_killed_while_it_serves() {
    forced_home(Loss::Killed);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn site_b_hung_while_it_serves() {
    forced_home(Loss::Hung);
}
