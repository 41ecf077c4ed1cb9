//! How far behind the copies of mirrored volumes are, for whoever asks when Ceph is the last that can be asked.
//!
//! A look at ten thousand copies is a few statements: what is known of them is read at once, and written a chunk
//! at a time. The column that Cinder has for people (`replication_extended_status`) is shared with the failover's
//! advice: what is written here begins with [`DEGRADED`], and only such a text, or none, is ever replaced.

use std::collections::HashMap;
use std::time::Duration;

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Datetime, Integer, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::schema::{volume_type_extra_specs, volumes};
use super::volume::{CHUNK, to_map};
use super::{Conn, fitting, scope_condition};
use crate::error::Result;
use crate::model::{ReplicationStatus, Scope};

/// What our texts in `replication_extended_status` begin with.
pub const DEGRADED: &str = "degraded: ";

/// The extra spec of a type that says how old its copies may be.
pub const RPO: &str = "replication:rpo_seconds";

/// A mirrored volume, or one that still bears a text of ours.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
#[allow(missing_docs)]
pub struct Watched {
    #[diesel(sql_type = Text)]
    pub id: String,
    /// Names the image.
    #[diesel(sql_type = Text)]
    pub name_id: String,
    #[diesel(sql_type = Text)]
    pub status: String,
    #[diesel(sql_type = Text)]
    pub replication_status: String,
    #[diesel(sql_type = Nullable<Text>)]
    pub extended_status: Option<String>,
    #[diesel(sql_type = Text)]
    pub volume_type_id: String,
    /// Served from there, and not from the active site.
    #[diesel(sql_type = Nullable<Text>)]
    pub stray: Option<String>,
}

impl Watched {
    /// Whether its image is mirrored (invariant 4 of the design).
    pub fn is_mirrored(&self) -> bool {
        ReplicationStatus::parse(&self.replication_status).is_some_and(ReplicationStatus::means_mirrored)
    }

    /// Whether a text of ours has a place in its row: not where a failover has left its advice.
    pub fn may_be_told(&self) -> bool {
        self.replication_status != ReplicationStatus::FailoverError.as_str()
            && self.extended_status.as_deref().is_none_or(|text| text.starts_with(DEGRADED))
    }
}

/// The mirrored volumes of a backend.
///
/// # Errors
/// `Database`.
pub async fn watched(conn: &mut Conn, scope: &Scope) -> Result<Vec<Watched>> {
    let (condition, binds) = scope_condition("v", scope);
    let mut query = diesel::sql_query(format!(
        "SELECT v.id, COALESCE(v._name_id, v.id) AS name_id, COALESCE(v.status, '') AS status, \
         COALESCE(v.replication_status, '') AS replication_status, \
         v.replication_extended_status AS extended_status, v.volume_type_id, t.site AS stray \
         FROM volumes v LEFT JOIN scoria_strays t ON t.volume_id = v.id \
         WHERE v.deleted = 0 AND {condition} AND (v.replication_status IN ('enabled', 'failed-over', 'failover-error') \
         OR v.replication_extended_status LIKE '{DEGRADED}%') ORDER BY v.id"
    ))
    .into_boxed::<Mysql>();
    for bind in binds {
        query = query.bind::<Text, _>(bind);
    }
    Ok(query.load(conn).await?)
}

/// [`RPO`] as it is written, by volume type.
///
/// # Errors
/// `Database`.
pub async fn objectives(conn: &mut Conn) -> Result<HashMap<String, String>> {
    let rows: Vec<(Option<String>, Option<String>)> = volume_type_extra_specs::table
        .filter(volume_type_extra_specs::key.eq(RPO))
        .filter(volume_type_extra_specs::deleted.eq(false))
        .select((volume_type_extra_specs::volume_type_id.nullable(), volume_type_extra_specs::value))
        .load(conn)
        .await?;
    Ok(to_map(rows).into_iter().collect())
}

/// What is known of one copy.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
#[allow(missing_docs)]
pub struct Lag {
    #[diesel(sql_type = Text)]
    pub volume_id: String,
    /// Where the copy is.
    #[diesel(sql_type = Text)]
    pub site: String,
    /// `journal`, `snapshot`.
    #[diesel(sql_type = Nullable<Text>)]
    pub mode: Option<String>,
    /// rbd-mirror's word (`replaying`, `syncing`, `error` …), or `down`, `missing`, `not-mirrored`, `unknown`.
    #[diesel(sql_type = Text)]
    pub state: String,
    /// What the daemon says.
    #[diesel(sql_type = Nullable<Text>)]
    pub message: Option<String>,
    /// The copy has all that was written until then.
    #[diesel(sql_type = Nullable<Datetime>)]
    pub last_sync: Option<NaiveDateTime>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub lag_seconds: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub entries_behind: Option<i64>,
    /// An estimate, from the daemon's figures.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub bytes_behind: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub bytes_per_second: Option<i64>,
    #[diesel(sql_type = Nullable<Integer>)]
    pub percent: Option<i32>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub rpo_seconds: Option<i64>,
    /// Older than that.
    #[diesel(sql_type = Bool)]
    pub breached: bool,
    /// What is wrong with the copy.
    #[diesel(sql_type = Nullable<Text>)]
    pub fault: Option<String>,
    /// The same, seen once.
    #[diesel(sql_type = Nullable<Text>)]
    pub suspected: Option<String>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub mark_tag: Option<i64>,
    #[diesel(sql_type = Nullable<BigInt>)]
    pub mark_entry: Option<i64>,
    #[diesel(sql_type = Nullable<Datetime>)]
    pub mark_at: Option<NaiveDateTime>,
    #[diesel(sql_type = Nullable<Datetime>)]
    pub reported_at: Option<NaiveDateTime>,
    #[diesel(sql_type = Datetime)]
    pub watched_since: NaiveDateTime,
    #[diesel(sql_type = Datetime)]
    pub polled_at: NaiveDateTime,
}

