//! Taking images and snapshots over: rows, quota, and what becomes of them when it fails.

use std::time::Duration;

use scoria::journal::Operation;
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::{ImageRename, MirrorEnable, SnapCreate};
use scoria::rbd::sim::{Fault, When};
use scoria::rbd::types::MirrorMode;
use scoria::volume::image::{Attempt, Shape};
use scoria::volume::manage::{self, Manage};
use scoria::volume::manage_snapshot::{self, ManageSnapshot};
use scoria::volume::manageable::{self, Page};
use serde_json::{Map, Value, json};

use crate::seed::{self, PROJECT};
use crate::stage::Stage;

const GIB: u64 = 1 << 30;

fn reference(name: &str) -> Map<String, Value> {
    json!({"source-name": name}).as_object().unwrap().clone()
}

async fn foreign(stage: &Stage, name: &str, bytes: u64) {
    let shape = Shape { order: 22, features: 61 };
    stage.place().create(name, bytes, shape, Attempt::First).await.unwrap();
}

/// A row as the API leaves it, which has counted the volume but not its size.
async fn managing(stage: &Stage, number: u32) -> String {
    let id = seed::volume(&stage.test, number, "managing", ", size=0").await;
    for name in ["volumes", "volumes_plain"] {
        stage
            .test
            .sql(&format!(
                "INSERT IGNORE INTO quota_usages (project_id, resource, in_use, reserved, race_preventer, deleted)
                 VALUES ('{PROJECT}', '{name}', 1, 0, 1, 0)"
            ))
            .await;
    }
    id
}

async fn run(stage: &Stage, operation: &Operation, volume: &str, source: &str) {
    let request = Manage { volume_id: volume.to_owned(), reference: reference(source) };
    manage::manage(&stage.backend, &stage.context, operation, request).await.unwrap();
}

async fn manage(stage: &Stage, volume: &str, source: &str) -> Vec<String> {
    let operation = stage.operation("manage_existing", Some(("Volume", volume))).await;
    run(stage, &operation, volume, source).await;
    stage.ended(&operation).await
}

async fn used(stage: &Stage) -> Vec<Vec<String>> {
    stage.test.rows("SELECT resource, in_use, reserved FROM quota_usages ORDER BY resource").await
}

async fn open_reservations(stage: &Stage) -> String {
    stage.test.row("SELECT COUNT(*) FROM reservations WHERE deleted=0").await.remove(0)
}

async fn without_replication(stage: &Stage) {
    stage.test.sql("UPDATE volume_type_extra_specs SET deleted=1").await;
}

#[tokio::test]
async fn an_image_becomes_a_volume_of_its_size() {
    let stage = Stage::new().await;
    foreign(&stage, "foreign", 3 * GIB - 1).await;
    let id = managing(&stage, 1).await;
    assert_eq!(manage(&stage, &id, "foreign").await, ["closed", "succeeded"]);
    assert_eq!(stage.sim.images("a", "volumes"), [format!("volume-{id}")]);
    let row = stage
        .test
        .row("SELECT status, size, launched_at IS NOT NULL, replication_status, service_uuid FROM volumes")
        .await;
    assert_eq!(row, ["available", "3", "1", "NULL", "NULL"]);
    assert_eq!(
        used(&stage).await,
        [
            ["gigabytes", "3", "0"],
            ["gigabytes_plain", "3", "0"],
            ["volumes", "1", "0"],
            ["volumes_plain", "1", "0"]
        ]
    );
    assert_eq!(open_reservations(&stage).await, "0");
    assert_eq!(
        stage.heard.events(),
        [
            format!("volume.manage_existing.start {id} managing"),
            format!("volume.manage_existing.end {id} available")
        ]
    );
    assert_eq!(stage.backend.allocated_gb(), 3);
    assert!(stage.messages().await.is_empty());
}

