//! What backups are made from, and volumes that are made from backups.

use std::time::Duration;

use scoria::backend::peers::sent_on;
use scoria::error::{Code, Error};
use scoria::journal::{NewOperation, Operation, ReplyTo};
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::{ImageRead, ImageWrite};
use scoria::rbd::sim::{Fault, When};
use scoria::volume::backup_device::{self, BackupDevice};
use scoria::volume::connect;
use scoria::volume::create::{self, Create};
use scoria::volume::image::{Attempt, Shape};
use serde_json::{Value, json};

use crate::journal::accept;
use crate::seed::{self, BACKEND, PROJECT};
use crate::stage::Stage;

const POSIX: &str = "cinder.backup.drivers.posix.PosixBackupDriver";
const CEPH: &str = "cinder.backup.drivers.ceph.CephBackupDriver";

/// A backup's row.
async fn backup(stage: &Stage, number: u32, volume: &str, snapshot: Option<&str>, status: &str) -> String {
    let id = seed::id(4, number);
    let snapshot = snapshot.map_or("NULL".to_owned(), |s| format!("'{s}'"));
    stage
        .test
        .sql(&format!(
            "INSERT INTO backups (id, volume_id, snapshot_id, status, host, size, availability_zone, deleted)
             VALUES ('{id}', '{volume}', {snapshot}, '{status}', 'bak1', 2, 'az1', 0);
             INSERT INTO backup_metadata (backup_id, `key`, value, deleted) VALUES ('{id}', 'a', 'b', 0)"
        ))
        .await;
    id
}

fn request(driver: &str, backup: &str, volume: &str, snapshot: Option<&str>) -> BackupDevice {
    BackupDevice {
        backup_id: backup.to_owned(),
        volume_id: volume.to_owned(),
        snapshot_id: snapshot.map(str::to_owned),
        driver: Some(driver.to_owned()),
        host: Some("bak1".to_owned()),
        backup: json!({"the": "object"}),
        is_cast: true,
    }
}

async fn asked(stage: &Stage, backup: &str) -> Operation {
    stage.operation("get_backup_device", Some(("Backup", backup))).await
}

async fn provide(stage: &Stage, operation: &Operation, request: BackupDevice) -> Result<(), Error> {
    let provided = backup_device::provide(&stage.backend, &stage.context, operation, request);
    provided.await.map(|device| assert!(device.is_none(), "nobody waits"))
}

async fn adopted(stage: &mut Stage) -> Operation {
    stage.restart();
    stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0)
}

/// Volumes that are there besides those of the test's own numbers.
async fn copies(stage: &Stage) -> Vec<Vec<String>> {
    stage
        .test
        .rows(
            "SELECT id, status FROM volumes WHERE deleted=0 AND display_name LIKE 'backup-vol-%' ORDER BY id",
        )
        .await
}

fn images(stage: &Stage) -> usize {
    stage.sim.images("a", "volumes").len()
}

#[tokio::test]
async fn what_is_not_attached_and_what_cephs_driver_reads_is_handed_out_as_it_is() {
    let stage = Stage::new().await;
    for (number, driver, previous) in [(1, POSIX, "available"), (2, CEPH, "in-use"), (3, CEPH, "available")] {
        let extra = format!(", previous_status='{previous}'");
        let volume = seed::volume(&stage.test, number, "backing-up", &extra).await;
        let backup = backup(&stage, number, &volume, None, "creating").await;
        let operation = asked(&stage, &backup).await;
        provide(&stage, &operation, request(driver, &backup, &volume, None)).await.unwrap();
        let order = stage.heard.handed_out().pop().unwrap();
        assert_eq!((order.host.as_str(), order.device.id.as_str()), ("bak1", volume.as_str()));
        assert_eq!((&order.backup, &order.temp_volume_id), (&json!({"the": "object"}), &None));
        assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    }
    assert!(copies(&stage).await.is_empty() && images(&stage) == 0, "Ceph is not asked");
}

