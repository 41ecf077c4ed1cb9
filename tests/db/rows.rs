//! Rows of volumes, snapshots and attachments end up as stock leaves them.

use scoria::db::message::{self, Action, Detail, Message};
use scoria::db::volume::{self, GlanceSource, VolumeChanges, VolumeFilter};
use scoria::db::{attachment, snapshot, volume_type};
use scoria::error::Code;
use scoria::model::{AttachmentDraft, Scope, SnapshotEvent, VolumeEvent};

use crate::seed::{self, BACKEND, PROJECT, TYPE};
use crate::support::TestDb;

fn scope() -> Scope {
    Scope::Host(BACKEND.to_owned())
}

#[tokio::test]
async fn a_created_volume_becomes_available_once_and_a_late_answer_is_a_conflict() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let id = seed::volume(&test, 1, "creating", "").await;
    let changes = VolumeChanges {
        launched_at: Some(Some(scoria::db::now())),
        replication_status: Some(Some("enabled".into())),
        ..VolumeChanges::default()
    };
    test.db
        .write("t", async |conn| volume::transition(conn, &id, VolumeEvent::Created, &changes).await)
        .await
        .unwrap();
    let row = test
        .row(&format!(
            "SELECT status, replication_status, launched_at IS NOT NULL, updated_at > '2026-01-01', provider_id
             FROM volumes WHERE id='{id}'"
        ))
        .await;
    assert_eq!(row, ["available", "enabled", "1", "1", "NULL"]);

    // The administrator deletes it meanwhile; the answer of a slow create must not revive it.
    test.sql(&format!("UPDATE volumes SET status='deleting' WHERE id='{id}'")).await;
    let error = test
        .db
        .write("t", async |conn| volume::transition(conn, &id, VolumeEvent::Created, &changes).await)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Conflict);
    assert!(error.user().contains("deleting"), "{error}");
    let error = test
        .db
        .write("t", async |conn| {
            volume::transition(conn, "gone", VolumeEvent::Created, &VolumeChanges::default()).await
        })
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::VolumeNotFound);
}

#[tokio::test]
async fn an_update_that_changes_nothing_still_matches() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let id = seed::volume(&test, 1, "available", "").await;
    // Twice within the same second: the row does not change the second time (client_found_rows).
    for _ in 0..2 {
        test.db
            .write("t", async |conn| {
                volume::transition(conn, &id, VolumeEvent::Created, &VolumeChanges::default()).await
            })
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_transition_to_a_given_status_is_refused_where_the_table_names_it() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let id = seed::volume(&test, 1, "retyping", "").await;
    let none = VolumeChanges::default();
    test.db
        .write("t", async |conn| {
            volume::transition_to(conn, &id, VolumeEvent::RetypeAborted, "in-use", &none).await
        })
        .await
        .unwrap();
    assert_eq!(test.row(&format!("SELECT status FROM volumes WHERE id='{id}'")).await, ["in-use"]);
    let error = test
        .db
        .write("t", async |conn| volume::transition_to(conn, &id, VolumeEvent::Created, "x", &none).await)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Internal);
}