#[tokio::test]
async fn a_managed_volume_is_mirrored_as_its_type_says() {
    let stage = Stage::replicated().await;
    foreign(&stage, "foreign", GIB).await;
    let id = managing(&stage, 1).await;
    assert_eq!(manage(&stage, &id, "foreign").await, ["closed", "succeeded"]);
    let row = stage.test.row("SELECT replication_status, replication_driver_data FROM volumes").await;
    assert_eq!(row, ["enabled", r#"{"had_exclusive_lock":true,"had_journaling":false}"#]);
    assert_eq!(stage.seen(&format!("volume-{id}")).unwrap().mirror, Some(MirrorMode::Journal));

    let stage = Stage::replicated().await;
    without_replication(&stage).await;
    foreign(&stage, "foreign", GIB).await;
    let id = managing(&stage, 1).await;
    assert_eq!(manage(&stage, &id, "foreign").await, ["closed", "succeeded"]);
    assert_eq!(stage.column("volumes", "replication_status", &id).await, "disabled");
    assert_eq!(stage.seen(&format!("volume-{id}")).unwrap().mirror, None);
}

/// The volume is `error_managing` and counts no longer, the image is as it was.
async fn expect_refused(stage: &Stage, id: &str, source: &str, detail: &str) {
    let names = stage.sim.images("a", "volumes");
    let before = stage.seen(source);
    assert_eq!(manage(stage, id, source).await, ["closed", "failed"], "{source}");
    assert_eq!(stage.status("volumes", id).await, "error_managing", "{source}");
    assert_eq!(stage.sim.images("a", "volumes"), names, "{source}");
    assert_eq!(stage.seen(source), before, "{source}");
    assert_eq!(open_reservations(stage).await, "0");
    let messages = stage.messages().await;
    assert!(messages.contains(&["VOLUME", id, "", detail].map(str::to_owned).to_vec()), "{messages:?}");
    let volumes = stage.test.row("SELECT in_use FROM quota_usages WHERE resource='volumes'").await;
    assert_eq!(volumes, ["0"], "{source}");
}

#[tokio::test]
async fn what_cannot_be_managed_is_left_alone() {
    let stage = Stage::new().await;
    let id = managing(&stage, 1).await;
    expect_refused(&stage, &id, "missing", "001").await;
    assert_eq!(stage.heard.events(), [format!("volume.manage_existing.start {id} managing")]);

    let stage = Stage::new().await;
    let owner = seed::volume(&stage.test, 7, "in-use", ", host='node9@other#pool'").await;
    let id = managing(&stage, 1).await;
    let image = stage.image(&owner).await;
    expect_refused(&stage, &id, &image, "001").await;

    // One that a migration has left under another id.
    let stage = Stage::new().await;
    let moved = seed::id(1, 8);
    seed::volume(&stage.test, 7, "available", &format!(", _name_id='{moved}'")).await;
    let id = managing(&stage, 1).await;
    let image = stage.image(&moved).await;
    expect_refused(&stage, &id, &image, "001").await;

    for (limit, resource) in [(2, "gigabytes"), (1, "gigabytes_plain"), (2, "per_volume_gigabytes")] {
        let stage = Stage::new().await;
        stage
            .test
            .sql(&format!(
                "INSERT INTO quotas (project_id, resource, hard_limit, deleted)
                 VALUES ('{PROJECT}', '{resource}', {limit}, 0)"
            ))
            .await;
        foreign(&stage, "foreign", 3 * GIB).await;
        let id = managing(&stage, 1).await;
        expect_refused(&stage, &id, "foreign", "006").await;
    }
}

#[tokio::test]
async fn the_default_class_and_the_configuration_limit_those_without_quotas_of_their_own() {
    let stage = Stage::new().await;
    stage
        .test
        .sql(
            "INSERT INTO quota_classes (class_name, resource, hard_limit, deleted) VALUES
               ('default', 'gigabytes', 2, 0), ('other', 'gigabytes', 100, 0)",
        )
        .await;
    foreign(&stage, "foreign", 3 * GIB).await;
    let id = managing(&stage, 1).await;
    expect_refused(&stage, &id, "foreign", "006").await;

    let stage = Stage::with("[DEFAULT]\nquota_gigabytes=2\n").await;
    foreign(&stage, "foreign", 3 * GIB).await;
    let id = managing(&stage, 1).await;
    expect_refused(&stage, &id, "foreign", "006").await;
}

#[tokio::test]
async fn a_mirrored_image_is_managed_only_by_a_type_that_mirrors_it_so() {
    for (mode, replicated, managed) in [
        (MirrorMode::Journal, true, true),
        (MirrorMode::Snapshot, true, false),
        (MirrorMode::Journal, false, false),
    ] {
        let stage = Stage::replicated().await;
        if !replicated {
            without_replication(&stage).await;
        }
        foreign(&stage, "foreign", GIB).await;
        let enable = MirrorEnable { pool: "volumes".into(), image: "foreign".into(), mode };
        stage.sim.site("a").call(enable).await.unwrap();
        let id = managing(&stage, 1).await;
        if managed {
            assert_eq!(manage(&stage, &id, "foreign").await, ["closed", "succeeded"]);
            assert_eq!(stage.column("volumes", "replication_status", &id).await, "enabled");
        } else {
            expect_refused(&stage, &id, "foreign", "001").await;
        }
    }
}

#[tokio::test]
async fn an_image_whose_set_up_fails_gets_its_name_back() {
    let stage = Stage::replicated().await;
    foreign(&stage, "foreign", GIB).await;
    let id = managing(&stage, 1).await;
    stage.sim.inject(Fault::on("MirrorEnable").always().fails(When::Before, RbdErrorKind::Invalid));
    expect_refused(&stage, &id, "foreign", "001").await;
    assert!(stage.sim.count("ImageRename") >= 2, "there and back");
}

#[tokio::test]
async fn a_volume_that_is_deleted_meanwhile_leaves_the_image() {
    let stage = Stage::new().await;
    foreign(&stage, "foreign", GIB).await;
    let id = managing(&stage, 1).await;
    stage.sim.inject(Fault::on("ImageRename").delays(Duration::from_secs(1)));
    let operation = stage.operation("manage_existing", Some(("Volume", &id))).await;
    let deletion = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        stage.test.sql("UPDATE volumes SET status='deleted', deleted=1").await;
    };
    tokio::join!(run(&stage, &operation, &id, "foreign"), deletion);
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(stage.sim.images("a", "volumes"), ["foreign"]);
    assert_eq!(open_reservations(&stage).await, "0");
    assert!(stage.messages().await.is_empty());
}

#[tokio::test]
async fn a_takeover_that_dies_half_way_is_finished_by_the_next_service() {
    for call in ["MirrorInfo", "ImageRename", "MirrorEnable"] {
        let mut stage = Stage::replicated().await;
        foreign(&stage, "foreign", GIB).await;
        let id = managing(&stage, 1).await;
        let operation = stage.operation("manage_existing", Some(("Volume", &id))).await;
        stage.sim.inject(Fault::on(call).sticks());
        let begun = run(&stage, &operation, &id, "foreign");
        assert!(tokio::time::timeout(Duration::from_secs(1), begun).await.is_err(), "{call}");
        stage.sim.clear_faults();
        if call == "ImageRename" {
            // It was done; only its answer never came.
            let (from, to) = ("foreign".to_owned(), format!("volume-{id}"));
            let rename = ImageRename { pool: "volumes".into(), from, to };
            stage.sim.site("a").call(rename).await.unwrap();
        }
        stage.restart();
        let adopted = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
        run(&stage, &adopted, &id, "foreign").await;
        assert_eq!(stage.ended(&adopted).await, ["closed", "succeeded"], "{call}");
        assert_eq!(stage.status("volumes", &id).await, "available", "{call}");
        assert_eq!(used(&stage).await[0], ["gigabytes", "1", "0"], "{call}: counted once");
        assert_eq!(stage.sim.images("a", "volumes"), [format!("volume-{id}")], "{call}");
    }
}

// ---- snapshots --------------------------------------------------------------------------------------

/// A volume of 2 GiB whose image has the snapshot `mine` from when it had 1 GiB, and the row that is to have it.
async fn to_manage(stage: &Stage) -> (String, String, String) {
    let volume = seed::volume(&stage.test, 1, "available", "").await;
    let image = format!("volume-{volume}");
    foreign(stage, &image, GIB).await;
    take(stage, &image, "mine").await;
    stage.place().grow(&image, 2 * GIB).await.unwrap();
    let snapshot = seed::snapshot(&stage.test, 1, &volume, "creating").await;
    (volume, image, snapshot)
}

async fn take(stage: &Stage, image: &str, snap: &str) {
    let (pool, image, snap) = ("volumes".to_owned(), image.to_owned(), snap.to_owned());
    stage.sim.site("a").call(SnapCreate { pool, image, snap }).await.unwrap();
}

async fn run_snapshot(stage: &Stage, operation: &Operation, snapshot: &str, source: &str) {
    let request = ManageSnapshot { snapshot_id: snapshot.to_owned(), reference: reference(source) };
    manage_snapshot::manage(&stage.backend, &stage.context, operation, request).await.unwrap();
}

async fn manage_snap(stage: &Stage, snapshot: &str, source: &str) -> Vec<String> {
    let operation = stage.operation("manage_existing_snapshot", Some(("Snapshot", snapshot))).await;
    run_snapshot(stage, &operation, snapshot, source).await;
    stage.ended(&operation).await
}

#[tokio::test]
async fn a_snapshot_is_taken_over_with_the_size_that_it_has() {
    let stage = Stage::new().await;
    let (_, image, snapshot) = to_manage(&stage).await;
    assert_eq!(manage_snap(&stage, &snapshot, "mine").await, ["closed", "succeeded"]);
    let row = stage.test.row("SELECT status, volume_size, progress FROM snapshots").await;
    assert_eq!(row, ["available", "1", "0%"]);
    let found = stage.place().find_snapshot(&image, &format!("snapshot-{snapshot}")).await.unwrap().unwrap();
    assert!(found.protected);
    // The API has counted 2 GiB of the volume and 2 of the snapshot.
    assert_eq!(used(&stage).await, [["gigabytes", "3", "0"], ["gigabytes_plain", "3", "0"]]);
    assert_eq!(
        stage.heard.events(),
        [
            format!("snapshot.manage_existing_snapshot.start {snapshot} creating"),
            format!("snapshot.manage_existing_snapshot.end {snapshot} available")
        ]
    );
}

#[tokio::test]
async fn what_is_somebodys_or_missing_is_no_snapshot_to_manage() {
    for source in ["missing", "volume-x.clone_snap", "backup.b.snap.1.0", "managed"] {
        let stage = Stage::new().await;
        let (volume, image, snapshot) = to_manage(&stage).await;
        let known = seed::snapshot(&stage.test, 2, &volume, "available").await;
        let source = match source {
            "managed" => format!("snapshot-{known}"),
            other => other.to_owned(),
        };
        if source != "missing" {
            take(&stage, &image, &source).await;
        }
        let before = stage.seen(&image);
        assert_eq!(manage_snap(&stage, &snapshot, &source).await, ["closed", "failed"], "{source}");
        assert_eq!(stage.status("snapshots", &snapshot).await, "error");
        assert_eq!(stage.seen(&image), before, "{source}");
        assert_eq!(stage.messages().await, [["VOLUME_SNAPSHOT", snapshot.as_str(), "", "001"]]);
    }
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_protected_gets_its_name_back() {
    let stage = Stage::new().await;
    let (_, image, snapshot) = to_manage(&stage).await;
    stage.sim.inject(Fault::on("SnapProtect").always().fails(When::Before, RbdErrorKind::Other));
    let before = stage.seen(&image);
    assert_eq!(manage_snap(&stage, &snapshot, "mine").await, ["closed", "failed"]);
    assert_eq!(stage.seen(&image), before);
    assert_eq!(stage.status("snapshots", &snapshot).await, "error");
    assert_eq!(open_reservations(&stage).await, "0");
    assert_eq!(used(&stage).await[0], ["gigabytes", "4", "0"]);
}

#[tokio::test]
async fn a_takeover_of_a_snapshot_that_dies_half_way_is_finished() {
    for call in ["SnapRename", "SnapProtect"] {
        let mut stage = Stage::new().await;
        let (_, image, snapshot) = to_manage(&stage).await;
        let operation = stage.operation("manage_existing_snapshot", Some(("Snapshot", &snapshot))).await;
        stage.sim.inject(Fault::on(call).sticks());
        let begun = run_snapshot(&stage, &operation, &snapshot, "mine");
        assert!(tokio::time::timeout(Duration::from_secs(1), begun).await.is_err(), "{call}");
        stage.sim.clear_faults();
        stage.restart();
        let adopted = stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0);
        run_snapshot(&stage, &adopted, &snapshot, "mine").await;
        assert_eq!(stage.ended(&adopted).await, ["closed", "succeeded"], "{call}");
        assert_eq!(stage.seen(&image).unwrap().snaps, [format!("snapshot-{snapshot}")]);
        assert_eq!(used(&stage).await[0], ["gigabytes", "3", "0"], "{call}: counted once");
    }
}

// ---- lists ------------------------------------------------------------------------------------------

fn by_name(limit: i64) -> Page {
    Page {
        limit: Some(limit),
        sort_keys: vec!["reference".into()],
        sort_dirs: vec!["asc".into()],
        ..Page::default()
    }
}

#[tokio::test]
async fn a_list_says_what_is_whose_in_few_requests() {
    let stage = Stage::new().await;
    // One of another backend in the same pool, and one whose image a migration left under another id.
    let owner = seed::volume(&stage.test, 1, "available", ", host='node9@other#pool'").await;
    let moved = seed::id(1, 9);
    let renamed = seed::volume(&stage.test, 2, "available", &format!(", _name_id='{moved}'")).await;
    let image = stage.image(&owner).await;
    stage.image(&moved).await;
    let snapshot = seed::snapshot(&stage.test, 1, &owner, "available").await;
    stage.snapped(&image, &snapshot).await;
    for number in 0..300 {
        foreign(&stage, &format!("foreign-{number:03}"), GIB + 1).await;
    }
    take(&stage, "foreign-007", "theirs").await;
    stage.sim.watch("a", "volumes", "foreign-001").unwrap();
    stage.sim.clear_log();

    let all = manageable::volumes(&stage.backend, &by_name(1000)).await.unwrap();
    assert_eq!(all.len(), 302);
    let requests = stage.sim.log().len();
    assert!(requests <= 5, "{requests} requests\n{}", stage.sim.log_text());
    let of = |name: &str| all.iter().find(|e| e.name == name).unwrap();
    assert_eq!((of("foreign-000").reason, of("foreign-000").gib), (None, 2));
    assert_eq!(of("foreign-001").reason, Some("volume in use"));
    for (name, volume) in [(&owner, &owner), (&moved, &renamed)] {
        let entry = of(&format!("volume-{name}"));
        assert_eq!((entry.reason, entry.cinder_id.as_ref()), (Some("already managed"), Some(volume)));
    }
    let first = manageable::volumes(&stage.backend, &by_name(2)).await.unwrap();
    assert_eq!(first.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(), ["foreign-000", "foreign-001"]);

    let snaps = manageable::snapshots(&stage.backend, &by_name(10)).await.unwrap();
    let seen: Vec<_> =
        snaps.iter().map(|e| (e.name.clone(), e.image.clone().unwrap(), e.gib, e.reason)).collect();
    assert_eq!(
        seen,
        [
            (format!("snapshot-{snapshot}"), image, 2, Some("already managed")),
            ("theirs".to_owned(), "foreign-007".to_owned(), 2, None),
        ]
    );
    assert_eq!(snaps[0].cinder_id.as_ref(), Some(&snapshot));
}
