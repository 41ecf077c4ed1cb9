//! Rows as cinder-api leaves them.

use crate::support::TestDb;

pub const PROJECT: &str = "0123456789abcdef0123456789abcdef";
pub const TYPE: &str = "3f7d81fd-3cb6-4e1a-ab62-35515dfd0a42";
pub const BACKEND: &str = "node1@ceph";

/// A uuid that says what it is.
pub fn id(kind: u32, number: u32) -> String {
    format!("{kind:08x}-0000-4000-8000-{number:012x}")
}

/// One volume type `plain`, and a row of `services` with id 1.
pub async fn base(test: &TestDb) {
    test.sql(&format!(
        "INSERT INTO volume_types (id, name, deleted, is_public) VALUES ('{TYPE}', 'plain', 0, 1);
         INSERT INTO volume_type_extra_specs (volume_type_id, `key`, value, deleted)
           VALUES ('{TYPE}', 'replication_enabled', '<is> True', 0), ('{TYPE}', 'old', 'x', 1);
         INSERT INTO services (id, host, `binary`, topic, report_count, disabled, uuid, deleted, updated_at)
           VALUES (1, '{BACKEND}', 'cinder-volume', 'cinder-volume', 0, 0, '{}', 0, '2026-01-01')",
        id(9, 1)
    ))
    .await;
}

/// A volume of 2 GiB; `extra` are further assignments, e.g. `", replication_status='enabled'"`.
pub async fn volume(test: &TestDb, number: u32, status: &str, extra: &str) -> String {
    let id = id(1, number);
    test.sql(&format!(
        "INSERT INTO volumes SET id='{id}', status='{status}', size=2, host='{BACKEND}#pool', deleted=0,
           project_id='{PROJECT}', user_id='u', volume_type_id='{TYPE}', use_quota=1, bootable=0, multiattach=0,
           attach_status='detached', created_at='2026-01-01', updated_at='2026-01-01';
         UPDATE volumes SET updated_at='2026-01-01' {extra} WHERE id='{id}'"
    ))
    .await;
    id
}

/// A group.
pub async fn group(test: &TestDb, number: u32, status: &str, replication: &str) -> String {
    let id = id(5, number);
    test.sql(&format!(
        "INSERT INTO `groups` (id, status, replication_status, host, deleted, project_id)
         VALUES ('{id}', '{status}', '{replication}', '{BACKEND}#pool', 0, '{PROJECT}');
         INSERT INTO group_volume_type_mapping (volume_type_id, group_id, deleted) VALUES ('{TYPE}', '{id}', 0)"
    ))
    .await;
    id
}

/// A snapshot of 2 GiB.
pub async fn snapshot(test: &TestDb, number: u32, volume_id: &str, status: &str) -> String {
    let id = id(2, number);
    test.sql(&format!(
        "INSERT INTO snapshots SET id='{id}', volume_id='{volume_id}', status='{status}', volume_size=2, deleted=0,
           project_id='{PROJECT}', user_id='u', volume_type_id='{TYPE}', use_quota=1, progress='0%',
           created_at='2026-01-01', updated_at='2026-01-01';
         INSERT INTO snapshot_metadata (snapshot_id, `key`, value, deleted) VALUES ('{id}', 'a', 'b', 0)"
    ))
    .await;
    id
}
