//! Migrations: where the rows lead to at the end, and what becomes of what was begun.

use std::time::Duration;

use scoria::backend::Backend;
use scoria::error::Code;
use scoria::journal::{NewOperation, Operation, Outcome, ReplyTo};
use scoria::rbd::RbdErrorKind;
use scoria::rbd::protocol::{Fsid, ImageWrite};
use scoria::rbd::sim::{Fault, When};
use scoria::volume::image::{Attempt, Place, Shape};
use scoria::volume::migrate::{self, Destination, Migrate};
use scoria::volume::migrated::{self, Completion, Update};
use scoria::volume::retype::{self, Retype};
use serde_json::{Value, json};

use crate::journal::accept;
use crate::seed::{self, BACKEND};
use crate::stage::Stage;

const GIB: u64 = 1 << 30;
pub const THERE: &str = "node2@other#other";

/// The service of the destination.
pub async fn other_service(stage: &Stage) -> String {
    let uuid = seed::id(9, 2);
    stage
        .test
        .sql(&format!(
            "INSERT INTO services (id, host, `binary`, topic, report_count, disabled, uuid, deleted, updated_at,
               availability_zone)
             VALUES (2, 'node2@other', 'cinder-volume', 'cinder-volume', 0, 0, '{uuid}', 0, '2026-01-01', 'az2')"
        ))
        .await;
    uuid
}

/// That backend, in `pool` of the simulator's `site`.
pub async fn at(stage: &Stage, site: &str, pool: &str) -> Destination {
    let fsid = stage.sim.site(site).call(Fsid {}).await.unwrap();
    let Value::Object(capabilities) = json!({
        "storage_protocol": "ceph",
        "location_info": format!("ceph:/sim/{site}.conf:{fsid}:cinder:{pool}"),
    }) else {
        unreachable!()
    };
    Destination { host: THERE.to_owned(), cluster_name: None, capabilities }
}

/// A volume that was locked for its migration, with content.
async fn locked(stage: &Stage, number: u32) -> (String, String) {
    let extra = ", migration_status='starting', previous_status='available', replication_status='disabled'";
    let volume = seed::volume(&stage.test, number, "maintenance", extra).await;
    let image = stage.image(&volume).await;
    for (offset, text) in [(0, "begin"), (GIB, "middle")] {
        let (pool, data) = ("volumes".to_owned(), text.as_bytes().to_vec());
        stage.sim.site("a").call(ImageWrite { pool, image: image.clone(), offset, data }).await.unwrap();
    }
    (volume, image)
}

/// As after a failover that the volume did not follow.
async fn stray(stage: &Stage, volume: &str) {
    let insert = format!(
        "INSERT INTO scoria_strays (volume_id, site, recorded_at) VALUES ('{volume}', 'default', UTC_TIMESTAMP(6))"
    );
    stage.test.sql(&insert).await;
}

async fn strays(stage: &Stage) -> Vec<Vec<String>> {
    stage.test.rows("SELECT volume_id, site FROM scoria_strays").await
}

fn request(volume: &str, destination: Destination, force_host_copy: bool) -> Migrate {
    Migrate { volume_id: volume.to_owned(), destination, force_host_copy }
}

async fn run(stage: &Stage, request: Migrate) -> Operation {
    let operation = stage.operation("migrate_volume", Some(("Volume", &request.volume_id))).await;
    migrate::migrate(&stage.backend, &stage.context, &operation, request).await.unwrap();
    operation
}

pub async fn row(stage: &Stage, volume: &str) -> Vec<String> {
    let columns = "status, migration_status, host, availability_zone, _name_id";
    stage.test.row(&format!("SELECT {columns} FROM volumes WHERE id='{volume}' AND deleted=0")).await
}

/// Id of the destination's row, when there is one.
async fn target(stage: &Stage, volume: &str) -> Option<String> {
    let query = format!("SELECT id FROM volumes WHERE migration_status='target:{volume}' AND deleted=0");
    stage.test.rows(&query).await.into_iter().flatten().next()
}

