//! Deferred deletion on a real cluster: a clone and its parent, deleted together and purged one after the other.

use std::fs;

use serde_json::{Value, json};

use crate::common::{Lab, wait_until};

fn trash(lab: &Lab) -> Vec<String> {
    let listed = lab.ceph("trash", json!({"site": "a"}));
    let names = listed.as_array().into_iter().flatten().filter_map(|e| e["name"].as_str());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn what_is_deleted_waits_in_the_trash_and_is_purged_when_its_time_has_come() {
    let lab = Lab::get();
    if !lab.only_scoria("upstream defers only what it cannot remove") {
        return;
    }
    let path = lab.root.join("conf/tests-trash.conf");
    let options =
        "enable_deferred_deletion=true\ndeferred_deletion_delay=12\ndeferred_deletion_purge_interval=1\n";
    fs::write(&path, format!("[ceph]\n{options}")).unwrap();
    lab.stop_service();
    lab.start_service_with(&["--config-file", path.to_str().unwrap()], &[]);

    let parent = lab.volume_of_type("replicated");
    let clone = lab.create(json!({"source_volid": parent, "volume_type": "replicated"}));
    let single = lab.volume_of_type("ceph");
    let sum = lab.write("a", &single, 7);
    lab.wait_status(&clone, "available");
    let image = |id: &str| format!("volume-{id}");
    lab.delete(&[&single]);
    lab.delete(&[&clone]);
    lab.delete(&[&parent]);
    let mut waiting = [image(&clone), image(&single)];
    waiting.sort();
    assert_eq!(trash(&lab), waiting, "the rows are gone, and the images wait");
    let kept = format!("{}.deleted", image(&parent));
    assert!(!lab.ceph("info", json!({"site": "a", "image": kept})).is_null(), "the parent is needed");
    lab.wait_quota(json!({}));

    let section = ["--backend", "ceph"];
    let out = lab.manage(&[&["--format", "json", "trash", "list"], &section[..]].concat());
    let told: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    let listed: Vec<&Value> =
        told[0]["images"].as_array().into_iter().flatten().map(|i| &i["volume"]).collect();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(listed.len() == 2 && listed.contains(&&json!(single)), "{told:#}\n{said}");
    let restored = lab.manage(&[&["trash", "restore", &single], &section[..]].concat());
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let reference = json!(["lab@ceph#ceph", {"source-name": image(&single)}]);
    let managed = lab.api("volumes.manage", reference, json!({"volume_type": "ceph", "name": "restored"}));
    let managed = managed["id"].as_str().unwrap().to_owned();
    lab.wait_status(&managed, "available");
    assert_eq!(lab.checksum("a", &managed), sum);
    lab.delete(&[&managed]);

    // The clone when its time has come, then its parent, which waits as long from when nobody needs it.
    wait_until("the clone is purged, and its parent on its way", 30, || {
        !trash(&lab).contains(&image(&clone))
            && lab.ceph("info", json!({"site": "a", "image": kept})).is_null()
    });
    wait_until("all are purged", 40, || trash(&lab).is_empty());
    let removed = lab.service_log().lines().filter(|l| l.contains("removed from the trash")).count();
    assert_eq!(removed, 3, "the clone, its parent, and what had been restored");
}