#[tokio::test]
async fn what_is_attached_and_a_snapshot_is_copied_for_as_long_as_the_backup_takes() {
    let stage = Stage::replicated().await;
    let volume =
        seed::volume(&stage.test, 1, "backing-up", ", previous_status='in-use', availability_zone='az'")
            .await;
    let image = stage.image(&volume).await;
    let snapshot = seed::snapshot(&stage.test, 1, &volume, "backing-up").await;
    stage.snapped(&image, &snapshot).await;
    for (number, driver, snapshot) in
        [(1, POSIX, None), (2, POSIX, Some(snapshot.as_str())), (3, CEPH, Some(snapshot.as_str()))]
    {
        let backup = backup(&stage, number, &volume, snapshot, "creating").await;
        let operation = asked(&stage, &backup).await;
        provide(&stage, &operation, request(driver, &backup, &volume, snapshot)).await.unwrap();
        let order = stage.heard.handed_out().pop().unwrap();
        let copy = order.device;
        assert_ne!(copy.id, volume);
        assert_eq!(order.temp_volume_id.as_deref(), Some(copy.id.as_str()));
        assert_eq!(stage.column("backups", "temp_volume_id", &backup).await, copy.id);
        assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
        let row = format!(
            "SELECT status, attach_status, use_quota, display_name, host, availability_zone, size, project_id,
                    volume_type_id, source_volid, snapshot_id, replication_status, launched_at
             FROM volumes WHERE id='{}'",
            copy.id
        );
        let name = format!("backup-vol-{volume}");
        let host = format!("{BACKEND}#pool");
        let expected = [
            "backing-up",
            "detached",
            "0",
            name.as_str(),
            host.as_str(),
            "az",
            "2",
            PROJECT,
            seed::TYPE,
            "NULL",
            "NULL",
            "disabled",
            "NULL",
        ];
        assert_eq!(stage.test.row(&row).await, expected);
        let made = stage.place().stat(&format!("volume-{}", copy.id)).await.unwrap();
        let parent = made.parent.expect("it is a clone");
        let snap = match snapshot {
            Some(id) => format!("snapshot-{id}"),
            None => format!("volume-{}.clone_snap", copy.id),
        };
        assert_eq!((parent.image, parent.snap), (image.clone(), snap));
    }
    assert_eq!(stage.sim.count("MirrorEnable"), 0, "a copy that nobody keeps is not mirrored");
    assert!(stage.heard.events().is_empty(), "nobody is told of it");
    assert_eq!(stage.status("volumes", &volume).await, "backing-up", "cinder-backup ends that");
}

#[tokio::test]
async fn the_copy_of_an_encrypted_volume_has_all_that_lies_behind_its_header() {
    const HEADER: u64 = 2_068_480;
    let end = (2 << 30) + HEADER - 4;
    for options in ["", "rbd_max_clone_depth=0\n"] {
        let stage = Stage::with(options).await;
        // The copy itself has no key: nobody would destroy it.
        let extra = ", previous_status='in-use', encryption_key_id='00000000-0000-0000-0000-000000000000'";
        let volume = seed::volume(&stage.test, 1, "backing-up", extra).await;
        let image = format!("volume-{volume}");
        let shape = Shape { order: 22, features: 61 };
        stage.place().create(&image, (2 << 30) + HEADER, shape, Attempt::First).await.unwrap();
        let (pool, data) = ("volumes".to_owned(), b"last".to_vec());
        let write = ImageWrite { pool: pool.clone(), image: image.clone(), offset: end, data };
        stage.sim.site("a").call(write).await.unwrap();
        let snapshot = seed::snapshot(&stage.test, 1, &volume, "backing-up").await;
        stage.snapped(&image, &snapshot).await;
        for (number, snapshot) in [(1, None), (2, Some(snapshot.as_str()))] {
            let backup = backup(&stage, number, &volume, snapshot, "creating").await;
            let operation = asked(&stage, &backup).await;
            provide(&stage, &operation, request(POSIX, &backup, &volume, snapshot)).await.unwrap();
            let copy = stage.heard.handed_out().pop().expect("a device").device;
            assert_eq!(stage.column("volumes", "encryption_key_id", &copy.id).await, "NULL");
            let image = format!("volume-{}", copy.id);
            assert_eq!(stage.seen(&image).unwrap().size, (2 << 30) + HEADER, "{options} {snapshot:?}");
            let read = ImageRead { pool: pool.clone(), image, snap: None, offset: end, length: 4 };
            assert_eq!(stage.sim.site("a").call(read).await.unwrap(), b"last", "{options} {snapshot:?}");
        }
    }
}