/// What the destination's service does when it is asked: the image, then the row.
pub async fn serve(stage: &Stage, site: &str, pool: &str, volume: &str) -> String {
    let id = loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        match target(stage, volume).await {
            Some(id) if stage.heard.cast().contains(&format!("create {id} at {THERE}")) => break id,
            _ => {}
        }
    };
    let place = Place { site: stage.sim.site(site), pool: pool.to_owned() };
    let shape = Shape { order: 22, features: 61 };
    place.create(&format!("volume-{id}"), 2 * GIB, shape, Attempt::First).await.unwrap();
    let made = format!(
        "UPDATE volumes SET status='available', service_uuid='{}', provider_location='there' WHERE id='{id}'",
        seed::id(9, 2)
    );
    stage.test.sql(&made).await;
    id
}

#[tokio::test]
async fn in_the_same_pool_only_the_row_changes() {
    let stage = Stage::new().await;
    let uuid = other_service(&stage).await;
    let (volume, image) = locked(&stage, 1).await;
    let before = stage.seen(&image);
    let operation = run(&stage, request(&volume, at(&stage, "a", "volumes").await, false)).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(row(&stage, &volume).await, ["available", "success", THERE, "az2", "NULL"]);
    assert_eq!(stage.column("volumes", "service_uuid", &volume).await, uuid);
    assert_eq!(stage.column("volumes", "previous_status", &volume).await, "maintenance");
    assert_eq!(stage.seen(&image), before);
    assert!(stage.heard.cast().is_empty() && stage.messages().await.is_empty());
}

#[tokio::test]
async fn to_another_pool_the_image_is_copied_and_the_original_goes() {
    let stage = Stage::new().await;
    other_service(&stage).await;
    let (volume, image) = locked(&stage, 1).await;
    let before = stage.seen(&image).unwrap();
    stray(&stage, &volume).await;
    let operation = run(&stage, request(&volume, at(&stage, "a", "volumes2").await, false)).await;
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert!(strays(&stage).await.is_empty(), "that was true of the other backend");
    assert_eq!(row(&stage, &volume).await, ["available", "success", THERE, "az2", "NULL"]);
    assert!(stage.seen(&image).is_none());
    let copy = stage.sim.image("a", "volumes2", &image).unwrap();
    assert_eq!((copy.checksum, copy.size, copy.features), (before.checksum, before.size, before.features));
}

#[tokio::test]
async fn a_pool_copy_is_finished_after_a_crash_wherever_it_was() {
    for stuck in ["ImageCopy", "ImageInspect", "ImageRemove"] {
        let mut stage = Stage::new().await;
        other_service(&stage).await;
        let (volume, image) = locked(&stage, 1).await;
        let checksum = stage.seen(&image).unwrap().checksum;
        let asked = request(&volume, at(&stage, "a", "volumes2").await, false);
        let operation = stage.operation("migrate_volume", Some(("Volume", &volume))).await;
        stage.sim.inject(Fault::on(stuck).sticks());
        let begun = migrate::migrate(&stage.backend, &stage.context, &operation, asked.clone());
        assert!(tokio::time::timeout(Duration::from_secs(2), begun).await.is_err(), "{stuck}");
        stage.sim.clear_faults();
        stage.restart();
        let operation = adopt(&stage).await;
        migrate::migrate(&stage.backend, &stage.context, &operation, asked).await.unwrap();
        assert_eq!(row(&stage, &volume).await[..3], ["available", "success", THERE], "{stuck}");
        assert!(stage.seen(&image).is_none(), "{stuck}");
        assert_eq!(stage.sim.image("a", "volumes2", &image).unwrap().checksum, checksum);
        assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    }
}

pub async fn adopt(stage: &Stage) -> Operation {
    stage.backend.journal.adopt(&stage.backend.scope()).await.unwrap().remove(0)
}

#[tokio::test]
async fn what_is_open_or_taken_stays_where_it_is() {
    let stage = Stage::new().await;
    other_service(&stage).await;
    let (open, image) = locked(&stage, 1).await;
    stage.sim.watch("a", "volumes", &image).unwrap();
    let (taken, taken_image) = locked(&stage, 2).await;
    let there = Place { site: stage.sim.site("a"), pool: "volumes2".into() };
    there.create(&taken_image, GIB, Shape { order: 22, features: 1 }, Attempt::First).await.unwrap();
    for volume in [&open, &taken] {
        let operation = run(&stage, request(volume, at(&stage, "a", "volumes2").await, false)).await;
        assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
        let host = format!("{BACKEND}#pool");
        assert_eq!(row(&stage, volume).await[..3], ["available", "error", host.as_str()]);
        assert!(stage.seen(&format!("volume-{volume}")).is_some());
    }
    assert!(stage.sim.image("a", "volumes2", &image).is_none());
    assert_eq!(stage.sim.image("a", "volumes2", &taken_image).unwrap().size, GIB, "somebody else's");
    assert_eq!(stage.messages().await.len(), 2);
}

