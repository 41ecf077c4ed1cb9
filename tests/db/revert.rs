//! Reverting a volume: its content, its row, that of the snapshot, and what is told.

use std::time::Duration;

use scoria::journal::Operation;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::{ImageWrite, MirrorEnable};
use scoria::rbd::sim::{Fault, When};
use scoria::rbd::types::MirrorMode;
use scoria::volume::revert::{self, Revert};

use crate::seed;
use crate::stage::Stage;

struct Reverted {
    volume: String,
    snapshot: String,
    image: String,
    /// The content at the time of the snapshot.
    before: u64,
}

/// A volume with a snapshot, written to since, as the API leaves both.
async fn reverting(stage: &Stage, mode: Option<MirrorMode>) -> Reverted {
    let extra = if mode.is_some() { ", replication_status='enabled'" } else { "" };
    let volume = seed::volume(&stage.test, 1, "reverting", extra).await;
    let snapshot = seed::snapshot(&stage.test, 1, &volume, "restoring").await;
    let image = stage.image(&volume).await;
    if let Some(mode) = mode {
        let enable = MirrorEnable { pool: "volumes".into(), image: image.clone(), mode };
        stage.sim.site("a").call(enable).await.unwrap();
    }
    stage.snapped(&image, &snapshot).await;
    let before = stage.seen(&image).unwrap().checksum;
    let write =
        ImageWrite { pool: "volumes".into(), image: image.clone(), offset: 0, data: b"later".to_vec() };
    stage.sim.site("a").call(write).await.unwrap();
    Reverted { volume, snapshot, image, before }
}

async fn operation(stage: &Stage, what: &Reverted) -> Operation {
    stage.operation("revert_to_snapshot", Some(("Volume", &what.volume))).await
}

async fn run(stage: &Stage, operation: &Operation, what: &Reverted) {
    let request = Revert { volume_id: what.volume.clone(), snapshot_id: what.snapshot.clone() };
    revert::revert(&stage.backend, &stage.context, operation, request).await.unwrap();
}

async fn statuses(stage: &Stage, what: &Reverted) -> [String; 2] {
    [stage.status("volumes", &what.volume).await, stage.status("snapshots", &what.snapshot).await]
}

#[tokio::test]
async fn a_revert_brings_back_the_content_in_every_way_of_mirroring() {
    for mode in [None, Some(MirrorMode::Journal), Some(MirrorMode::Snapshot)] {
        let stage = if mode.is_some() { Stage::replicated().await } else { Stage::new().await };
        let what = reverting(&stage, mode).await;
        let operation = operation(&stage, &what).await;
        run(&stage, &operation, &what).await;
        assert_eq!(stage.seen(&what.image).unwrap().checksum, what.before, "{mode:?}");
        assert_eq!(stage.seen(&what.image).unwrap().size, 2 << 30);
        assert_eq!(statuses(&stage, &what).await, ["available", "available"]);
        assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
        assert!(stage.messages().await.is_empty());
        assert_eq!(
            stage.heard.events(),
            [
                format!("volume.revert.start {} reverting", what.volume),
                format!("snapshot.revert.start {} restoring", what.snapshot),
                format!("volume.revert.end {} available", what.volume),
                format!("snapshot.revert.end {} available", what.snapshot),
            ]
        );
        let restored = usize::from(mode == Some(MirrorMode::Snapshot));
        let counts = ["SnapRestore", "MirrorSnapshot", "SnapRollback"].map(|name| stage.sim.count(name));
        assert_eq!(counts, [restored, restored, 1 - restored], "{mode:?}");
    }
}

#[tokio::test]
async fn a_revert_that_fails_is_an_error_of_the_volume_alone() {
    let stage = Stage::new().await;
    let what = reverting(&stage, None).await;
    stage.sim.inject(Fault::on("SnapRollback").always().fails(When::Before, RbdErrorKind::ReadOnly));
    let operation = operation(&stage, &what).await;
    run(&stage, &operation, &what).await;
    assert_eq!(statuses(&stage, &what).await, ["error", "available"]);
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(stage.messages().await, [["VOLUME", what.volume.as_str(), "", "001"]]);
    assert_eq!(
        stage.heard.events()[2..],
        [
            format!("volume.revert.end {} reverting", what.volume),
            format!("snapshot.revert.end {} restoring", what.snapshot),
        ]
    );
}

#[tokio::test]
async fn a_volume_that_was_taken_out_of_reverting_keeps_its_content() {
    let stage = Stage::new().await;
    let what = reverting(&stage, None).await;
    let written = stage.seen(&what.image).unwrap().checksum;
    stage.test.sql(&format!("UPDATE volumes SET status='available' WHERE id='{}'", what.volume)).await;
    let operation = operation(&stage, &what).await;
    run(&stage, &operation, &what).await;
    assert_eq!(stage.seen(&what.image).unwrap().checksum, written);
    assert_eq!(statuses(&stage, &what).await, ["available", "available"]);
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert!(stage.messages().await.is_empty());
}

#[tokio::test]
async fn a_snapshot_that_is_gone_or_anothers_reverts_nothing() {
    let stage = Stage::new().await;
    let mut what = reverting(&stage, None).await;
    let written = stage.seen(&what.image).unwrap().checksum;
    let other = seed::volume(&stage.test, 2, "available", "").await;
    what.snapshot = seed::snapshot(&stage.test, 2, &other, "available").await;
    let operation = operation(&stage, &what).await;
    run(&stage, &operation, &what).await;
    assert_eq!(statuses(&stage, &what).await, ["error", "available"]);
    assert_eq!(stage.seen(&what.image).unwrap().checksum, written);
}

#[tokio::test]
async fn a_revert_that_dies_half_way_is_finished_by_the_next_service() {
    for call in ["SnapRollback", "SnapRestore", "MirrorSnapshot"] {
        let mode = if call == "SnapRollback" { MirrorMode::Journal } else { MirrorMode::Snapshot };
        let mut stage = Stage::replicated().await;
        let what = reverting(&stage, Some(mode)).await;
        let operation = operation(&stage, &what).await;
        stage.sim.inject(Fault::on(call).sticks());
        let begun = run(&stage, &operation, &what);
        assert!(tokio::time::timeout(Duration::from_secs(1), begun).await.is_err(), "{call}");
        stage.sim.clear_faults();
        stage.restart();
        let adopted = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
        run(&stage, &adopted, &what).await;
        assert_eq!(stage.seen(&what.image).unwrap().checksum, what.before, "{call}");
        assert_eq!(statuses(&stage, &what).await, ["available", "available"], "{call}");
        assert_eq!(stage.ended(&adopted).await, ["closed", "succeeded"]);
    }
}

#[tokio::test]
async fn a_volume_that_failed_over_meanwhile_is_not_called_reverted() {
    let stage = Stage::replicated().await;
    let what = reverting(&stage, Some(MirrorMode::Journal)).await;
    let operation = operation(&stage, &what).await;
    stage.sim.inject(Fault::on("SnapRollback").delays(Duration::from_secs(1)));
    let move_on = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        stage.backend.activate("b").unwrap();
    };
    tokio::join!(run(&stage, &operation, &what), move_on);
    assert_eq!(statuses(&stage, &what).await, ["error", "available"]);
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
}
