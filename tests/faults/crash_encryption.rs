//! The service dies while an encrypted volume is made: between its image and its header, and after each: in the
//! end the key opens it, on both sites.

use serde_json::json;

use crate::common::{Lab, full, wait_until};
use crate::crash::{WHY, arm, died_at, wait_quiet};

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn a_creation_dies_before_and_after_its_image_has_a_header() {
    let lab = Lab::get();
    if !lab.only_scoria(WHY) {
        return;
    }
    let specs = [("volume_backend_name", "ceph"), ("replication_enabled", "<is> True")];
    let kind = lab.encrypted_type("secret-dying", 256, &specs);
    let points: &[&str] = match full() {
        true => &[
            "create_volume:accepted",
            "create_volume:unformatted",
            "create_volume:image_created",
            "create_volume:mirrored",
        ],
        false => &["create_volume:unformatted", "create_volume:mirrored"],
    };
    let key = lab.fixed_key();
    for point in points {
        arm(&lab, point);
        let id = lab.create(json!({"volume_type": "secret-dying"}));
        died_at(&lab, point);
        wait_quiet(&lab, point);
        let row = lab.wait_status(&id, "available");
        assert_eq!(row["replication_status"], "enabled", "{point}");
        lab.expect_opens("a", "volumes", &id, 1);
        wait_until(&format!("{point}: the other site has it too"), 120, || {
            lab.opened("b", "volumes", &id, &key) == Ok(1 << 30)
        });
        lab.delete(&[&id]);
    }
    lab.api("volume_types.delete", json!([kind]), json!({}));
}