#[tokio::test]
async fn a_backup_without_a_device_fails_and_frees_its_source() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "backing-up", ", previous_status='in-use'").await;
    let image = stage.image(&volume).await;
    let snapshot = seed::snapshot(&stage.test, 1, &volume, "backing-up").await;
    stage.snapped(&image, &snapshot).await;
    let of_snapshot = backup(&stage, 2, &volume, Some(&snapshot), "creating").await;
    stage.sim.inject(Fault::on("ImageClone").fails(When::Before, RbdErrorKind::Other).times(2));
    let operation = asked(&stage, &of_snapshot).await;
    let r = request(POSIX, &of_snapshot, &volume, Some(&snapshot));
    provide(&stage, &operation, r).await.unwrap();
    assert_eq!(stage.status("snapshots", &snapshot).await, "available");
    assert_eq!(stage.status("volumes", &volume).await, "backing-up", "that is another backup's");

    let of_volume = backup(&stage, 1, &volume, None, "creating").await;
    let operation = asked(&stage, &of_volume).await;
    provide(&stage, &operation, request(POSIX, &of_volume, &volume, None)).await.unwrap();
    let row = format!("SELECT status, previous_status FROM volumes WHERE id='{volume}'");
    assert_eq!(stage.test.row(&row).await, ["in-use", "error_backing-up"]);
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    for id in [&of_volume, &of_snapshot] {
        let row = format!("SELECT status, temp_volume_id FROM backups WHERE id='{id}'");
        assert_eq!(stage.test.row(&row).await, ["error", "NULL"]);
        assert_ne!(stage.column("backups", "fail_reason", id).await, "NULL");
    }
    assert_eq!(stage.messages().await[0], ["VOLUME_BACKUP", of_volume.as_str(), "013", "019"]);
    assert!(copies(&stage).await.is_empty() && images(&stage) == 1, "nothing is left of the copies");
    assert_eq!(stage.seen(&image).unwrap().snaps.len(), 1, "nor the helper snapshot");
    assert!(stage.heard.handed_out().is_empty());
    assert_eq!(stage.backend.allocated_gb(), 0);
}

#[tokio::test]
async fn a_volume_that_was_moved_by_itself_is_copied_where_it_is() {
    let stage = Stage::replicated().await;
    let extra = ", previous_status='in-use', replication_status='failed-over'";
    let volume = seed::volume(&stage.test, 1, "backing-up", extra).await;
    stage.test.sql(&format!("INSERT INTO scoria_strays VALUES ('{volume}', 'b', '2026-01-01')")).await;
    crate::create_site::image(&stage, "a", &volume).await;
    crate::create_site::image(&stage, "b", &volume).await;
    let there = |id: &str| stage.sim.image("b", "volumes", &format!("volume-{id}"));

    let failing = backup(&stage, 1, &volume, None, "creating").await;
    stage.sim.inject(Fault::on("ImageClone").site("b").fails(When::After, RbdErrorKind::Other));
    let operation = asked(&stage, &failing).await;
    provide(&stage, &operation, request(POSIX, &failing, &volume, None)).await.unwrap();
    assert_eq!(stage.status("backups", &failing).await, "error");
    assert_eq!(stage.sim.images("b", "volumes").len(), 1, "removed where it was made");
    let strays = "SELECT volume_id, site FROM scoria_strays ORDER BY recorded_at";
    assert_eq!(stage.test.rows(strays).await.len(), 1);

    stage
        .test
        .sql(&format!("UPDATE volumes SET status='backing-up', previous_status='in-use' WHERE id='{volume}'"))
        .await;
    let backup = backup(&stage, 2, &volume, None, "creating").await;
    let operation = asked(&stage, &backup).await;
    provide(&stage, &operation, request(POSIX, &backup, &volume, None)).await.unwrap();
    let copy = stage.heard.handed_out().pop().expect("a device").device;
    assert_eq!(stage.status("volumes", &copy.id).await, "backing-up");
    assert!(there(&copy.id).is_some() && images(&stage) == 1, "not of what this site has of it");
    assert_eq!(
        stage.backend.place(&copy).await.unwrap().site.name(),
        "b",
        "there it is attached and deleted"
    );
    assert_eq!(stage.test.rows(strays).await[1], [copy.id.as_str(), "b"]);
}

