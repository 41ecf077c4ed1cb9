//! What the extra specs of a type make of mirroring on real clusters: schedules of mirror snapshots that Ceph keeps, user
//! snapshots that come along, the live switch between journal and snapshots, and the parents of mirrored clones.

use serde_json::{Value, json};

use crate::common::{CEPH, Lab, row_str, wait_until};
use crate::drill::*;

/// Where data lies that is written once and never again.
const KEPT: u64 = 8 << 20;

/// A replicated type of the lab's backend with these extra specs, for this test alone; its name.
#[track_caller]
pub(crate) fn volume_type(lab: &Lab, name: &str, specs: &[(&str, &str)]) -> String {
    let name = format!("{name}-{}", std::process::id());
    let kind = lab.api("volume_types.create", json!([name]), json!({}))["id"].clone();
    let common = [("volume_backend_name", "ceph"), ("replication_enabled", "<is> True")];
    for (key, value) in common.iter().chain(specs) {
        lab.sql(
            "INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted) VALUES (%s, %s, %s, 0)",
            &[kind.clone(), json!(key), json!(value)],
        );
    }
    name
}

/// The intervals of an image's own schedule, as Ceph lists them.
fn schedules(lab: &Lab, site: &str, volume: &Known) -> Vec<String> {
    let image = format!("volume-{}", volume.id);
    let words = ["mirror", "snapshot", "schedule", "ls", "--pool", "volumes", "--image", &image];
    let out = lab.try_tool(&[&["rbd", site], &words[..], &["--format", "json"]].concat());
    let listed: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    let intervals = listed.as_array().into_iter().flatten();
    intervals.map(|s| row_str(s, "interval").to_owned()).collect()
}

fn kept(site: &str, volume: &Known) -> Value {
    json!({"site": site, "image": format!("volume-{}", volume.id), "offset": KEPT})
}

/// A retype under a volume that has data; both copies have all of it afterwards.
fn switch(lab: &Lab, volume: &mut Known, volume_type: &str, mode: &str) {
    let mut write = kept("a", volume);
    write["seed"] = json!(fresh());
    let sum = lab.ceph("write", write);
    lab.api("volumes.retype", json!([volume.id, volume_type, "never"]), json!({}));
    wait_until(&format!("mirrored by {mode}"), 150, || {
        lab.volume(&volume.id)["status"] == "available" && lab.image("a", &volume.id)["mode"] == mode
    });
    expect_rows(lab, std::slice::from_ref(volume), "enabled");
    lab.wait_copied(&volume.id, "b", &volume.sum);
    assert_eq!(lab.image("b", &volume.id)["mode"], mode);
    for site in ["a", "b"] {
        assert_eq!(lab.ceph("checksum", kept(site, volume)), sum, "{mode}: site {site}");
    }
    rewrite(lab, std::slice::from_mut(volume), "a");
}