#[tokio::test]
async fn to_another_cluster_the_content_is_copied_and_the_rows_change_places() {
    let stage = Stage::new().await;
    let uuid = other_service(&stage).await;
    let (volume, image) = locked(&stage, 1).await;
    let checksum = stage.seen(&image).unwrap().checksum;
    stray(&stage, &volume).await;
    let asked = request(&volume, at(&stage, "b", "volumes2").await, false);
    let (operation, id) = tokio::join!(run(&stage, asked), serve(&stage, "b", "volumes2", &volume));
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    assert_eq!(row(&stage, &volume).await, ["available", "success", THERE, "az2", "NULL"]);
    assert_eq!(stage.column("volumes", "service_uuid", &volume).await, uuid);
    assert_eq!(stage.column("volumes", "provider_location", &volume).await, "there");
    let copy = stage.sim.image("b", "volumes2", &image).unwrap();
    assert_eq!(copy.checksum, checksum);

    // The other row leads to the original, which its service, ourselves, was asked to delete.
    let host = format!("{BACKEND}#pool");
    let left = row(&stage, &id).await;
    assert_eq!(left[..3], ["deleting", "deleting", host.as_str()]);
    assert_eq!(left[4], volume);
    assert_eq!(stage.column("volumes", "use_quota", &id).await, "0");
    assert_eq!(strays(&stage).await, [[id.as_str(), "default"]], "there the original is");
    let description = stage.column("volumes", "display_description", &id).await;
    assert_eq!(description, format!("migration src for {volume}"));
    let expected = [format!("create {id} at {THERE}"), format!("delete {id} at {host}")];
    assert_eq!(stage.heard.cast(), expected);
    assert!(stage.seen(&image).is_some(), "until then it is there");
}

#[tokio::test]
async fn a_host_copy_goes_on_after_a_crash_wherever_it_was() {
    for stuck in ["ImageTransfer", "ImageRename"] {
        let mut stage = Stage::new().await;
        other_service(&stage).await;
        let (volume, image) = locked(&stage, 1).await;
        let checksum = stage.seen(&image).unwrap().checksum;
        let asked = request(&volume, at(&stage, "b", "volumes2").await, true);
        let operation = stage.operation("migrate_volume", Some(("Volume", &volume))).await;
        stage.sim.inject(Fault::on(stuck).sticks());
        let begun = migrate::migrate(&stage.backend, &stage.context, &operation, asked.clone());
        let begun = tokio::time::timeout(Duration::from_secs(5), begun);
        let (begun, id) = tokio::join!(begun, serve(&stage, "b", "volumes2", &volume));
        assert!(begun.is_err(), "{stuck}");
        stage.sim.clear_faults();
        stage.restart();
        let operation = adopt(&stage).await;
        migrate::migrate(&stage.backend, &stage.context, &operation, asked).await.unwrap();
        assert_eq!(row(&stage, &volume).await, ["available", "success", THERE, "az2", "NULL"], "{stuck}");
        assert_eq!(stage.sim.image("b", "volumes2", &image).unwrap().checksum, checksum);
        assert_eq!(row(&stage, &id).await[0], "deleting");
        let creates = stage.heard.cast().iter().filter(|c| c.starts_with("create")).count();
        assert_eq!(creates, 1, "what is there already is not asked for again");
    }
}

#[tokio::test]
async fn in_its_own_pool_a_copy_keeps_its_name() {
    let stage = Stage::new().await;
    other_service(&stage).await;
    let (volume, image) = locked(&stage, 1).await;
    let checksum = stage.seen(&image).unwrap().checksum;
    let asked = request(&volume, at(&stage, "a", "volumes").await, true);
    let (_, id) = tokio::join!(run(&stage, asked), serve(&stage, "a", "volumes", &volume));
    assert_eq!(row(&stage, &volume).await[..3], ["available", "success", THERE]);
    assert_eq!(row(&stage, &volume).await[4], id);
    assert_eq!(row(&stage, &id).await[4], volume, "the original goes under its own name");
    assert_eq!(stage.seen(&format!("volume-{id}")).unwrap().checksum, checksum);
}