impl Lag {
    /// Whether the copy is not what it should be.
    pub fn is_degraded(&self) -> bool {
        self.breached || self.fault.is_some()
    }
}

/// Columns of [`Lag`], the key first.
const COLUMNS: &str = "volume_id, site, mode, state, message, last_sync, lag_seconds, entries_behind, bytes_behind, \
                       bytes_per_second, percent, rpo_seconds, breached, fault, suspected, mark_tag, mark_entry, \
                       mark_at, reported_at, watched_since, polled_at";
/// Copies written by one statement: below the 65,535 parameters that a statement may have.
const ROWS: usize = 500;

/// The copies of a backend's volumes, in the order of volumes and sites.
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn, scope: &Scope) -> Result<Vec<Lag>> {
    let query =
        format!("SELECT {COLUMNS} FROM scoria_replication_lag WHERE backend = ? ORDER BY volume_id, site");
    Ok(diesel::sql_query(query).bind::<Text, _>(name(scope)).load(conn).await?)
}

/// How many of a backend's volumes have a copy that is not what it should be.
///
/// # Errors
/// `Database`.
pub async fn count_degraded(conn: &mut Conn, scope: &Scope) -> Result<i64> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = BigInt)]
        count: i64,
    }
    let query = "SELECT COUNT(DISTINCT volume_id) AS count FROM scoria_replication_lag \
                 WHERE backend = ? AND (breached = 1 OR fault IS NOT NULL)";
    Ok(diesel::sql_query(query).bind::<Text, _>(name(scope)).get_result::<Row>(conn).await?.count)
}

/// Writes what was learned; one statement for `ROWS` copies.
///
/// # Errors
/// `Database`.
pub async fn write(conn: &mut Conn, scope: &Scope, rows: &[Lag]) -> Result<()> {
    let columns: Vec<&str> = COLUMNS.split(", ").collect();
    let marks = format!("({})", vec!["?"; columns.len() + 1].join(", "));
    let new: Vec<String> =
        columns.iter().skip(2).chain([&"backend"]).map(|c| format!("{c} = VALUES({c})")).collect();
    for chunk in rows.chunks(ROWS) {
        let values = vec![marks.as_str(); chunk.len()].join(", ");
        let mut query = diesel::sql_query(format!(
            "INSERT INTO scoria_replication_lag ({COLUMNS}, backend) VALUES {values} ON DUPLICATE KEY UPDATE {}",
            new.join(", ")
        ))
        .into_boxed::<Mysql>();
        for row in chunk {
            query = query
                .bind::<Text, _>(&row.volume_id)
                .bind::<Text, _>(&row.site)
                .bind::<Nullable<Text>, _>(&row.mode)
                .bind::<Text, _>(fitting(&row.state, 32))
                .bind::<Nullable<Text>, _>(row.message.as_deref().map(|text| fitting(text, 255)))
                .bind::<Nullable<Datetime>, _>(row.last_sync)
                .bind::<Nullable<BigInt>, _>(row.lag_seconds)
                .bind::<Nullable<BigInt>, _>(row.entries_behind)
                .bind::<Nullable<BigInt>, _>(row.bytes_behind)
                .bind::<Nullable<BigInt>, _>(row.bytes_per_second)
                .bind::<Nullable<Integer>, _>(row.percent)
                .bind::<Nullable<BigInt>, _>(row.rpo_seconds)
                .bind::<Bool, _>(row.breached)
                .bind::<Nullable<Text>, _>(&row.fault)
                .bind::<Nullable<Text>, _>(&row.suspected)
                .bind::<Nullable<BigInt>, _>(row.mark_tag)
                .bind::<Nullable<BigInt>, _>(row.mark_entry)
                .bind::<Nullable<Datetime>, _>(row.mark_at)
                .bind::<Nullable<Datetime>, _>(row.reported_at)
                .bind::<Datetime, _>(row.watched_since)
                .bind::<Datetime, _>(row.polled_at)
                .bind::<Text, _>(name(scope));
        }
        query.execute(conn).await?;
    }
    Ok(())
}

