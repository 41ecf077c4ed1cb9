//! The service dies while it moves data between Glance and Ceph: after a restart what was accepted is done.

use crate::common::{Lab, wait_until};
use crate::upload::{checksum_in_store, checksum_of_image, expect_no_files, fill, order};

const WHY: &str = "stock knows neither journal nor crash points";

/// Until it has died there; it is started again as usual.
fn died_at(lab: &Lab, point: &str) {
    lab.wait_service_gone(120);
    let log = lab.service_log();
    let life = log.rsplit("lab starts scoria-volume").next().unwrap_or_default();
    let name =
        point.rsplit_once(':').filter(|(_, n)| n.parse::<u32>().is_ok()).map_or(point, |(name, _)| name);
    assert!(life.contains(&format!("dying at {name},")), "{point}: it died, but not there");
    lab.start_service();
}

#[test]
#[ignore = "whole matrix: tools/test --full"]
fn an_upload_dies_at_every_step() {
    let lab = Lab::with_images();
    if !lab.only_scoria(WHY) {
        return;
    }
    let volume = lab.volume_of_type("ceph");
    let content = fill(&lab, &volume, 70);
    for (point, disk_format) in [
        ("copy_volume_to_image:accepted", "qcow2"),
        ("copy_volume_to_image:converted", "qcow2"),
        ("copy_volume_to_image:uploaded", "qcow2"),
        ("copy_volume_to_image:sending:300", "raw"),
    ] {
        lab.stop_service();
        lab.start_service_with(&[], &[("SCORIA_CRASH_AT", point)]);
        let image = order(&lab, "admin", &volume, disk_format, false);
        died_at(&lab, point);
        wait_until(&format!("{point}: nothing is left to do"), 120, || {
            lab.transitional().is_empty()
                && lab.rows("SELECT id FROM scoria_operations WHERE state <> 'closed'", &[]).is_empty()
        });
        assert_eq!(lab.volume(&volume)["status"], "available", "{point}");
        assert!(lab.messages(&volume).is_empty(), "{point}: {:?}", lab.messages(&volume));
        assert_eq!(lab.glance_image(&image)["status"], "active", "{point}");
        let arrived = match disk_format {
            "raw" => checksum_in_store(&lab, "a", &image),
            _ => checksum_of_image(&lab, &image, disk_format),
        };
        assert_eq!(arrived, content, "{point}");
        lab.delete_images(&[&image]);
    }
    expect_no_files(&lab);
    lab.delete(&[&volume]);
    lab.stop_service();
    lab.start_service();
}
