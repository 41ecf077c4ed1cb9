//! Rows as an audit compares them with Ceph: whole sets, read at once, and corrections that are conditional on what
//! was read.

use std::collections::{BTreeMap, HashMap, HashSet};

use diesel::dsl::count_star;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;

use super::schema::{snapshots, volume_type_extra_specs, volume_types, volumes};
use super::volume::{CHUNK, VolumeChanges, to_map};
use super::{Conn, InScope, now};
use crate::error::Result;
use crate::model::{Scope, VolumeType};

/// Types with their extra specs, also deleted ones: a volume may outlive its type.
///
/// # Errors
/// `Database`.
pub async fn types(conn: &mut Conn, ids: &[String]) -> Result<HashMap<String, VolumeType>> {
    type Name = (String, Option<String>, Option<String>);
    let names: Vec<Name> = volume_types::table
        .filter(volume_types::id.eq_any(ids))
        .select((volume_types::id, volume_types::name, volume_types::qos_specs_id))
        .load(conn)
        .await?;
    type Spec = (String, Option<String>, Option<String>);
    type Pair = (Option<String>, Option<String>);
    let specs: Vec<Spec> = volume_type_extra_specs::table
        .filter(volume_type_extra_specs::volume_type_id.eq_any(ids))
        .filter(volume_type_extra_specs::deleted.eq(false))
        .select((
            volume_type_extra_specs::volume_type_id,
            volume_type_extra_specs::key,
            volume_type_extra_specs::value,
        ))
        .load(conn)
        .await?;
    let mut by_type: HashMap<String, Vec<Pair>> = HashMap::new();
    for (id, key, value) in specs {
        by_type.entry(id).or_default().push((key, value));
    }
    Ok(names
        .into_iter()
        .map(|(id, name, qos_specs_id)| {
            let extra_specs: BTreeMap<String, String> = to_map(by_type.remove(&id).unwrap_or_default());
            (id.clone(), VolumeType { id, name: name.unwrap_or_default(), qos_specs_id, extra_specs })
        })
        .collect())
}

/// Snapshots of these volumes that should exist, as (volume id, snapshot id): those that nobody is making or
/// deleting, and that are not in an error.
///
/// # Errors
/// `Database`.
pub async fn snapshots_of(conn: &mut Conn, volume_ids: &[String]) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for chunk in volume_ids.chunks(CHUNK) {
        let rows: Vec<(String, String)> = snapshots::table
            .filter(snapshots::volume_id.eq_any(chunk))
            .filter(snapshots::deleted.eq(false))
            .filter(snapshots::status.eq_any(["available", "backing-up", "restoring"]))
            .select((snapshots::volume_id, snapshots::id))
            .order(snapshots::id)
            .load(conn)
            .await?;
        found.extend(rows);
    }
    Ok(found)
}

/// Which of these ids name an image of a volume, on whatever host: as its id, or as its `_name_id`.
///
/// # Errors
/// `Database`.
pub async fn naming(conn: &mut Conn, ids: &[String]) -> Result<HashSet<String>> {
    let mut found = HashSet::new();
    for chunk in ids.chunks(CHUNK) {
        let rows: Vec<(String, Option<String>)> = volumes::table
            .filter(volumes::id.eq_any(chunk).or(volumes::name_id.eq_any(chunk)))
            .filter(volumes::deleted.eq(false))
            .select((volumes::id, volumes::name_id))
            .load(conn)
            .await?;
        // A volume whose image has another name has none of its own: but one may be on its way to it.
        found.extend(rows.into_iter().flat_map(|(id, name_id)| [Some(id), name_id]).flatten());
    }
    Ok(found)
}

/// Writes columns of a volume, if its `replication_status` is still what was read. Returns whether it was.
///
/// # Errors
/// `Database`.
pub async fn correct(conn: &mut Conn, id: &str, read: Option<&str>, changes: &VolumeChanges) -> Result<bool> {
    let update = diesel::update(volumes::table)
        .filter(volumes::id.eq(id))
        .filter(volumes::deleted.eq(false))
        .into_boxed();
    let update = match read {
        Some(status) => update.filter(volumes::replication_status.eq(status.to_owned())),
        None => update.filter(volumes::replication_status.is_null()),
    };
    Ok(update.set((changes, volumes::updated_at.eq(now()))).execute(conn).await? > 0)
}