#[tokio::test]
async fn a_copy_that_cannot_be_removed_again_is_left_to_be_deleted() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "backing-up", ", previous_status='in-use'").await;
    stage.image(&volume).await;
    let backup = backup(&stage, 1, &volume, None, "creating").await;
    stage.sim.inject(Fault::on("ImageClone").fails(When::Before, RbdErrorKind::Other));
    stage.sim.inject(Fault::on("ImageRemove").fails(When::Before, RbdErrorKind::Other));
    let operation = asked(&stage, &backup).await;
    provide(&stage, &operation, request(POSIX, &backup, &volume, None)).await.unwrap();
    assert_eq!(stage.status("backups", &backup).await, "error");
    let copies = copies(&stage).await;
    assert_eq!(copies[0][1], "error");
    assert_eq!(
        stage.column("backups", "temp_volume_id", &backup).await,
        copies[0][0],
        "cinder-backup knows it"
    );
}

#[tokio::test]
async fn a_backup_that_somebody_has_ended_is_left_alone() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "backing-up", ", previous_status='in-use'").await;
    let ended = backup(&stage, 1, &volume, None, "error").await;
    for id in [ended.as_str(), "gone"] {
        let operation = asked(&stage, id).await;
        provide(&stage, &operation, request(POSIX, id, &volume, None)).await.unwrap();
        assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    }
    assert_eq!(stage.status("volumes", &volume).await, "backing-up");
    assert!(stage.messages().await.is_empty() && stage.heard.handed_out().is_empty());
}

#[tokio::test]
async fn a_copy_that_was_begun_is_finished_and_handed_out_once() {
    let mut stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "backing-up", ", previous_status='in-use'").await;
    stage.image(&volume).await;
    let backup = backup(&stage, 1, &volume, None, "creating").await;
    let r = request(POSIX, &backup, &volume, None);
    let operation = asked(&stage, &backup).await;
    stage.sim.inject(Fault::on("ImageClone").sticks());
    let begun = provide(&stage, &operation, r.clone());
    assert!(tokio::time::timeout(Duration::from_secs(1), begun).await.is_err());
    stage.sim.clear_faults();
    // The copy is made, but the broker is away.
    let operation = adopted(&mut stage).await;
    stage.set_deaf(true);
    assert_eq!(provide(&stage, &operation, r.clone()).await.unwrap_err().code(), Code::Broker);
    stage.set_deaf(false);
    let operation = adopted(&mut stage).await;
    provide(&stage, &operation, r.clone()).await.unwrap();
    let orders = stage.heard.handed_out();
    assert_eq!(orders.len(), 1);
    assert_eq!(copies(&stage).await, [[orders[0].device.id.as_str(), "backing-up"]]);
    let sent = sent_on(operation.unique_id(), "continue_backup");
    assert_eq!(orders[0].unique_id, sent, "known again when it is sent twice");
    assert_ne!(sent, operation.unique_id(), "a backup service of ours reads the same journal");
    assert_eq!(images(&stage), 2);
}

