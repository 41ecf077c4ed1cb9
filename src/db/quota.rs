//! Quota: what a project uses is given back here, and taken only for what was not known before ([`reserve()`]).
//!
//! The API reserves before it casts; cinder-volume commits or rolls back those reservations, and for a
//! deletion makes negative ones itself. Rows end up as stock leaves them (`cinder/db/api.py`,
//! `quota_reserve`, `reservation_commit`, `reservation_rollback`); but where stock reserves, destroys the
//! resource and commits in three transactions, [`give_back`] joins the one that destroys the resource, so
//! that a crash can no longer lose or double the difference.

mod reserve;

use std::collections::HashMap;

use chrono::TimeDelta;
use diesel::dsl::sql;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_async::RunQueryDsl;
use uuid::Uuid;

use super::schema::{backups, groups, quota_usages, reservations, snapshots, volumes};
use super::{Conn, now, volume_type};
use crate::config::Config;
use crate::error::Result;

pub use reserve::{check_volume_size, reserve, reserve_backup};

/// Options of `[DEFAULT]` that decide how usage is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaRules {
    /// `no_snapshot_gb_quota`: snapshots take no gigabytes.
    pub no_snapshot_gb_quota: bool,
    /// `reservation_expire` (86400 s).
    pub reservation_expire: TimeDelta,
    /// `use_default_quota_class` (true).
    pub default_class: bool,
    /// `quota_gigabytes` (1000), for projects of which the database says nothing; negative: no limit.
    pub gigabytes: i64,
    /// `per_volume_size_limit` (-1), in the same case.
    pub per_volume_gigabytes: i64,
    /// `quota_backups` (10), in the same case.
    pub backups: i64,
    /// `quota_backup_gigabytes` (1000), in the same case.
    pub backup_gigabytes: i64,
}

impl Default for QuotaRules {
    fn default() -> Self {
        QuotaRules {
            no_snapshot_gb_quota: false,
            reservation_expire: TimeDelta::seconds(86400),
            default_class: true,
            gigabytes: 1000,
            per_volume_gigabytes: -1,
            backups: 10,
            backup_gigabytes: 1000,
        }
    }
}

impl From<&Config> for QuotaRules {
    fn from(config: &Config) -> Self {
        QuotaRules {
            no_snapshot_gb_quota: config.no_snapshot_gb_quota,
            default_class: config.use_default_quota_class,
            gigabytes: config.quota_gigabytes,
            per_volume_gigabytes: config.per_volume_size_limit,
            backups: config.quota_backups,
            backup_gigabytes: config.quota_backup_gigabytes,
            ..QuotaRules::default()
        }
    }
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Resource {
    Volumes,
    Gigabytes,
    Snapshots,
    Groups,
    Backups,
    BackupGigabytes,
}

impl Resource {
    fn name(self) -> &'static str {
        match self {
            Resource::Volumes => "volumes",
            Resource::Gigabytes => "gigabytes",
            Resource::Snapshots => "snapshots",
            Resource::Groups => "groups",
            Resource::Backups => "backups",
            Resource::BackupGigabytes => "backup_gigabytes",
        }
    }
}

/// What a deletion gives back, in the order in which stock reserves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    deltas: Vec<(Resource, i32)>,
    volume_type_id: Option<String>,
}

impl Release {
    /// A volume of `size` GiB.
    pub fn volume(size: i32, volume_type_id: Option<&str>) -> Self {
        Release {
            deltas: vec![(Resource::Volumes, -1), (Resource::Gigabytes, -size)],
            volume_type_id: volume_type_id.map(str::to_owned),
        }
    }

    /// The contrary: a volume of `size` GiB that nobody has reserved quota for is counted.
    pub fn used_volume(size: i32, volume_type_id: &str) -> Self {
        Release {
            deltas: vec![(Resource::Volumes, 1), (Resource::Gigabytes, size)],
            volume_type_id: Some(volume_type_id.to_owned()),
        }
    }

    /// A snapshot of a volume of `size` GiB.
    pub fn snapshot(size: i32, volume_type_id: Option<&str>, rules: &QuotaRules) -> Self {
        let mut deltas = vec![(Resource::Snapshots, -1)];
        if !rules.no_snapshot_gb_quota {
            deltas.push((Resource::Gigabytes, -size));
        }
        Release { deltas, volume_type_id: volume_type_id.map(str::to_owned) }
    }