/// What Scoria remembers of things that are gone: nobody else ever removes these rows.
const GONE: [&str; 3] = [
    "FROM scoria_strays t WHERE NOT EXISTS (SELECT 1 FROM volumes v WHERE v.id = t.volume_id AND v.deleted = 0)",
    "FROM scoria_displaced t WHERE t.resource_type = 'volume' AND NOT EXISTS \
     (SELECT 1 FROM volumes v WHERE v.id = t.resource_id AND v.deleted = 0)",
    "FROM scoria_displaced t WHERE t.resource_type = 'snapshot' AND NOT EXISTS \
     (SELECT 1 FROM snapshots s WHERE s.id = t.resource_id AND s.deleted = 0)",
];

/// How many rows of Scoria's tables are about volumes and snapshots that do not exist any more.
///
/// # Errors
/// `Database`.
pub async fn gone(conn: &mut Conn) -> Result<i64> {
    #[derive(QueryableByName)]
    struct Count {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        n: i64,
    }
    let mut sum = 0;
    for from in GONE {
        let count: Count = diesel::sql_query(format!("SELECT COUNT(*) AS n {from}")).get_result(conn).await?;
        sum += count.n;
    }
    Ok(sum)
}

/// Removes them; returns how many.
///
/// # Errors
/// `Database`.
pub async fn forget_gone(conn: &mut Conn) -> Result<usize> {
    let mut removed = 0;
    for from in GONE {
        removed += diesel::sql_query(format!("DELETE t {from}")).execute(conn).await?;
    }
    Ok(removed)
}

/// Attachments whose stored connection information names a site: the keys that depend on it are written over, in
/// one statement for all that go to the same site. What else was stored (limits, mode, the wish of the connector)
/// stays. `site` is a JSON object of those keys. Returns how many changed.
///
/// # Errors
/// `Database`.
pub async fn point_attachments(conn: &mut Conn, ids: &[String], site: &[(&str, String)]) -> Result<usize> {
    let mut changed = 0;
    for chunk in ids.chunks(CHUNK) {
        let keys: String = site.iter().map(|(key, _)| format!(", '$.{key}', JSON_EXTRACT(?, '$')")).collect();
        let marks = vec!["?"; chunk.len()].join(",");
        let mut query = diesel::sql_query(format!(
            "UPDATE volume_attachment SET connection_info = JSON_SET(connection_info{keys}), updated_at = UTC_TIMESTAMP() \
             WHERE deleted = 0 AND JSON_VALID(connection_info) AND id IN ({marks})"
        ))
        .into_boxed::<Mysql>();
        for (_, value) in site {
            query = query.bind::<Text, _>(value);
        }
        for id in chunk {
            query = query.bind::<Text, _>(id);
        }
        changed += query.execute(conn).await?;
    }
    Ok(changed)
}

/// What the volumes of a backend say of their replication (`replication_extended_status`), and how many say it.
///
/// # Errors
/// `Database`.
pub async fn said(conn: &mut Conn, scope: &Scope) -> Result<BTreeMap<String, i64>> {
    let rows: Vec<(Option<String>, i64)> = volumes::table
        .filter(volumes::deleted.eq(false))
        .filter(InScope::new("volumes", scope))
        .filter(volumes::replication_extended_status.is_not_null())
        .group_by(volumes::replication_extended_status)
        .select((volumes::replication_extended_status, count_star()))
        .load(conn)
        .await?;
    Ok(rows.into_iter().filter_map(|(text, n)| Some((text.filter(|t| !t.is_empty())?, n))).collect())
}

/// How many volumes of a backend are attached.
///
/// # Errors
/// `Database`.
pub async fn attached(conn: &mut Conn, scope: &Scope) -> Result<i64> {
    Ok(volumes::table
        .filter(volumes::deleted.eq(false))
        .filter(InScope::new("volumes", scope))
        .filter(volumes::attach_status.eq("attached"))
        .count()
        .get_result(conn)
        .await?)
}