#[tokio::test]
async fn destroying_a_volume_soft_deletes_what_hangs_on_it_and_keeps_updated_at() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let id = seed::volume(&test, 1, "deleting", ", migration_status='target:x'").await;
    let other = seed::volume(&test, 2, "available", "").await;
    seed::snapshot(&test, 1, &id, "deleting").await;
    seed::snapshot(&test, 2, &other, "available").await;
    test.sql(&format!(
        "INSERT INTO volume_metadata (volume_id, `key`, value, deleted) VALUES ('{id}','k','v',0), ('{other}','k','v',0);
         INSERT INTO volume_admin_metadata (volume_id, `key`, value, deleted) VALUES ('{id}','k','v',0);
         INSERT INTO volume_glance_metadata (volume_id, `key`, value, deleted) VALUES ('{id}','k','v',0);
         INSERT INTO transfers (id, volume_id, deleted) VALUES ('t','{id}',0);
         INSERT INTO volume_attachment (id, volume_id, deleted) VALUES ('a','{id}',0)"
    ))
    .await;
    let first = test.db.write("t", async |conn| volume::destroy(conn, &id).await).await.unwrap();
    let second = test.db.write("t", async |conn| volume::destroy(conn, &id).await).await.unwrap();
    assert!(first && !second);
    let row = test
        .row(&format!(
            "SELECT status, deleted, deleted_at IS NOT NULL, migration_status, updated_at FROM volumes WHERE id='{id}'"
        ))
        .await;
    assert_eq!(row, ["deleted", "1", "1", "NULL", "2026-01-01 00:00:00"]);
    for table in [
        "volume_metadata",
        "volume_admin_metadata",
        "volume_glance_metadata",
        "transfers",
        "volume_attachment",
        "snapshots",
    ] {
        let row = test
            .row(&format!("SELECT deleted, deleted_at IS NOT NULL FROM {table} WHERE volume_id='{id}'"))
            .await;
        assert_eq!(row, ["1", "1"], "{table}");
    }
    assert_eq!(test.row(&format!("SELECT deleted FROM snapshots WHERE volume_id='{other}'")).await, ["0"]);
    let bad = test.db.write("t", async |conn| volume::destroy(conn, "x' OR '1'='1").await).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidUuid);
}

#[tokio::test]
async fn a_scope_is_exact_in_case_pool_and_wildcards() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let mine = seed::volume(&test, 1, "available", "").await;
    let bare = seed::volume(&test, 2, "available", &format!(", host='{BACKEND}', size=5")).await;
    let mut others = Vec::new();
    for (n, host) in
        [(3, "node1@ceph2#pool"), (4, "NODE1@ceph#pool"), (5, "node1@cephXpool"), (6, "node_1@ceph#p")]
    {
        others.push(seed::volume(&test, n, "available", &format!(", host='{host}'")).await);
    }
    seed::volume(&test, 7, "deleted", ", deleted=1").await;
    let found = test
        .db
        .read("t", async |conn| volume::list(conn, &scope(), &VolumeFilter::default()).await)
        .await
        .unwrap();
    let ids: Vec<&str> = found.iter().map(|v| v.id.as_str()).collect();
    assert_eq!(ids, [&mine, &bare]);
    let under = Scope::Host("node_1@ceph".into());
    let found = test
        .db
        .read("t", async |conn| volume::list(conn, &under, &VolumeFilter::default()).await)
        .await
        .unwrap();
    assert_eq!(found.len(), 1);

    let allocated =
        test.db.read("t", async |conn| volume::allocated_by_pool(conn, &scope()).await).await.unwrap();
    assert_eq!(allocated.len(), 2);
    assert_eq!(allocated["node1@ceph#pool"], 2);
    assert_eq!(allocated[BACKEND], 5);

    let many = vec![mine.clone(), others[0].clone(), "nothing".to_owned()];
    let found = test.db.read("t", async |conn| volume::get_many(conn, &many).await).await.unwrap();
    assert_eq!(found.len(), 2);
    let uuid = seed::id(9, 1);
    let moved =
        test.db.write("t", async |conn| volume::set_service_uuid(conn, &scope(), &uuid).await).await.unwrap();
    assert_eq!(moved, 2);
}