    /// A group, without its volumes.
    pub fn group() -> Self {
        Release { deltas: vec![(Resource::Groups, -1)], volume_type_id: None }
    }

    /// A backup of a volume of `size` GiB.
    pub fn backup(size: i32) -> Self {
        let deltas = vec![(Resource::Backups, -1), (Resource::BackupGigabytes, -size)];
        Release { deltas, volume_type_id: None }
    }

    /// Gigabytes of a volume that turned out smaller, or whose growth failed after it was counted.
    pub fn gigabytes(size: i32, volume_type_id: Option<&str>) -> Self {
        Release {
            deltas: vec![(Resource::Gigabytes, -size)],
            volume_type_id: volume_type_id.map(str::to_owned),
        }
    }
}

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = quota_usages, check_for_backend(Mysql))]
struct Usage {
    id: i32,
    resource: Option<String>,
    in_use: i32,
    reserved: i32,
}

#[derive(Debug, Clone, Queryable, Selectable)]
#[diesel(table_name = reservations, check_for_backend(Mysql))]
struct Reservation {
    id: i32,
    usage_id: Option<i32>,
    delta: i32,
}

/// Gives back what a deleted resource used, under its project. Call it *before* destroying the row, in
/// the same transaction: a usage row that is missing is counted anew from the rows that exist.
/// `in_use` never falls below 0.
///
/// # Errors
/// `VolumeTypeNotFound`; `Database`.
pub async fn give_back(
    conn: &mut Conn,
    project_id: &str,
    release: &Release,
    rules: &QuotaRules,
) -> Result<()> {
    let mut lines: Vec<Line> = release
        .deltas
        .iter()
        .map(|(resource, delta)| Line {
            name: resource.name().to_owned(),
            resource: *resource,
            delta: *delta,
            type_id: None,
        })
        .collect();
    if let Some(type_id) = &release.volume_type_id {
        let name = volume_type::get(conn, type_id).await?.name;
        lines.extend(release.deltas.iter().map(|(resource, delta)| Line {
            name: format!("{}_{name}", resource.name()),
            resource: *resource,
            delta: *delta,
            type_id: Some(type_id.clone()),
        }));
    }
    let usages = lock_usages(conn, project_id, &lines, rules).await?;
    let at = now();
    for line in &lines {
        let Some(usage) = usages.get(&line.name) else {
            continue;
        };
        // Reserved and committed at once: the row is born deleted, as stock's is after its commit.
        diesel::insert_into(reservations::table)
            .values((
                reservations::uuid.eq(Uuid::new_v4().to_string()),
                reservations::usage_id.eq(usage.id),
                reservations::project_id.eq(project_id),
                reservations::resource.eq(&line.name),
                reservations::delta.eq(line.delta),
                reservations::expire.eq(at + rules.reservation_expire),
                reservations::created_at.eq(at),
                reservations::deleted.eq(true),
                reservations::deleted_at.eq(at),
                reservations::updated_at.eq(at),
            ))
            .execute(conn)
            .await?;
        let in_use = committed_in_use(usage.in_use, line.delta);
        diesel::update(quota_usages::table)
            .filter(quota_usages::id.eq(usage.id))
            .set((quota_usages::in_use.eq(in_use), quota_usages::updated_at.eq(at)))
            .execute(conn)
            .await?;
    }
    Ok(())
}

/// Makes the API's reservations count (`reservation_commit`). Reservations that are unknown, expired or
/// settled before are skipped, so that doing it twice does no harm.
///
/// # Errors
/// `Database`.
pub async fn commit(conn: &mut Conn, project_id: &str, uuids: &[String]) -> Result<()> {
    settle(conn, project_id, uuids, true).await
}

/// Cancels the API's reservations (`reservation_rollback`); as tolerant as [`commit`].
///
/// # Errors
/// `Database`.
pub async fn roll_back(conn: &mut Conn, project_id: &str, uuids: &[String]) -> Result<()> {
    settle(conn, project_id, uuids, false).await
}

