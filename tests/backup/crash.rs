//! The volume service dies while cinder-backup waits for it: the backup, or the restoration, goes on once.

use serde_json::json;

use crate::Backups;
use crate::common::{Lab, full, wait_until};

const WHY: &str = "stock knows neither journal nor crash points";

/// Has the service die at `point` when `order` is given, and starts it again.
fn die<T>(lab: &Lab, point: &str, order: impl FnOnce() -> T) -> T {
    lab.stop_service();
    lab.start_service_with(&[], &[("SCORIA_CRASH_AT", point)]);
    let ordered = order();
    lab.wait_service_gone(120);
    assert!(lab.service_log().contains(&format!("dying at {point},")), "{point}: it died, but not there");
    lab.start_service();
    ordered
}

#[test]
fn a_device_for_a_backup_is_made_and_handed_out_after_a_death() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let points: &[&str] = match full() {
        true => &[
            "get_backup_device:accepted",
            "get_backup_device:begun",
            "get_backup_device:copied",
            "get_backup_device:handed_out",
        ],
        false => &["get_backup_device:begun", "get_backup_device:handed_out"],
    };
    let backups = Backups::start(&lab);
    let id = lab.volume_of_type("ceph");
    lab.write("a", &id, 1);
    let snapshot = lab.snapshot_of(&id);
    for point in points {
        let backup = die(&lab, point, || backups.order(&id, json!({"snapshot_id": snapshot})));
        backups.wait(&backup, "available");
        lab.wait_snapshot(&snapshot, "available");
        wait_until(&format!("{point}: no copy is left"), 60, || {
            lab.rows("SELECT id FROM volumes WHERE deleted = 0", &[]).len() == 1
        });
        backups.delete(&backup);
    }
    lab.delete_snapshot(&snapshot);
    lab.delete(&[&id]);
}

#[test]
fn a_volume_from_a_backup_is_filled_after_a_death() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let points: &[&str] = match full() {
        true => {
            &["create_volume:image_created", "create_volume:handed_over", "create_volume:restoration_asked"]
        }
        false => &["create_volume:handed_over", "create_volume:restoration_asked"],
    };
    let backups = Backups::start(&lab);
    let id = lab.volume_of_type("ceph");
    let content = lab.write("a", &id, 1);
    let backup = backups.of(&id, json!({}));
    for point in points {
        let made = die(&lab, point, || lab.create(json!({"backup_id": backup, "volume_type": "ceph"})));
        lab.wait_status(&made, "available");
        backups.wait(&backup, "available");
        assert_eq!(lab.checksum("a", &made), content, "{point}");
        lab.delete(&[&made]);
    }
    backups.delete(&backup);
    lab.delete(&[&id]);
}