#[tokio::test]
async fn a_destination_that_fails_costs_nothing_but_the_attempt() {
    let stage = Stage::new().await;
    other_service(&stage).await;
    let host = format!("{BACKEND}#pool");

    // It cannot make the volume.
    let (volume, _) = locked(&stage, 1).await;
    let refuse = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if let Some(id) = target(&stage, &volume).await {
                stage.test.sql(&format!("UPDATE volumes SET status='error' WHERE id='{id}'")).await;
                return id;
            }
        }
    };
    let asked = request(&volume, at(&stage, "b", "volumes2").await, true);
    let (operation, id) = tokio::join!(run(&stage, asked), refuse);
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(row(&stage, &volume).await[..3], ["available", "error", host.as_str()]);
    assert_eq!(stage.column("volumes", "deleted", &id).await, "1");

    // The copy fails.
    let (volume, image) = locked(&stage, 2).await;
    stage.sim.inject(Fault::on("ImageTransfer").fails(When::After, RbdErrorKind::Other));
    let asked = request(&volume, at(&stage, "b", "volumes2").await, true);
    let (operation, id) = tokio::join!(run(&stage, asked), serve(&stage, "b", "volumes2", &volume));
    assert_eq!(stage.ended(&operation).await, ["closed", "failed"]);
    assert_eq!(row(&stage, &volume).await[..3], ["available", "error", host.as_str()]);
    assert_eq!(row(&stage, &id).await[0], "deleting");
    assert!(stage.heard.cast().contains(&format!("delete {id} at {THERE}")));
    assert!(stage.seen(&image).is_some());

    // It cannot be reached, or is no Ceph: nobody is asked for anything.
    let asked_before = stage.heard.cast().len();
    let (volume, _) = locked(&stage, 3).await;
    let nowhere = Destination { host: THERE.into(), ..Destination::default() };
    let wrong = Destination {
        capabilities: json!({"storage_protocol": "ceph", "location_info": "ceph:/sim/b.conf:other:cinder:p"})
            .as_object()
            .unwrap()
            .clone(),
        ..nowhere.clone()
    };
    for destination in [nowhere, wrong] {
        let again = format!("UPDATE volumes SET migration_status='starting' WHERE id='{volume}'");
        stage.test.sql(&again).await;
        run(&stage, request(&volume, destination, false)).await;
        assert_eq!(row(&stage, &volume).await[..2], ["available", "error"]);
    }
    assert_eq!(stage.heard.cast().len(), asked_before);
}

#[tokio::test]
async fn a_volume_that_a_host_has_is_not_copied_under_it() {
    let stage = Stage::new().await;
    other_service(&stage).await;
    let extra = ", migration_status='starting', previous_status='in-use'";
    let volume = seed::volume(&stage.test, 1, "in-use", extra).await;
    stage.image(&volume).await;
    let attach = format!(
        "INSERT INTO volume_attachment (id, volume_id, attach_status, deleted) VALUES ('a', '{volume}', 'attached', 0)"
    );
    stage.test.sql(&attach).await;
    run(&stage, request(&volume, at(&stage, "b", "volumes2").await, false)).await;
    assert_eq!(row(&stage, &volume).await[..2], ["in-use", "error"]);
    assert!(stage.heard.cast().is_empty());
}