/// The same when the resource that knows the project is gone: the reservations know it too.
///
/// # Errors
/// `Database`.
pub async fn roll_back_of_anybody(conn: &mut Conn, uuids: &[String]) -> Result<()> {
    let project: Option<Option<String>> = reservations::table
        .filter(reservations::deleted.eq(false))
        .filter(reservations::uuid.eq_any(uuids))
        .select(reservations::project_id)
        .first(conn)
        .await
        .optional()?;
    match project.flatten() {
        Some(project) => roll_back(conn, &project, uuids).await,
        None => Ok(()),
    }
}

async fn settle(conn: &mut Conn, project_id: &str, uuids: &[String], commit: bool) -> Result<()> {
    if uuids.is_empty() {
        return Ok(());
    }
    // Locks are taken on quota_usages first and on reservations second, as everywhere in Cinder.
    let names: Vec<Option<String>> = reservations::table
        .filter(reservations::deleted.eq(false))
        .filter(reservations::uuid.eq_any(uuids))
        .select(reservations::resource)
        .load(conn)
        .await?;
    let names: Vec<String> = names.into_iter().flatten().collect();
    let mut usages: HashMap<i32, Usage> = quota_usages::table
        .filter(quota_usages::deleted.eq(false))
        .filter(quota_usages::project_id.eq(project_id))
        .filter(quota_usages::resource.eq_any(&names))
        .order(quota_usages::id)
        .select(Usage::as_select())
        .for_update()
        .load(conn)
        .await?
        .into_iter()
        .map(|u: Usage| (u.id, u))
        .collect();
    let open: Vec<Reservation> = reservations::table
        .filter(reservations::deleted.eq(false))
        .filter(reservations::uuid.eq_any(uuids))
        .select(Reservation::as_select())
        .for_update()
        .load(conn)
        .await?;
    let at = now();
    for reservation in &open {
        if let Some(usage) = reservation.usage_id.and_then(|id| usages.get_mut(&id)) {
            if reservation.delta >= 0 {
                usage.reserved -= reservation.delta.min(usage.reserved);
            }
            if commit {
                usage.in_use = committed_in_use(usage.in_use, reservation.delta);
            }
            diesel::update(quota_usages::table)
                .filter(quota_usages::id.eq(usage.id))
                .set((
                    quota_usages::in_use.eq(usage.in_use),
                    quota_usages::reserved.eq(usage.reserved),
                    quota_usages::updated_at.eq(at),
                ))
                .execute(conn)
                .await?;
        }
        diesel::update(reservations::table)
            .filter(reservations::id.eq(reservation.id))
            .set((
                reservations::deleted.eq(true),
                reservations::deleted_at.eq(at),
                reservations::updated_at.eq(at),
            ))
            .execute(conn)
            .await?;
    }
    Ok(())
}

/// One counted thing: `gigabytes`, or `gigabytes_<type name>`.
struct Line {
    name: String,
    resource: Resource,
    delta: i32,
    type_id: Option<String>,
}

/// The usage rows of the lines, locked in the order of their ids; missing ones are created, negative
/// ones are counted anew.
async fn lock_usages(
    conn: &mut Conn,
    project_id: &str,
    lines: &[Line],
    rules: &QuotaRules,
) -> Result<HashMap<String, Usage>> {
    let mut usages = select_usages(conn, project_id, lines).await?;
    if lines.iter().any(|line| !usages.contains_key(&line.name)) {
        for line in lines.iter().filter(|line| !usages.contains_key(&line.name)) {
            let in_use = count(conn, project_id, line, rules).await?;
            // Somebody may create it in the same moment: theirs then stands.
            diesel::insert_or_ignore_into(quota_usages::table)
                .values((
                    quota_usages::project_id.eq(project_id),
                    quota_usages::resource.eq(&line.name),
                    quota_usages::in_use.eq(in_use),
                    quota_usages::reserved.eq(0),
                    quota_usages::race_preventer.eq(true),
                    quota_usages::deleted.eq(false),
                    quota_usages::created_at.eq(now()),
                ))
                .execute(conn)
                .await?;
        }
        usages = select_usages(conn, project_id, lines).await?;
    }
    for line in lines {
        if let Some(usage) = usages.get_mut(&line.name)
            && usage.in_use < 0
        {
            usage.in_use = count(conn, project_id, line, rules).await?;
        }
    }
    Ok(usages)
}

