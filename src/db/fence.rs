//! Fences: clients that are kept out of a site which volumes have left.
//!
//! What is wanted must survive a site that is dead for days, and what was laid must be found again when it is to
//! be taken away: the blocklist of a cluster does not say why an entry is there. A row without an address is wanted,
//! one with an address is laid; both are one for each volume, so that a volume can be unfenced by itself.

use chrono::NaiveDateTime;
use diesel::mysql::Mysql;
use diesel::query_builder::{BoxedSqlQuery, SqlQuery};
use diesel::sql_types::{Datetime, Integer, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::Conn;
use crate::error::Result;

/// Volumes in one statement.
const CHUNK: usize = 500;

/// One row.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName, serde::Serialize)]
#[allow(missing_docs)]
pub struct Fence {
    #[diesel(sql_type = Text)]
    pub site: String,
    #[diesel(sql_type = Text)]
    pub volume_id: String,
    /// Empty: wanted, not laid yet.
    #[diesel(sql_type = Text)]
    pub address: String,
    #[diesel(sql_type = Text)]
    pub state: String,
    #[diesel(sql_type = Integer)]
    #[serde(skip)]
    pub seconds: i32,
    /// As the cluster says it.
    #[diesel(sql_type = Nullable<Text>)]
    pub expires: Option<String>,
    #[diesel(sql_type = Datetime)]
    #[serde(skip)]
    pub recorded_at: NaiveDateTime,
}

impl Fence {
    /// To be laid as soon as the site answers.
    pub fn is_wanted(&self) -> bool {
        self.state == "wanted"
    }

    /// In the cluster's blocklist.
    pub fn is_laid(&self) -> bool {
        self.state == "laid"
    }
}

type Query<'a> = BoxedSqlQuery<'a, Mysql, SqlQuery>;

fn marks(count: usize, one: &str) -> String {
    vec![one; count].join(",")
}

/// `text` with `{ids}` for the ids, which are bound after the other values.
fn over<'a>(text: &str, first: &[&'a str], ids: &'a [String]) -> Query<'a> {
    let mut query = diesel::sql_query(text.replace("{ids}", &marks(ids.len(), "?"))).into_boxed::<Mysql>();
    for value in first {
        query = query.bind::<Text, _>(*value);
    }
    for id in ids {
        query = query.bind::<Text, _>(id);
    }
    query
}

/// All rows of a backend, `host@backend` or `cluster@backend`.
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn, backend: &str) -> Result<Vec<Fence>> {
    Ok(diesel::sql_query(
        "SELECT site, volume_id, address, state, seconds, expires, recorded_at FROM scoria_fences \
         WHERE backend = ? ORDER BY site, address, volume_id",
    )
    .bind::<Text, _>(backend)
    .load(conn)
    .await?)
}

/// Wants the clients of volumes fenced on `site`; `noted`: once the failover that is forcing them away is over.
///
/// # Errors
/// `Database`.
pub async fn want(
    conn: &mut Conn,
    backend: &str,
    site: &str,
    ids: &[String],
    seconds: u32,
    noted: bool,
) -> Result<()> {
    let state = if noted { "noted" } else { "wanted" };
    let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
    for chunk in ids.chunks(CHUNK) {
        let one = "(?, ?, ?, '', ?, ?, UTC_TIMESTAMP(6))";
        let mut query = diesel::sql_query(format!(
            "INSERT INTO scoria_fences (backend, site, volume_id, address, state, seconds, recorded_at) VALUES {} \
             ON DUPLICATE KEY UPDATE state = VALUES(state), seconds = VALUES(seconds), answered_at = NULL",
            marks(chunk.len(), one)
        ))
        .into_boxed::<Mysql>();
        for id in chunk {
            query = query
                .bind::<Text, _>(backend)
                .bind::<Text, _>(site)
                .bind::<Text, _>(id)
                .bind::<Text, _>(state)
                .bind::<Integer, _>(seconds);
        }
        query.execute(conn).await?;
    }
    Ok(())
}

/// A failover is over: what it has noted is wanted for the volumes that it has moved, and forgotten for the others,
/// which their clients may still use.
///
/// # Errors
/// `Database`.
pub async fn settle(conn: &mut Conn, backend: &str, moved: &[String], left: &[String]) -> Result<()> {
    for chunk in moved.chunks(CHUNK) {
        let text = "UPDATE scoria_fences SET state = 'wanted' WHERE backend = ? AND state = 'noted' AND volume_id IN ({ids})";
        over(text, &[backend], chunk).execute(conn).await?;
    }
    for chunk in left.chunks(CHUNK) {
        let text = "DELETE FROM scoria_fences WHERE backend = ? AND state = 'noted' AND volume_id IN ({ids})";
        over(text, &[backend], chunk).execute(conn).await?;
    }
    Ok(())
}