#[tokio::test]
async fn a_caller_that_waits_gets_the_device_or_the_error_and_ends_the_backup_himself() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "backing-up", ", previous_status='in-use'").await;
    stage.image(&volume).await;
    let backup = backup(&stage, 1, &volume, None, "creating").await;
    let call = async |unique_id: &str| {
        let new = NewOperation {
            unique_id: unique_id.into(),
            method: "get_backup_device".into(),
            backend_host: BACKEND.into(),
            request: "{}".into(),
            reply: Some(ReplyTo { queue: "q".into(), msg_id: "m".into() }),
            ..NewOperation::default()
        };
        accept(&stage.backend.journal, new).await
    };
    let waits = BackupDevice { is_cast: false, ..request(POSIX, &backup, &volume, None) };
    stage.sim.inject(Fault::on("ImageClone").fails(When::Before, RbdErrorKind::Other));
    let operation = call("u1").await;
    let answer = backup_device::provide(&stage.backend, &stage.context, &operation, waits.clone()).await;
    assert_eq!(answer.unwrap_err().code(), Code::VolumeBackend);
    assert_eq!(stage.status("volumes", &volume).await, "backing-up");
    assert_eq!(stage.status("backups", &backup).await, "creating");
    assert_eq!(stage.ended(&operation).await[0], "open", "whoever answers closes it");
    assert!(copies(&stage).await.is_empty() && images(&stage) == 1);

    stage.sim.clear_faults();
    let operation = call("u2").await;
    let answer = backup_device::provide(&stage.backend, &stage.context, &operation, waits.clone()).await;
    let device = answer.unwrap().expect("a device");
    assert_eq!(copies(&stage).await, [[device.id.as_str(), "backing-up"]]);
    assert!(stage.heard.handed_out().is_empty(), "it is the answer");

    // He has stopped waiting, and we had died.
    let outcome = scoria::journal::Outcome::succeeded();
    backup_device::roll_back(&stage.backend, &operation, &waits, &outcome).await.unwrap();
    assert!(copies(&stage).await.is_empty() && images(&stage) == 1);
    assert_eq!(stage.column("backups", "temp_volume_id", &backup).await, "NULL");
}

#[tokio::test]
async fn a_snapshot_cannot_be_attached_and_has_nothing_to_take_back() {
    let stage = Stage::new().await;
    let volume = seed::volume(&stage.test, 1, "available", "").await;
    let snapshot = seed::snapshot(&stage.test, 1, &volume, "available").await;
    let refused = connect::initialize_snapshot(&stage.backend, &snapshot).await.unwrap_err();
    assert_eq!(refused.code(), Code::VolumeBackend);
    connect::terminate_snapshot(&stage.backend, &snapshot).await.unwrap();
    for missing in [
        connect::initialize_snapshot(&stage.backend, "gone").await.map(|_| ()),
        connect::terminate_snapshot(&stage.backend, "gone").await,
    ] {
        assert_eq!(missing.unwrap_err().code(), Code::SnapshotNotFound);
    }
}

// ---- volumes from backups --------------------------------------------------------------------------

async fn backup_service(stage: &Stage, number: u32, host: &str, zone: &str, age_s: u32, disabled: bool) {
    stage
        .test
        .sql(&format!(
            "INSERT INTO services (id, host, `binary`, topic, report_count, disabled, uuid, deleted, availability_zone,
                                   updated_at)
             VALUES ({}, '{host}', 'cinder-backup', 'cinder-backup', 0, {disabled}, '{}', 0, '{zone}',
                     UTC_TIMESTAMP() - INTERVAL {age_s} SECOND)",
            number + 10,
            seed::id(9, number + 10)
        ))
        .await;
}