async fn select_usages(conn: &mut Conn, project_id: &str, lines: &[Line]) -> Result<HashMap<String, Usage>> {
    let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
    let rows: Vec<Usage> = quota_usages::table
        .filter(quota_usages::deleted.eq(false))
        .filter(quota_usages::project_id.eq(project_id))
        .filter(quota_usages::resource.eq_any(names))
        .order(quota_usages::id)
        .select(Usage::as_select())
        .for_update()
        .load(conn)
        .await?;
    Ok(rows.into_iter().filter_map(|u| Some((u.resource.clone()?, u))).collect())
}

/// What a project really uses (`_sync_volumes`, `_sync_gigabytes`, `_sync_snapshots`, `_sync_backups`).
async fn count(conn: &mut Conn, project_id: &str, line: &Line, rules: &QuotaRules) -> Result<i32> {
    let mut volume_query = volumes::table
        .filter(volumes::deleted.eq(false))
        .filter(volumes::project_id.eq(project_id))
        .filter(volumes::use_quota.eq(true))
        .select((
            sql::<BigInt>("COUNT(volumes.id)"),
            sql::<BigInt>("CAST(COALESCE(SUM(volumes.size), 0) AS SIGNED)"),
        ))
        .into_boxed();
    let mut snapshot_query = snapshots::table
        .inner_join(volumes::table.on(volumes::id.eq(snapshots::volume_id)))
        .filter(snapshots::deleted.eq(false))
        .filter(snapshots::project_id.eq(project_id))
        .filter(snapshots::use_quota.eq(true))
        .select((
            sql::<BigInt>("COUNT(snapshots.id)"),
            sql::<BigInt>("CAST(COALESCE(SUM(snapshots.volume_size), 0) AS SIGNED)"),
        ))
        .into_boxed();
    if let Some(type_id) = &line.type_id {
        volume_query = volume_query.filter(volumes::volume_type_id.eq(type_id));
        snapshot_query = snapshot_query.filter(volumes::volume_type_id.eq(type_id));
    }
    let counted: i64 = match line.resource {
        Resource::Volumes => volume_query.get_result::<(i64, i64)>(conn).await?.0,
        Resource::Snapshots => snapshot_query.get_result::<(i64, i64)>(conn).await?.0,
        Resource::Groups => {
            groups::table
                .filter(groups::deleted.eq(false))
                .filter(groups::project_id.eq(project_id))
                .count()
                .get_result(conn)
                .await?
        }
        Resource::Backups => {
            backups::table
                .filter(backups::deleted.eq(false))
                .filter(backups::project_id.eq(project_id))
                .count()
                .get_result(conn)
                .await?
        }
        Resource::BackupGigabytes => {
            backups::table
                .filter(backups::deleted.eq(false))
                .filter(backups::project_id.eq(project_id))
                .select(sql::<BigInt>("CAST(COALESCE(SUM(size), 0) AS SIGNED)"))
                .get_result(conn)
                .await?
        }
        Resource::Gigabytes => {
            let volumes = volume_query.get_result::<(i64, i64)>(conn).await?.1;
            if rules.no_snapshot_gb_quota {
                volumes
            } else {
                volumes + snapshot_query.get_result::<(i64, i64)>(conn).await?.1
            }
        }
    };
    Ok(i32::try_from(counted).unwrap_or(i32::MAX))
}

/// `in_use` after a reservation of `delta` was committed: a negative one never makes it negative.
fn committed_in_use(in_use: i32, delta: i32) -> i32 {
    if delta < 0 && delta.saturating_neg() > in_use {
        // Stock subtracts all that is there, which heals a negative count too.
        0
    } else {
        in_use.saturating_add(delta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_never_falls_below_zero() {
        assert_eq!(committed_in_use(5, -3), 2);
        assert_eq!(committed_in_use(2, -3), 0);
        assert_eq!(committed_in_use(0, -1), 0);
        assert_eq!(committed_in_use(2, 3), 5);
    }

    #[test]
    fn a_snapshot_gives_gigabytes_back_unless_told_not_to() {
        let rules = QuotaRules { no_snapshot_gb_quota: true, ..QuotaRules::default() };
        assert_eq!(Release::snapshot(4, None, &rules).deltas, [(Resource::Snapshots, -1)]);
        assert_eq!(
            Release::snapshot(4, None, &QuotaRules::default()).deltas,
            [(Resource::Snapshots, -1), (Resource::Gigabytes, -4)]
        );
    }
}