#[tokio::test]
async fn a_retype_that_moves_counts_and_tells_when_it_has_moved() {
    let stage = Stage::new().await;
    other_service(&stage).await;
    let kind = seed::id(5, 1);
    stage
        .test
        .sql(&format!(
            "INSERT INTO volume_types (id, name, deleted, is_public) VALUES ('{kind}', 'there', 0, 1);
             INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted)
             VALUES ('{kind}', 'replication_enabled', '<is> True', 0), ('{kind}', 'volume_backend_name', 'other', 0);
             INSERT INTO quota_usages (project_id, resource, in_use, reserved, race_preventer, deleted)
             VALUES ('{}', 'volumes_there', 0, 1, 1, 0);
             INSERT INTO reservations (uuid, usage_id, project_id, resource, delta, expire, deleted)
             SELECT 'r', id, project_id, resource, 1, '2099-01-01', 0 FROM quota_usages",
            seed::PROJECT
        ))
        .await;
    let extra = ", previous_status='available', replication_status='disabled'";
    let volume = seed::volume(&stage.test, 1, "retyping", extra).await;
    let image = stage.image(&volume).await;
    let request = Retype {
        volume_id: volume.clone(),
        new_type_id: kind.clone(),
        destination: at(&stage, "a", "volumes2").await,
        may_move: true,
        reservations: vec!["r".into()],
        old_reservations: Vec::new(),
    };
    let operation = stage.operation("retype", Some(("Volume", &volume))).await;
    retype::retype(&stage.backend, &stage.context, &operation, request).await.unwrap();
    assert_eq!(stage.ended(&operation).await, ["closed", "succeeded"]);
    // They differ in nothing but the name of the backend, so Ceph may move it.
    assert_eq!(row(&stage, &volume).await[..3], ["available", "success", THERE]);
    assert_eq!(stage.column("volumes", "volume_type_id", &volume).await, kind);
    assert!(stage.sim.image("a", "volumes2", &image).is_some() && stage.seen(&image).is_none());
    assert_eq!(stage.test.row("SELECT in_use, reserved FROM quota_usages").await, ["1", "0"]);
    assert_eq!(stage.heard.events(), [format!("volume.retype {volume} available")]);
}

/// A pair of rows as a migration by somebody else leaves them when the content is copied.
async fn pair(stage: &Stage, status: &str, before: &str) -> (String, String) {
    let extra = format!(", migration_status='migrating', previous_status='{before}'");
    let volume = seed::volume(&stage.test, 1, status, &extra).await;
    let target = format!(", migration_status='target:{volume}', use_quota=0, host='{THERE}'");
    (volume, seed::volume(&stage.test, 2, "available", &target).await)
}

async fn call(stage: &Stage, method: &str, volume: &str) -> Operation {
    let new = NewOperation {
        unique_id: uuid::Uuid::new_v4().to_string(),
        method: method.to_owned(),
        backend_host: BACKEND.to_owned(),
        request: "{}".to_owned(),
        resource: Some(("Volume".to_owned(), volume.to_owned())),
        reply: Some(ReplyTo { queue: "q".into(), msg_id: "m".into() }),
        timeout: Some(Duration::from_secs(60)),
        ..NewOperation::default()
    };
    accept(&stage.backend.journal, new).await
}

pub async fn complete(stage: &Stage, volume: &str, new: &str, failed: bool) -> Result<String, Code> {
    let operation = call(stage, "migrate_volume_completion", volume).await;
    let request = Completion { volume_id: volume.into(), new_volume_id: new.into(), failed };
    let done = migrated::complete(&stage.backend, &stage.context, &operation, request).await;
    done.map_err(|e| e.code())
}

#[tokio::test]
async fn nova_completes_the_migration_of_an_attached_volume() {
    let stage = Stage::new().await;
    let (volume, new) = pair(&stage, "available", "in-use").await;
    // Nova has made a new attachment, to the destination, and deleted the one to the volume.
    stage
        .test
        .sql(&format!(
            "INSERT INTO volume_attachment (id, volume_id, attach_status, deleted)
             VALUES ('new', '{new}', 'attached', 0), ('old', '{volume}', 'detached', 1)"
        ))
        .await;
    assert_eq!(complete(&stage, &volume, &new, false).await, Ok(volume.clone()));
    let now = row(&stage, &volume).await;
    assert_eq!((now[0].as_str(), now[1].as_str(), now[4].as_str()), ("in-use", "success", new.as_str()));
    assert_eq!(stage.column("volumes", "attach_status", &volume).await, "attached");
    assert_eq!(stage.column("volume_attachment", "volume_id", "new").await, volume);
    assert_eq!(row(&stage, &new).await[0], "deleting");
    assert_eq!(stage.heard.cast(), [format!("delete {new} at {BACKEND}#pool")]);
}