async fn create(stage: &Stage, operation: &Operation, volume: &str, backup: &str) -> Result<(), Error> {
    let filter_properties: Value = json!({"retry": {"num_attempts": 1}});
    let request = Create {
        volume_id: volume.to_owned(),
        backup_id: Some(backup.to_owned()),
        reschedule: Some(scoria::backend::peers::Reschedule {
            filter_properties,
            ..scoria::backend::peers::Reschedule::default()
        }),
        ..Create::default()
    };
    create::create(&stage.backend, &stage.context, operation, request).await
}

async fn creation(stage: &Stage, volume: &str) -> Operation {
    stage.operation("create_volume", Some(("Volume", volume))).await
}

#[tokio::test]
async fn a_volume_from_a_backup_is_made_empty_and_filled_by_a_backup_service_that_is_up() {
    let stage = Stage::replicated().await;
    let source = seed::volume(&stage.test, 1, "available", "").await;
    let backup = backup(&stage, 1, &source, None, "available").await;
    backup_service(&stage, 1, "bak1", "az1", 3600, false).await;
    backup_service(&stage, 2, "bak2", "az1", 0, false).await;
    backup_service(&stage, 3, "bak3", "az2", 0, false).await;
    backup_service(&stage, 4, "bak4", "az1", 0, true).await;
    let volume = seed::volume(&stage.test, 2, "creating", "").await;
    stage
        .test
        .sql(&format!(
            "INSERT INTO workers (resource_type, resource_id, status, service_id, race_preventer, deleted)
             VALUES ('Volume', '{volume}', 'creating', 1, 0, 0)"
        ))
        .await;
    let operation = creation(&stage, &volume).await;
    create(&stage, &operation, &volume, &backup).await.unwrap();
    assert_eq!(stage.heard.cast(), [format!("restore {backup} into {volume} at bak2")]);
    let row = format!("SELECT status, restore_volume_id, host FROM backups WHERE id='{backup}'");
    assert_eq!(stage.test.row(&row).await, ["restoring", volume.as_str(), "bak2"]);
    let row = format!(
        "SELECT status, replication_status, launched_at, shared_targets, service_uuid FROM volumes WHERE id='{volume}'"
    );
    let uuid = seed::id(9, 1);
    assert_eq!(stage.test.row(&row).await, ["creating", "enabled", "NULL", "0", uuid.as_str()]);
    assert_eq!(stage.seen(&format!("volume-{volume}")).unwrap().size, 2 << 30);
    assert_eq!(
        stage.test.row(&format!("SELECT COUNT(*) FROM workers WHERE resource_id='{volume}'")).await,
        ["0"]
    );
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    let told = ["start", "end"].map(|e| format!("volume.create.{e} {volume} creating"));
    assert_eq!(stage.heard.events(), told);
}

#[tokio::test]
async fn a_volume_that_nobody_can_fill_is_an_error_and_the_backup_stays_usable() {
    let stage = Stage::new().await;
    let source = seed::volume(&stage.test, 1, "available", "").await;
    let usable = backup(&stage, 1, &source, None, "available").await;
    let broken = backup(&stage, 2, &source, None, "error").await;
    let alone = seed::volume(&stage.test, 2, "creating", "").await;
    create(&stage, &creation(&stage, &alone).await, &alone, &usable).await.unwrap();
    backup_service(&stage, 1, "bak1", "az1", 0, false).await;
    let of_broken = seed::volume(&stage.test, 3, "creating", "").await;
    create(&stage, &creation(&stage, &of_broken).await, &of_broken, &broken).await.unwrap();
    let of_none = seed::volume(&stage.test, 4, "creating", "").await;
    create(&stage, &creation(&stage, &of_none).await, &of_none, "gone").await.unwrap();
    for volume in [&alone, &of_broken, &of_none] {
        assert_eq!(stage.status("volumes", volume).await, "error");
        assert!(stage.seen(&format!("volume-{volume}")).is_none());
    }
    assert_eq!(stage.messages().await[0], ["VOLUME", alone.as_str(), "015", "026"]);
    assert_eq!(stage.messages().await.len(), 3);
    assert_eq!(stage.status("backups", &usable).await, "available");
    assert!(stage.heard.cast().is_empty() && stage.heard.rescheduled().is_empty());

    // An empty image that cannot be made may be made elsewhere.
    stage.sim.inject(Fault::on("ImageCreate").fails(When::Before, RbdErrorKind::Other));
    let again = seed::volume(&stage.test, 5, "creating", "").await;
    create(&stage, &creation(&stage, &again).await, &again, &usable).await.unwrap();
    assert_eq!(stage.heard.rescheduled().len(), 1);
    assert!(
        stage
            .messages()
            .await
            .contains(&["VOLUME", again.as_str(), "008", "012"].map(str::to_owned).to_vec())
    );
}