/// Clones of a volume that is not mirrored; they are gone at the end.
fn clones(lab: &Lab) {
    let policy = |word| volume_type(lab, word, &[("replication:parent", word)]);
    let parent = lab.volume_of_type("ceph");
    let sum = lab.write("a", &parent, fresh());
    let snapshot = lab.snapshot_of(&parent);
    let clone = |volume_type: &str| lab.create(json!({"snapshot_id": snapshot, "volume_type": volume_type}));

    let refused = clone("replicated");
    wait_until("a clone of what is not mirrored is refused", 60, || {
        lab.volume(&refused)["status"] == "error"
    });
    assert_eq!(lab.volume(&parent)["replication_status"], "disabled");
    let flat = clone(&policy("flatten"));
    assert_eq!(lab.wait_status(&flat, "available")["replication_status"], "enabled");
    assert_eq!(lab.image("a", &flat)["parent"], Value::Null);
    assert_eq!(lab.volume(&parent)["replication_status"], "disabled");
    let child = clone(&policy("mirror"));
    assert_eq!(lab.wait_status(&child, "available")["replication_status"], "enabled");
    assert_ne!(lab.image("a", &child)["parent"], Value::Null, "it is still a clone");
    assert_eq!(lab.volume(&parent)["replication_status"], "enabled");
    for id in [&flat, &parent, &child] {
        lab.wait_mirrored(id, "b");
        lab.wait_copied(id, "b", &sum);
    }
    lab.delete(&[&refused, &flat, &child]);
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&parent]);
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_volume_is_switched_to_snapshots_and_back_with_its_data_and_its_snapshots_are_carried_over() {
    let lab = &Lab::get();
    if !lab.only_scoria("stock mirrors by journal only") {
        return;
    }
    let mut volumes = mirrored(lab, &BOTH[..2]);
    let snapshot = lab.snapshot_of(&volumes[1].id);
    switch(lab, &mut volumes[0], "replicated-snapshot", "snapshot");
    let image = format!("volume-{}", volumes[1].id);
    let seen = json!({"site": "b", "image": image, "snapshot": format!("snapshot-{snapshot}")});
    wait_until("the user's snapshot is carried over", 60, || {
        lab.ceph.call("checksum", seen.clone()).is_ok_and(|sum| sum == volumes[1].sum)
    });
    let taken = volumes[1].sum.clone();
    rewrite(lab, &mut volumes[1..], "a");
    assert_eq!(lab.ceph("checksum", seen), json!(taken), "a snapshot stays what it was");
    switch(lab, &mut volumes[0], "replicated", "journal");
    expect_no_split(lab, &volumes);
    lab.delete_snapshot(&snapshot);
    clean(lab, &volumes);
}

/// The minute that a schedule needs is used for what else a type decides.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_schedule_carries_data_over_and_clones_bring_their_parents() {
    let lab = &Lab::get();
    if !lab.only_scoria("stock mirrors by journal only, and no clones") {
        return;
    }
    let minutely =
        volume_type(lab, "minutely", &[("replication:mode", "snapshot"), ("replication:schedule", "1m")]);
    let mut volumes = mirrored(lab, &[&minutely]);
    wait_until("the schedule is set", 90, || schedules(lab, "a", &volumes[0]) == ["1m"]);
    // Nobody but the schedule takes a mirror snapshot of this.
    volumes[0].sum = lab.write("a", &volumes[0].id, fresh());
    clones(lab);
    lab.wait_copied(&volumes[0].id, "b", &volumes[0].sum);
    lab.api("volumes.retype", json!([volumes[0].id, "replicated-snapshot", "never"]), json!({}));
    wait_until("no type asks for it any more", 90, || schedules(lab, "a", &volumes[0]).is_empty());
    expect_no_split(lab, &volumes);
    clean(lab, &volumes);
}

/// One that is lost comes back, and one goes where its volume goes.
#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_schedule_is_set_again_when_it_is_lost_and_follows_its_volume() {
    let lab = &Lab::get();
    if !lab.only_scoria("stock mirrors by journal only") {
        return;
    }
    let specs = [("replication:mode", "snapshot"), ("replication:schedule", "1h@00:30")];
    let mut volumes = mirrored(lab, &[&volume_type(lab, "hourly", &specs)]);
    wait_until("the schedule is set", 90, || schedules(lab, "a", &volumes[0]) == ["1h"]);
    let image = format!("volume-{}", volumes[0].id);
    let words = ["mirror", "snapshot", "schedule", "rm", "--pool", "volumes", "--image", &image];
    lab.tool(&[&["rbd", "a"], &words[..]].concat());
    assert!(schedules(lab, "a", &volumes[0]).is_empty());
    wait_until("it is set again", 120, || schedules(lab, "a", &volumes[0]) == ["1h"]);

    carry_out(lab, &move_order("site-b", &volumes, Some("--planned")));
    wait_until("it has followed", 120, || schedules(lab, "b", &volumes[0]) == ["1h"]);
    rewrite(lab, &mut volumes, "b");
    carry_out(lab, &move_order("default", &volumes, Some("--planned")));
    wait_until("and is back", 120, || schedules(lab, "a", &volumes[0]) == ["1h"]);
    assert_eq!(lab.service(CEPH)["replication_status"], "enabled");
    expect_served_from_a(lab, &volumes);
    clean(lab, &volumes);
}
