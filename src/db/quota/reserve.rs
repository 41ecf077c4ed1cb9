//! Reserving quota for what the API could not know: how large an image is that a project takes over, and which backups
//! are made without it.
//!
//! As `QUOTAS.reserve` and `limit_check` of `cinder/quota.py`. Limits come from the
//! project's own quotas, else from the quota class `default`, else from the configuration; those of a volume
//! type have no default. What is reserved here is committed or cancelled like the API's own reservations.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::{Line, QuotaRules, Resource, lock_usages};
use crate::db::schema::{quota_classes, quota_usages, quotas, reservations};
use crate::db::{Conn, now, volume_type};
use crate::error::{Code, Error, Result};

const PER_VOLUME: &str = "per_volume_gigabytes";

/// Refuses a volume of `gib` GiB if the project may not have one that large.
///
/// # Errors
/// `OverQuota`; `Database`.
pub async fn check_volume_size(
    conn: &mut Conn,
    project_id: &str,
    gib: i32,
    rules: &QuotaRules,
) -> Result<()> {
    let limit = limits(conn, project_id, &[PER_VOLUME.to_owned()], rules).await?.remove(PER_VOLUME);
    match limit {
        Some(limit) if limit >= 0 && i64::from(gib) > limit => Err(Error::new(
            Code::OverQuota,
            format!("Requested volume size {gib}G is larger than maximum allowed limit {limit}G."),
        )),
        _ => Ok(()),
    }
}

/// Reserves `gib` more GiB (fewer, when negative) for the project, also in the count of the volume type.
/// Answers the reservations, for [`super::commit`] or [`super::roll_back`].
///
/// # Errors
/// `OverQuota`; `VolumeTypeNotFound`; `Database`.
pub async fn reserve(
    conn: &mut Conn,
    project_id: &str,
    gib: i32,
    volume_type_id: &str,
    rules: &QuotaRules,
) -> Result<Vec<String>> {
    let type_name = volume_type::get(conn, volume_type_id).await?.name;
    let resource = Resource::Gigabytes;
    let line = |name: String, type_id: Option<String>| Line { name, resource, delta: gib, type_id };
    let lines = [
        line(resource.name().to_owned(), None),
        line(format!("{}_{type_name}", resource.name()), Some(volume_type_id.to_owned())),
    ];
    take(conn, project_id, &lines, rules).await
}

/// Reserves one more backup, of `gib` GiB, as the API does before it makes its row.
///
/// # Errors
/// `OverQuota`; `Database`.
pub async fn reserve_backup(
    conn: &mut Conn,
    project_id: &str,
    gib: i32,
    rules: &QuotaRules,
) -> Result<Vec<String>> {
    let line =
        |resource: Resource, delta| Line { name: resource.name().to_owned(), resource, delta, type_id: None };
    take(conn, project_id, &[line(Resource::Backups, 1), line(Resource::BackupGigabytes, gib)], rules).await
}

async fn take(conn: &mut Conn, project_id: &str, lines: &[Line], rules: &QuotaRules) -> Result<Vec<String>> {
    let usages = lock_usages(conn, project_id, lines, rules).await?;
    let names: Vec<String> = lines.iter().map(|line| line.name.clone()).collect();
    let limits = limits(conn, project_id, &names, rules).await?;
    for line in lines {
        let (Some(usage), Some(limit)) = (usages.get(&line.name), limits.get(&line.name)) else { continue };
        let consumed = i64::from(usage.in_use) + i64::from(usage.reserved);
        if *limit >= 0 && line.delta >= 0 && *limit < consumed + i64::from(line.delta) {
            return Err(Error::new(Code::OverQuota, over(line, *limit, consumed)));
        }
    }
    let at = now();
    let mut made = Vec::with_capacity(lines.len());
    for line in lines {
        let Some(usage) = usages.get(&line.name) else { continue };
        let uuid = Uuid::new_v4().to_string();
        diesel::insert_into(reservations::table)
            .values((
                reservations::uuid.eq(&uuid),
                reservations::usage_id.eq(usage.id),
                reservations::project_id.eq(project_id),
                reservations::resource.eq(&line.name),
                reservations::delta.eq(line.delta),
                reservations::expire.eq(at + rules.reservation_expire),
                reservations::created_at.eq(at),
                reservations::deleted.eq(false),
            ))
            .execute(conn)
            .await?;
        diesel::update(quota_usages::table)
            .filter(quota_usages::id.eq(usage.id))
            .set((
                quota_usages::in_use.eq(usage.in_use),
                quota_usages::reserved.eq(usage.reserved.saturating_add(line.delta.max(0))),
                quota_usages::updated_at.eq(at),
            ))
            .execute(conn)
            .await?;
        made.push(uuid);
    }
    Ok(made)
}

/// As the API says it (`VolumeSizeExceedsAvailableQuota`, `BackupLimitExceeded`,
/// `VolumeBackupSizeExceedsAvailableQuota`).
fn over(line: &Line, limit: i64, consumed: i64) -> String {
    let (name, delta) = (&line.name, line.delta);
    match line.resource {
        Resource::Backups => format!("Maximum number of backups allowed ({limit}) exceeded"),
        Resource::BackupGigabytes => format!(
            "Requested backup exceeds allowed Backup gigabytes quota. Requested {delta}G, quota is {limit}G and \
             {consumed}G has been consumed."
        ),
        _ => format!(
            "Requested volume or snapshot exceeds allowed {name} quota. Requested {delta}G, quota is {limit}G and \
             {consumed}G has been consumed."
        ),
    }
}

/// The limit of each resource; negative: none.
async fn limits(
    conn: &mut Conn,
    project_id: &str,
    resources: &[String],
    rules: &QuotaRules,
) -> Result<HashMap<String, i64>> {
    let default = |name: &str| match name {
        "gigabytes" => rules.gigabytes,
        PER_VOLUME => rules.per_volume_gigabytes,
        "backups" => rules.backups,
        "backup_gigabytes" => rules.backup_gigabytes,
        _ => -1,
    };
    let mut found: HashMap<String, i64> = resources.iter().map(|r| (r.clone(), default(r))).collect();
    if rules.default_class {
        let of_class: Vec<(Option<String>, Option<i32>)> = quota_classes::table
            .filter(quota_classes::deleted.eq(false))
            .filter(quota_classes::class_name.eq("default"))
            .filter(quota_classes::resource.eq_any(resources))
            .select((quota_classes::resource, quota_classes::hard_limit))
            .load(conn)
            .await?;
        let of_class = of_class.into_iter().filter_map(|(name, limit)| Some((name?, i64::from(limit?))));
        found.extend(of_class);
    }
    let own: Vec<(String, Option<i32>)> = quotas::table
        .filter(quotas::deleted.eq(false))
        .filter(quotas::project_id.eq(project_id))
        .filter(quotas::resource.eq_any(resources))
        .select((quotas::resource, quotas::hard_limit))
        .load(conn)
        .await?;
    found.extend(own.into_iter().filter_map(|(name, limit)| Some((name, i64::from(limit?)))));
    Ok(found)
}