#[tokio::test]
async fn a_restoration_is_asked_for_again_until_it_is_known_to_have_been() {
    let mut stage = Stage::new().await;
    let source = seed::volume(&stage.test, 1, "available", "").await;
    let backup = backup(&stage, 1, &source, None, "available").await;
    backup_service(&stage, 1, "bak1", "az1", 0, false).await;
    let volume = seed::volume(&stage.test, 2, "creating", "").await;
    let operation = creation(&stage, &volume).await;
    stage.set_deaf(true);
    assert_eq!(create(&stage, &operation, &volume, &backup).await.unwrap_err().code(), Code::Broker);
    assert_eq!(stage.status("backups", &backup).await, "restoring");
    stage.set_deaf(false);
    // Who was chosen stays chosen.
    backup_service(&stage, 2, "bak2", "az1", 0, false).await;
    let operation = adopted(&mut stage).await;
    create(&stage, &operation, &volume, &backup).await.unwrap();
    assert_eq!(stage.heard.cast(), [format!("restore {backup} into {volume} at bak1")]);
    assert_eq!(stage.heard.events().len(), 2);

    // And one that has ended meanwhile is not begun anew.
    let volume = seed::volume(&stage.test, 3, "creating", "").await;
    let operation = creation(&stage, &volume).await;
    stage.set_deaf(true);
    create(&stage, &operation, &volume, &backup).await.unwrap_err();
    stage.set_deaf(false);
    stage.test.sql(&format!("UPDATE volumes SET status='available' WHERE id='{volume}'")).await;
    let operation = adopted(&mut stage).await;
    create(&stage, &operation, &volume, &backup).await.unwrap();
    assert_eq!(stage.heard.cast().len(), 1);
    assert_eq!(stage.status("volumes", &volume).await, "available");
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
}

#[tokio::test]
async fn a_copy_of_an_encrypted_volume_is_whole_though_it_has_no_key_of_its_own() {
    const BYTES: u64 = (2 << 30) + 2_068_480;
    for options in ["", "rbd_max_clone_depth=0\n"] {
        let stage = Stage::with(options).await;
        let extra = ", previous_status='in-use', encryption_key_id='00000000-0000-0000-0000-000000000000'";
        let volume = seed::volume(&stage.test, 1, "backing-up", extra).await;
        let image = format!("volume-{volume}");
        let shape = Shape { order: 22, features: 61 };
        stage.place().create(&image, BYTES, shape, Attempt::First).await.unwrap();
        let snapshot = seed::snapshot(&stage.test, 1, &volume, "backing-up").await;
        stage.snapped(&image, &snapshot).await;
        for (number, snapshot) in [(1, None), (2, Some(snapshot.as_str()))] {
            let backup = backup(&stage, number, &volume, snapshot, "creating").await;
            let operation = asked(&stage, &backup).await;
            provide(&stage, &operation, request(POSIX, &backup, &volume, snapshot)).await.unwrap();
            let copy = stage.heard.handed_out().pop().unwrap().device.id;
            assert_eq!(
                stage.seen(&format!("volume-{copy}")).unwrap().size,
                BYTES,
                "{options:?} {snapshot:?}"
            );
        }
    }
}