#[tokio::test]
async fn a_copy_that_nova_could_not_make_is_deleted() {
    let stage = Stage::new().await;
    let (volume, new) = pair(&stage, "retyping", "in-use").await;
    assert_eq!(complete(&stage, &volume, &new, true).await, Ok(volume.clone()));
    let host = format!("{BACKEND}#pool");
    assert_eq!(row(&stage, &volume).await[..3], ["in-use", "error", host.as_str()]);
    assert_eq!(stage.heard.cast(), [format!("delete {new} at {THERE}")]);

    let stranger = seed::volume(&stage.test, 3, "available", "").await;
    assert_eq!(complete(&stage, &volume, &stranger, false).await, Err(Code::InvalidVolume));
}

/// The copy's image, on this backend; the request of a peer that has copied it.
async fn copied(stage: &Stage, before: &str) -> (String, String, Update) {
    let (volume, new) = pair(stage, "maintenance", before).await;
    stage.image(&new).await;
    let locations = format!(
        "UPDATE volumes SET provider_location='of the copy' WHERE id='{new}';
         UPDATE volumes SET provider_location='of the original' WHERE id='{volume}'"
    );
    stage.test.sql(&locations).await;
    let status = Some(before.to_owned());
    let request = Update { volume_id: volume.clone(), new_volume_id: new.clone(), status };
    (volume, new, request)
}

async fn names(stage: &Stage, id: &str) -> Vec<String> {
    stage.test.row(&format!("SELECT _name_id, provider_location FROM volumes WHERE id='{id}'")).await
}

async fn update(backend: &Backend, operation: &Operation, request: &Update) -> Result<(), Code> {
    migrated::update(backend, operation, request.clone()).await.map_err(|e| e.code())
}

#[tokio::test]
async fn a_peers_copy_gets_the_volumes_name_unless_it_is_open_or_the_name_is_taken() {
    let stage = Stage::new().await;
    let (volume, new, request) = copied(&stage, "available").await;
    let operation = call(&stage, "update_migrated_volume", &volume).await;
    update(&stage.backend, &operation, &request).await.unwrap();
    assert!(stage.seen(&format!("volume-{volume}")).is_some());
    assert_eq!(names(&stage, &volume).await, ["NULL", "of the copy"]);
    assert_eq!(names(&stage, &new).await, ["NULL", "of the original"]);
    // Run again after a crash it must not change the rows a second time.
    update(&stage.backend, &operation, &request).await.unwrap();
    assert_eq!(names(&stage, &volume).await, ["NULL", "of the copy"]);

    for (before, taken) in [("in-use", false), ("available", true)] {
        let stage = Stage::new().await;
        let (volume, new, request) = copied(&stage, before).await;
        if taken {
            stage.image(&volume).await;
        }
        let operation = call(&stage, "update_migrated_volume", &volume).await;
        update(&stage.backend, &operation, &request).await.unwrap();
        assert_eq!(names(&stage, &volume).await, [new.as_str(), "of the copy"]);
        assert!(stage.seen(&format!("volume-{new}")).is_some());
    }
}

#[tokio::test]
async fn a_peer_that_has_stopped_waiting_finds_everything_as_it_was() {
    for after_all in [false, true] {
        let mut stage = Stage::new().await;
        let (volume, new, request) = copied(&stage, "available").await;
        let operation = call(&stage, "update_migrated_volume", &volume).await;
        if after_all {
            update(&stage.backend, &operation, &request).await.unwrap();
        } else {
            // The image has its new name, and the answer never comes.
            stage.sim.inject(Fault::on("ImageRename").fails(When::After, RbdErrorKind::Other));
            assert_eq!(update(&stage.backend, &operation, &request).await, Err(Code::VolumeBackend));
        }
        assert!(stage.seen(&format!("volume-{volume}")).is_some());
        stage.restart();
        let operation = adopt(&stage).await;
        let outcome = Outcome::succeeded();
        migrated::roll_back(&stage.backend, &stage.context, &operation, &outcome).await.unwrap();
        assert!(
            stage.seen(&format!("volume-{new}")).is_some()
                && stage.seen(&format!("volume-{volume}")).is_none()
        );
        assert_eq!(names(&stage, &volume).await, ["NULL", "of the original"]);
        assert_eq!(names(&stage, &new).await, ["NULL", "of the copy"]);
    }
}