/// Writes down whom the fence is laid against, before it is: (volume, address).
///
/// # Errors
/// `Database`.
pub async fn laid(
    conn: &mut Conn,
    backend: &str,
    site: &str,
    clients: &[(String, String)],
    seconds: i32,
) -> Result<()> {
    for chunk in clients.chunks(CHUNK) {
        let one = "(?, ?, ?, ?, 'laid', ?, UTC_TIMESTAMP(6))";
        let mut query = diesel::sql_query(format!(
            "INSERT INTO scoria_fences (backend, site, volume_id, address, state, seconds, recorded_at) VALUES {} \
             ON DUPLICATE KEY UPDATE seconds = VALUES(seconds)",
            marks(chunk.len(), one)
        ))
        .into_boxed::<Mysql>();
        for (volume, address) in chunk {
            query = query
                .bind::<Text, _>(backend)
                .bind::<Text, _>(site)
                .bind::<Text, _>(volume)
                .bind::<Text, _>(address)
                .bind::<Integer, _>(seconds);
        }
        query.execute(conn).await?;
    }
    Ok(())
}

/// The site has answered: what is wanted of these volumes is looked at for `seconds` more, since clients come back
/// one by one, and then it is done.
///
/// # Errors
/// `Database`.
pub async fn answered(
    conn: &mut Conn,
    backend: &str,
    site: &str,
    ids: &[String],
    seconds: u32,
) -> Result<()> {
    for chunk in ids.chunks(CHUNK) {
        let text = "UPDATE scoria_fences SET answered_at = COALESCE(answered_at, UTC_TIMESTAMP(6)) \
                    WHERE backend = ? AND site = ? AND state = 'wanted' AND volume_id IN ({ids})";
        over(text, &[backend, site], chunk).execute(conn).await?;
        let text = format!(
            "DELETE FROM scoria_fences WHERE backend = ? AND site = ? AND state = 'wanted' AND volume_id IN ({{ids}}) \
             AND answered_at <= UTC_TIMESTAMP(6) - INTERVAL {seconds} SECOND"
        );
        over(&text, &[backend, site], chunk).execute(conn).await?;
    }
    Ok(())
}

/// What the cluster says of entries: until when those are there that are `held`, (address, until), and which are gone.
///
/// # Errors
/// `Database`.
pub async fn seen(
    conn: &mut Conn,
    backend: &str,
    site: &str,
    held: &[(String, String)],
    gone: &[String],
) -> Result<()> {
    for chunk in held.chunks(CHUNK) {
        let cases = vec!["WHEN ? THEN ?"; chunk.len()].join(" ");
        let mut query = diesel::sql_query(format!(
            "UPDATE scoria_fences SET expires = CASE address {cases} ELSE expires END \
             WHERE backend = ? AND site = ? AND state = 'laid' AND address IN ({})",
            marks(chunk.len(), "?")
        ))
        .into_boxed::<Mysql>();
        for (address, until) in chunk {
            query = query.bind::<Text, _>(address).bind::<Text, _>(until);
        }
        query = query.bind::<Text, _>(backend).bind::<Text, _>(site);
        for (address, _) in chunk {
            query = query.bind::<Text, _>(address);
        }
        query.execute(conn).await?;
    }
    for chunk in gone.chunks(CHUNK) {
        let text = "DELETE FROM scoria_fences WHERE backend = ? AND site = ? AND state = 'laid' AND address IN ({ids})";
        over(text, &[backend, site], chunk).execute(conn).await?;
    }
    Ok(())
}

/// Nothing is wanted or laid because of these volumes any more.
///
/// # Errors
/// `Database`.
pub async fn forget(conn: &mut Conn, backend: &str, site: &str, ids: &[String]) -> Result<()> {
    for chunk in ids.chunks(CHUNK) {
        let text = "DELETE FROM scoria_fences WHERE backend = ? AND site = ? AND volume_id IN ({ids})";
        over(text, &[backend, site], chunk).execute(conn).await?;
    }
    Ok(())
}

/// These are no longer to be laid.
///
/// # Errors
/// `Database`.
pub async fn withdraw(conn: &mut Conn, backend: &str, site: &str, ids: &[String]) -> Result<()> {
    for chunk in ids.chunks(CHUNK) {
        let text = "DELETE FROM scoria_fences WHERE backend = ? AND site = ? AND state = 'wanted' AND volume_id IN ({ids})";
        over(text, &[backend, site], chunk).execute(conn).await?;
    }
    Ok(())
}

/// Addresses of Scoria's own clients: never fenced.
///
/// # Errors
/// `Database`.
pub async fn own_clients(conn: &mut Conn, fsid: &str) -> Result<Vec<String>> {
    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        address: String,
    }
    let rows: Vec<Row> = diesel::sql_query("SELECT address FROM scoria_rbd_clients WHERE site_fsid = ?")
        .bind::<Text, _>(fsid)
        .load(conn)
        .await?;
    Ok(rows.into_iter().map(|r| r.address).collect())
}