#[tokio::test]
async fn snapshots_change_status_carry_metadata_and_are_destroyed_with_it() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let volume = seed::volume(&test, 1, "available", "").await;
    let id = seed::snapshot(&test, 1, &volume, "creating").await;
    test.sql(&format!(
        "INSERT INTO volume_glance_metadata (volume_id, `key`, value, deleted) VALUES ('{volume}','image_id','i',0)"
    ))
    .await;
    let found = test
        .db
        .write("t", async |conn| {
            let changes =
                snapshot::SnapshotChanges { progress: Some(Some("100%".into())), ..Default::default() };
            snapshot::copy_glance_metadata(conn, &volume, &id).await?;
            snapshot::transition(conn, &id, SnapshotEvent::Created, &changes).await?;
            snapshot::get(conn, &id).await
        })
        .await
        .unwrap();
    assert_eq!((found.status.as_str(), found.progress.as_deref()), ("available", Some("100%")));
    assert_eq!(found.metadata["a"], "b");
    let all = test.db.read("t", async |conn| snapshot::list(conn, &scope(), &[]).await).await.unwrap();
    assert_eq!(all, [found]);

    let copy = seed::volume(&test, 2, "creating", "").await;
    let keys = test
        .db
        .write("t", async |conn| volume::copy_glance_metadata(conn, GlanceSource::Snapshot(&id), &copy).await)
        .await
        .unwrap();
    assert_eq!(keys, 1);

    let error = test
        .db
        .write("t", async |conn| {
            snapshot::transition(conn, &id, SnapshotEvent::Recovered, &Default::default()).await
        })
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::Conflict);
    assert!(test.db.write("t", async |conn| snapshot::destroy(conn, &id).await).await.unwrap());
    let gone = test.db.read("t", async |conn| snapshot::get(conn, &id).await).await.unwrap_err();
    assert_eq!(gone.code(), Code::SnapshotNotFound);
    let left = test
        .row(&format!(
            "SELECT (SELECT COUNT(*) FROM snapshot_metadata WHERE snapshot_id='{id}' AND deleted=0),
                    (SELECT COUNT(*) FROM volume_glance_metadata WHERE snapshot_id='{id}' AND deleted=0),
                    status, updated_at > '2026-01-01' FROM snapshots WHERE id='{id}'"
        ))
        .await;
    assert_eq!(left, ["0", "0", "deleted", "1"]);
}

#[tokio::test]
async fn attach_and_detach_leave_stocks_rows() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let volume = seed::volume(&test, 1, "attaching", "").await;
    let draft = AttachmentDraft {
        volume_id: volume.clone(),
        instance_uuid: Some(seed::id(7, 1)),
        attached_host: None,
        mountpoint: Some("/dev/vdc".into()),
        attach_mode: Some("rw".into()),
    };
    let made = test
        .db
        .write("t", async |conn| {
            let made = attachment::create(conn, &draft).await?;
            volume::set_admin_metadata(conn, &volume, "attached_mode", "rw").await?;
            attachment::attached(conn, &made.id, &draft, attachment::Progress::Attached).await?;
            Ok(made.id)
        })
        .await
        .unwrap();
    let row = test
        .row(&format!(
            "SELECT v.status, v.attach_status, a.attach_status, a.attach_mode, a.mountpoint, a.attached_host,
                    a.attach_time IS NOT NULL, a.updated_at IS NOT NULL
             FROM volumes v JOIN volume_attachment a ON a.volume_id=v.id WHERE a.id='{made}'"
        ))
        .await;
    assert_eq!(row, ["in-use", "attached", "attached", "rw", "/dev/vdc", "NULL", "1", "1"]);
    let admin = test.db.read("t", async |conn| volume::admin_metadata(conn, &volume).await).await.unwrap();
    assert_eq!(admin["attached_mode"], "rw");

    // A second attachment that is only reserved keeps the volume reserved after the first has gone.
    test.sql(&format!(
        "INSERT INTO volume_attachment (id, volume_id, attach_status, deleted) VALUES ('r','{volume}','reserved',0);
         UPDATE volumes SET status='detaching' WHERE id='{volume}'"
    ))
    .await;
    let left =
        test.db.write("t", async |conn| attachment::finish_detach(conn, &volume, &made).await).await.unwrap();
    assert_eq!((left.status.as_str(), left.attach_status.as_str()), ("reserved", "reserved"));
    let admin = test.db.read("t", async |conn| volume::admin_metadata(conn, &volume).await).await.unwrap();
    assert!(admin.is_empty());
    let row = test
        .row(&format!(
            "SELECT deleted, attach_status, detach_time IS NOT NULL FROM volume_attachment WHERE id='{made}'"
        ))
        .await;
    assert_eq!(row, ["1", "detached", "1"]);

    // The last one, while a failover has put the volume into error: that stays.
    test.sql(&format!("UPDATE volumes SET status='error' WHERE id='{volume}'")).await;
    let left =
        test.db.write("t", async |conn| attachment::finish_detach(conn, &volume, "r").await).await.unwrap();
    assert_eq!((left.status.as_str(), left.attach_status.as_str()), ("error", "detached"));

    let bad = AttachmentDraft { instance_uuid: Some("no-uuid".into()), ..draft };
    let error = test
        .db
        .write("t", async |conn| attachment::attached(conn, "r", &bad, attachment::Progress::Attached).await)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::InvalidUuid);
}

