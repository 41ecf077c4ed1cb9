//! A volume that a server has is moved, and the service dies before and after nova is asked to copy it: after a
//! restart nova has been asked once, and its report ends the migration.

use serde_json::{Value, json};

use crate::common::{Lab, connector, row_str, wait_for};
use crate::crash::{WHY, wait_death, wait_quiet};
use crate::nova::Control;

const SERVER: &str = "0d1ecb1c-3b5e-4f6b-9f0e-1a4b3c5d7e90";

/// What nova does with the copy before it answers; the attachment's id.
fn mark(lab: &Lab, new: &str) -> Value {
    lab.api("attachments.create", json!([new, null, SERVER]), json!({"mode": "rw"}))["id"].clone()
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_migration_by_nova_dies_before_and_after_nova_is_asked() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let kind = lab.api("volume_types.create", json!(["anywhere"]), json!({}));
    for (point, asked) in [("migrate_volume:asking", 0), ("migrate_volume:asked_nova", 1)] {
        let control = Control::start();
        let account = control.account();
        let id = lab.volume_of_type("anywhere");
        let made =
            lab.api("attachments.create", json!([id, connector("compute1"), SERVER]), json!({"mode": "rw"}));
        lab.api("attachments.complete", json!([made["id"]]), json!({}));
        let there = match row_str(&lab.volume(&id), "host") {
            "lab@ceph#ceph" => "lab@plain#plain",
            _ => "lab@ceph#ceph",
        };
        let mut dying = account.to_vec();
        dying.push(("SCORIA_CRASH_AT", point));
        lab.stop_service();
        lab.start_service_with(&[], &dying);
        lab.api("volumes.migrate_volume", json!([id, there, false, false]), json!({}));
        wait_death(&lab, point);
        assert_eq!(control.heard().len(), asked, "{point}");
        let target = json!(format!("target:{id}"));
        let found = lab.rows("SELECT id FROM volumes WHERE deleted = 0 AND migration_status = %s", &[target]);
        let new = row_str(&found[0], "id");
        let marked = (asked == 1).then(|| mark(&lab, new));

        lab.start_service_with(&[], &account);
        wait_quiet(&lab, point);
        let exchange = json!([format!("/v2.1/servers/{SERVER}/os-volume_attachments/{id}"), new]);
        assert_eq!(control.heard(), [exchange], "{point}");
        assert_eq!(lab.volume(&id)["migration_status"], "migrating", "{point}");

        // It has copied, and says so.
        let attachment = marked.unwrap_or_else(|| mark(&lab, new));
        lab.api("attachments.update", json!([attachment, connector("compute1")]), json!({}));
        lab.api("attachments.complete", json!([attachment]), json!({}));
        lab.api("attachments.delete", json!([made["id"]]), json!({}));
        lab.api("volumes.migrate_volume_completion", json!([id, new, false]), json!({}));
        let row = lab.volume(&id);
        assert_eq!((row_str(&row, "status"), row_str(&row, "host")), ("in-use", there), "{point}: {row}");
        assert_eq!(row["migration_status"], "success", "{point}");
        lab.api("attachments.delete", json!([attachment]), json!({}));
        wait_for(&format!("{point}: one row is left, and nobody has it"), 60, || {
            let left = lab.rows("SELECT id, status FROM volumes WHERE deleted = 0", &[]);
            (left.len() == 1 && left[0]["status"] == "available").then_some(())
        });
        lab.delete(&[&id]);
        lab.wait_quota(json!({}));
    }
    lab.stop_service();
    lab.start_service();
    lab.api("volume_types.delete", json!([kind["id"]]), json!({}));
}