/// Removes copies that the look at `polled_at` has not found: volumes that are gone, not mirrored any more, or
/// served from where the copy was.
///
/// # Errors
/// `Database`.
pub async fn forget_older(conn: &mut Conn, scope: &Scope, polled_at: NaiveDateTime) -> Result<()> {
    diesel::sql_query("DELETE FROM scoria_replication_lag WHERE backend = ? AND polled_at < ?")
        .bind::<Text, _>(name(scope))
        .bind::<Datetime, _>(polled_at)
        .execute(conn)
        .await?;
    Ok(())
}

/// Writes `text`, which begins with [`DEGRADED`], into the rows of these volumes, or takes such a text out of them.
/// A volume that a failover has written its advice into meanwhile, or that is not mirrored any more (for a text),
/// is left alone. Returns how many rows have it.
///
/// # Errors
/// `Database`.
pub async fn tell(conn: &mut Conn, ids: &[String], text: Option<&str>) -> Result<usize> {
    let text = text.map(|t| fitting(t, 255));
    let mut told = 0;
    for chunk in ids.chunks(CHUNK) {
        let mut update = diesel::update(volumes::table)
            .filter(volumes::id.eq_any(chunk))
            .filter(volumes::deleted.eq(false))
            .filter(
                volumes::replication_extended_status
                    .is_null()
                    .or(volumes::replication_extended_status.like(format!("{DEGRADED}%"))),
            )
            .into_boxed();
        if text.is_some() {
            let mirrored = [ReplicationStatus::Enabled.as_str(), ReplicationStatus::FailedOver.as_str()];
            update = update.filter(volumes::replication_status.eq_any(mirrored));
        }
        told += update.set(volumes::replication_extended_status.eq(&text)).execute(conn).await?;
    }
    Ok(told)
}

// ---- who looks, and what the sites answered -------------------------------------------------------

/// True when nobody has looked at the copies of `scope` for `period`: then it is the caller's turn. Members of a
/// Cinder cluster share the turns.
///
/// # Errors
/// `Database`.
pub async fn take_turn(conn: &mut Conn, scope: &Scope, period: Duration) -> Result<bool> {
    diesel::sql_query(
        "INSERT IGNORE INTO scoria_replication_polls (backend, site, polled_at) VALUES (?, '', '2000-01-01')",
    )
    .bind::<Text, _>(name(scope))
    .execute(conn)
    .await?;
    let taken = diesel::sql_query(
        "UPDATE scoria_replication_polls SET polled_at = UTC_TIMESTAMP(6) \
         WHERE backend = ? AND site = '' AND polled_at <= UTC_TIMESTAMP(6) - INTERVAL ? MICROSECOND",
    )
    .bind::<Text, _>(name(scope))
    .bind::<BigInt, _>(i64::try_from(period.as_micros()).unwrap_or(i64::MAX))
    .execute(conn)
    .await?;
    Ok(taken > 0)
}

/// What a site answered when it was last asked.
#[derive(Debug, Clone, PartialEq, Eq, QueryableByName)]
#[allow(missing_docs)]
pub struct Asked {
    #[diesel(sql_type = Text)]
    pub site: String,
    #[diesel(sql_type = Datetime)]
    pub polled_at: NaiveDateTime,
    /// When it last answered.
    #[diesel(sql_type = Nullable<Datetime>)]
    pub answered_at: Option<NaiveDateTime>,
    /// Why it did not, the last time.
    #[diesel(sql_type = Nullable<Text>)]
    pub problem: Option<String>,
}

/// Records what a site answered at `at`.
///
/// # Errors
/// `Database`.
pub async fn record_site(
    conn: &mut Conn,
    scope: &Scope,
    site: &str,
    at: NaiveDateTime,
    problem: Option<&str>,
) -> Result<()> {
    diesel::sql_query(
        "INSERT INTO scoria_replication_polls (backend, site, polled_at, answered_at, problem) VALUES (?, ?, ?, ?, ?) \
         ON DUPLICATE KEY UPDATE polled_at = VALUES(polled_at), \
         answered_at = COALESCE(VALUES(answered_at), answered_at), problem = VALUES(problem)",
    )
    .bind::<Text, _>(name(scope))
    .bind::<Text, _>(site)
    .bind::<Datetime, _>(at)
    .bind::<Nullable<Datetime>, _>(problem.is_none().then_some(at))
    .bind::<Nullable<Text>, _>(problem.map(|text| fitting(text, 255)))
    .execute(conn)
    .await?;
    Ok(())
}

/// What the sites of a backend answered.
///
/// # Errors
/// `Database`.
pub async fn sites(conn: &mut Conn, scope: &Scope) -> Result<Vec<Asked>> {
    Ok(diesel::sql_query(
        "SELECT site, polled_at, answered_at, problem FROM scoria_replication_polls \
         WHERE backend = ? AND site <> '' ORDER BY site",
    )
    .bind::<Text, _>(name(scope))
    .load(conn)
    .await?)
}

fn name(scope: &Scope) -> &str {
    match scope {
        Scope::Host(name) | Scope::Cluster(name) => name,
    }
}