#[tokio::test]
async fn a_migrating_volume_keeps_its_status_when_the_last_attachment_goes() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    let volume = seed::volume(&test, 1, "in-use", ", migration_status='migrating'").await;
    let left = test
        .db
        .write("t", async |conn| attachment::finish_detach(conn, &volume, "none").await)
        .await
        .unwrap();
    assert_eq!((left.status.as_str(), left.attach_status.as_str()), ("in-use", "detached"));
}

#[tokio::test]
async fn types_come_with_extra_specs_and_qos_even_when_deleted() {
    let test = TestDb::new().await;
    seed::base(&test).await;
    test.sql(&format!(
        "INSERT INTO quality_of_service_specs (id, specs_id, `key`, value, deleted) VALUES
           ('q', NULL, 'QoS_Specs_Name', 'fast', 0), ('c', 'q', 'consumer', 'front-end', 0),
           ('i', 'q', 'total_iops_sec', '500', 0), ('d', 'q', 'gone', '1', 1);
         UPDATE volume_types SET qos_specs_id='q', deleted=1 WHERE id='{TYPE}'"
    ))
    .await;
    let (kind, qos) = test
        .db
        .read("t", async |conn| {
            let kind = volume_type::get(conn, TYPE).await?;
            let qos = volume_type::qos_specs(conn, kind.qos_specs_id.as_deref().unwrap_or("")).await?;
            Ok((kind, qos))
        })
        .await
        .unwrap();
    assert!(kind.wants_replication());
    assert_eq!(kind.extra_specs.len(), 1);
    let qos = qos.unwrap();
    assert!(qos.for_front_end());
    assert_eq!(
        (qos.name.as_str(), qos.specs["total_iops_sec"].as_str(), qos.specs.len()),
        ("fast", "500", 1)
    );
}

#[tokio::test]
async fn a_user_message_has_stocks_columns() {
    let test = TestDb::new().await;
    let fields = serde_json::json!({"request_id": "req-1", "project_id": PROJECT});
    let serde_json::Value::Object(fields) = fields else { unreachable!() };
    let context = scoria::context::RequestContext::from_fields(fields);
    let text = Message::volume("v1", Action::ExtendVolume, Detail::DriverFailedExtend);
    let ttl = std::time::Duration::from_secs(2_592_000);
    let id = test
        .db
        .write("t", async |conn| message::create(conn, &context, &text, ttl).await)
        .await
        .unwrap()
        .unwrap();
    let row = test
        .row(&format!(
            "SELECT project_id, request_id, resource_type, resource_uuid, event_id, message_level, detail_id, action_id,
                    deleted, updated_at, TIMESTAMPDIFF(DAY, created_at, expires_at) FROM messages WHERE id='{id}'"
        ))
        .await;
    assert_eq!(
        row,
        [PROJECT, "req-1", "VOLUME", "v1", "VOLUME_VOLUME_007_010", "ERROR", "010", "007", "0", "NULL", "30"]
    );
    let admin = scoria::context::RequestContext::admin();
    let none =
        test.db.write("t", async |conn| message::create(conn, &admin, &text, ttl).await).await.unwrap();
    assert_eq!(none, None);
}
