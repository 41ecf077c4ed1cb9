//! Links for people and programs: read from the table, so it answers when no cluster does.

use serde::Serialize;

use crate::db::Conn;
use crate::db::peer_link::{self, LinkRow};
use crate::db::site::{self, SiteRow};
use crate::error::Result;

/// A connected pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// The site that sends.
    pub a: String,
    /// The site that receives; with `rx-tx` both do both.
    pub b: String,
    /// The pool.
    pub pool: String,
    /// `rx-only` or `rx-tx`.
    pub way: String,
    /// `image` or `pool`.
    pub mode: String,
    /// `bootstrap`, `manual` or `found`.
    pub method: String,
    /// By whom the second reaches the first.
    pub client_a: Option<String>,
    /// By whom the first reaches the second.
    pub client_b: Option<String>,
    /// Where images put their data.
    pub data_pool: Option<String>,
    /// `connecting`, `connected` or `disconnecting`.
    pub state: String,
    /// What came of the canary, or what is left to do.
    pub note: Option<String>,
    /// The operation that last worked on it.
    pub operation: i64,
    /// UTC.
    pub created_at: String,
    /// UTC.
    pub updated_at: String,
}

/// All links, or those of the site of a name.
///
/// # Errors
/// `InvalidInput` when there is no such site; `Database`.
pub async fn all(conn: &mut Conn, name: Option<&str>) -> Result<Vec<Link>> {
    let fsid = match name {
        Some(name) => Some(site::find(conn, name).await?.fsid),
        None => None,
    };
    let (rows, sites) = (peer_link::list(conn, fsid.as_deref()).await?, site::list(conn).await?);
    Ok(rows.into_iter().map(|row| link(row, &sites)).collect())
}

fn link(row: LinkRow, sites: &[SiteRow]) -> Link {
    let time = |at: chrono::NaiveDateTime| at.format("%Y-%m-%d %H:%M:%S").to_string();
    let name = |fsid: String| sites.iter().find(|s| s.fsid == fsid).map_or(fsid, |s| s.name.clone());
    Link {
        a: name(row.fsid_a),
        b: name(row.fsid_b),
        pool: row.pool,
        way: row.way,
        mode: row.mode,
        method: row.method,
        client_a: row.client_a,
        client_b: row.client_b,
        data_pool: row.data_pool,
        state: row.state,
        note: row.note,
        operation: row.operation_id,
        created_at: time(row.created_at),
        updated_at: time(row.updated_at),
    }
}
