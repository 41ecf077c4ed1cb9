//! rbd-mirror daemons: by what means each runs, and whether it is to.
//!
//! What is wanted is the operator's, written by an order; what is there is written by the service that looks after the
//! daemon. Neither writes the other's columns.

use diesel::sql_types::{BigInt, Integer, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::Conn;
use crate::error::Result;

/// A daemon of a site, as one host has to do with it.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct DaemonRow {
    /// The cluster.
    #[diesel(sql_type = Text)]
    pub fsid: String,
    /// `[DEFAULT] host` of the service.
    #[diesel(sql_type = Text)]
    pub host: String,
    /// `orchestrator`, `systemd` or `child`.
    #[diesel(sql_type = Text)]
    pub means: String,
    /// cephx user without `client.`.
    #[diesel(sql_type = Text)]
    pub client: String,
    /// Orchestrator: placement; systemd: unit; child: nothing.
    #[diesel(sql_type = Text)]
    pub what: String,
    /// `running` or `stopped`.
    #[diesel(sql_type = Text)]
    pub wanted: String,
    /// The operation that has last started, restarted or stopped it.
    #[diesel(sql_type = BigInt)]
    pub generation: i64,
    /// Of a child: `starting`, `running`, `waiting`, `stopping` or `stopped`.
    #[diesel(sql_type = Text)]
    pub state: String,
    /// Of a child that runs.
    #[diesel(sql_type = Nullable<BigInt>)]
    pub pid: Option<i64>,
    /// How often it has ended by itself.
    #[diesel(sql_type = Integer)]
    pub ended: i32,
    /// The end of its log, when it has ended by itself.
    #[diesel(sql_type = Nullable<Text>)]
    pub detail: Option<String>,
}

impl DaemonRow {
    /// Whether it is to run.
    pub fn is_wanted(&self) -> bool {
        self.wanted == "running"
    }
}

const ROW: &str = "SELECT fsid, host, means, client, what, wanted, generation, state, pid, ended, detail \
                   FROM scoria_mirror_daemons";

/// The daemons of a site, by host.
///
/// # Errors
/// `Database`.
pub async fn of_site(conn: &mut Conn, fsid: &str) -> Result<Vec<DaemonRow>> {
    Ok(diesel::sql_query(format!("{ROW} WHERE fsid = ? ORDER BY host"))
        .bind::<Text, _>(fsid)
        .load(conn)
        .await?)
}

/// The daemons that a host runs as its children, wanted or not.
///
/// # Errors
/// `Database`.
pub async fn children(conn: &mut Conn, host: &str) -> Result<Vec<DaemonRow>> {
    Ok(diesel::sql_query(format!("{ROW} WHERE host = ? AND means = 'child' ORDER BY fsid"))
        .bind::<Text, _>(host)
        .load(conn)
        .await?)
}

/// Writes down what an order wants. One that runs as it is to run stays as it was seen; the count of ends begins anew.
///
/// # Errors
/// `Database`.
pub async fn want(conn: &mut Conn, row: &DaemonRow) -> Result<()> {
    diesel::sql_query(
        "INSERT INTO scoria_mirror_daemons \
         (fsid, host, means, client, what, wanted, generation, state, pid, ended, detail, changed_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, 0, NULL, UTC_TIMESTAMP(6)) ON DUPLICATE KEY UPDATE \
         means = VALUES(means), client = VALUES(client), what = VALUES(what), wanted = VALUES(wanted), \
         state = IF(generation = VALUES(generation), state, VALUES(state)), \
         pid = IF(generation = VALUES(generation), pid, NULL), \
         generation = VALUES(generation), ended = 0, detail = NULL, changed_at = VALUES(changed_at)",
    )
    .bind::<Text, _>(&row.fsid)
    .bind::<Text, _>(&row.host)
    .bind::<Text, _>(&row.means)
    .bind::<Text, _>(&row.client)
    .bind::<Text, _>(&row.what)
    .bind::<Text, _>(&row.wanted)
    .bind::<BigInt, _>(row.generation)
    .bind::<Text, _>(&row.state)
    .execute(conn)
    .await?;
    Ok(())
}

/// Writes down how a child is, unless an order has wanted something else of it meanwhile.
///
/// # Errors
/// `Database`.
pub async fn see(conn: &mut Conn, row: &DaemonRow) -> Result<()> {
    diesel::sql_query(
        "UPDATE scoria_mirror_daemons SET state = ?, pid = ?, ended = ?, detail = ?, \
         changed_at = UTC_TIMESTAMP(6) WHERE fsid = ? AND host = ? AND means = 'child' AND generation = ?",
    )
    .bind::<Text, _>(&row.state)
    .bind::<Nullable<BigInt>, _>(row.pid)
    .bind::<Integer, _>(row.ended)
    .bind::<Nullable<Text>, _>(&row.detail)
    .bind::<Text, _>(&row.fsid)
    .bind::<Text, _>(&row.host)
    .bind::<BigInt, _>(row.generation)
    .execute(conn)
    .await?;
    Ok(())
}

/// Nobody has to do with the daemon of a site any more, on any host: those that were stopped are forgotten.
///
/// # Errors
/// `Database`.
pub async fn forget(conn: &mut Conn, fsid: &str) -> Result<()> {
    diesel::sql_query("DELETE FROM scoria_mirror_daemons WHERE fsid = ? AND wanted = 'stopped'")
        .bind::<Text, _>(fsid)
        .execute(conn)
        .await?;
    Ok(())
}
