//! Sites: the Ceph clusters that Scoria knows, and by which files each host reaches them.
//!
//! A cluster is its fsid: two configuration files that lead to the same one are the same site, whatever they are
//! called. Names are the operator's, and unique too.

use chrono::NaiveDateTime;
use diesel::sql_types::{Bool, Datetime, Nullable, Text};
use diesel_async::RunQueryDsl;

use super::Conn;
use super::error::is_duplicate;
use crate::error::{Code, Error, Result};

/// A site, as its row has it.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct SiteRow {
    /// The cluster.
    #[diesel(sql_type = Text)]
    pub fsid: String,
    /// The operator's word for it.
    #[diesel(sql_type = Text)]
    pub name: String,
    /// `registered` by an operator, or `found` where the conf of a backend leads.
    #[diesel(sql_type = Text)]
    pub origin: String,
    /// One monitor a line, as `mon_host` names them.
    #[diesel(sql_type = Text)]
    pub monitors: String,
    /// Oldest release among its daemons.
    #[diesel(sql_type = Text)]
    pub version: String,
    /// `HEALTH_OK` …
    #[diesel(sql_type = Text)]
    pub health: String,
    /// Everything else that was seen, JSON.
    #[diesel(sql_type = Text)]
    pub report: String,
    /// When it last answered.
    #[diesel(sql_type = Datetime)]
    pub seen_at: NaiveDateTime,
    /// When it became known.
    #[diesel(sql_type = Datetime)]
    pub created_at: NaiveDateTime,
}

/// By which files a host reaches a site.
#[derive(Debug, Clone, PartialEq, Eq, diesel::QueryableByName)]
pub struct HostRow {
    /// The cluster.
    #[diesel(sql_type = Text)]
    pub fsid: String,
    /// `[DEFAULT] host` of the service.
    #[diesel(sql_type = Text)]
    pub host: String,
    /// ceph.conf there; empty: librados searches.
    #[diesel(sql_type = Text)]
    pub conf: String,
    /// Keyring there.
    #[diesel(sql_type = Nullable<Text>)]
    pub keyring: Option<String>,
    /// cephx user without `client.`.
    #[diesel(sql_type = Nullable<Text>)]
    pub client: Option<String>,
    /// Scoria wrote the files.
    #[diesel(sql_type = Bool)]
    pub own: bool,
    /// `present` or `removing`.
    #[diesel(sql_type = Text)]
    pub state: String,
    /// What is wrong with the files.
    #[diesel(sql_type = Nullable<Text>)]
    pub problem: Option<String>,
}

/// What is seen of a site when it is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// As in [`SiteRow`].
    pub fsid: String,
    /// As in [`SiteRow`].
    pub monitors: String,
    /// As in [`SiteRow`].
    pub version: String,
    /// As in [`SiteRow`].
    pub health: String,
    /// As in [`SiteRow`].
    pub report: String,
}

const SITE: &str =
    "SELECT fsid, name, origin, monitors, version, health, report, seen_at, created_at FROM scoria_sites";
const HOST: &str = "SELECT fsid, host, conf, keyring, client, own, state, problem FROM scoria_site_hosts";

/// All sites by name.
///
/// # Errors
/// `Database`.
pub async fn list(conn: &mut Conn) -> Result<Vec<SiteRow>> {
    Ok(diesel::sql_query(format!("{SITE} ORDER BY name")).load(conn).await?)
}

/// The site of a name; of an fsid, when no site has that name.
///
/// # Errors
/// `InvalidInput` when there is none, with the names that there are; `Database`.
pub async fn find(conn: &mut Conn, name: &str) -> Result<SiteRow> {
    let sites = list(conn).await?;
    let found = sites.iter().find(|s| s.name == name).or_else(|| sites.iter().find(|s| s.fsid == name));
    found.cloned().ok_or_else(|| {
        let names: Vec<&str> = sites.iter().map(|s| s.name.as_str()).collect();
        let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Error::new(Code::InvalidInput, format!("There is no site {name}; the sites are: {known}"))
    })
}

/// The sites that have this name or this fsid, locked until the transaction ends.
///
/// # Errors
/// `Database`.
pub async fn lock(conn: &mut Conn, name: &str, fsid: &str) -> Result<Vec<SiteRow>> {
    Ok(diesel::sql_query(format!("{SITE} WHERE name = ? OR fsid = ? FOR UPDATE"))
        .bind::<Text, _>(name)
        .bind::<Text, _>(fsid)
        .load(conn)
        .await?)
}

/// A new site; false when its cluster or its name is known.
async fn insert(conn: &mut Conn, name: &str, origin: &str, seen: &Seen) -> Result<bool> {
    let written = diesel::sql_query(
        "INSERT INTO scoria_sites \
         (fsid, name, origin, monitors, version, health, report, seen_at, created_at, updated_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6), UTC_TIMESTAMP(6), UTC_TIMESTAMP(6))",
    )
    .bind::<Text, _>(&seen.fsid)
    .bind::<Text, _>(name)
    .bind::<Text, _>(origin)
    .bind::<Text, _>(&seen.monitors)
    .bind::<Text, _>(&seen.version)
    .bind::<Text, _>(&seen.health)
    .bind::<Text, _>(&seen.report)
    .execute(conn)
    .await;
    match written {
        Ok(_) => Ok(true),
        Err(e) if is_duplicate(&e) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Makes a site known under a name that an operator has chosen (`registered`), or that was `found`.
///
/// # Errors
/// `Conflict` when another cluster has the name; `Database`.
pub async fn put(conn: &mut Conn, name: &str, origin: &str, seen: &Seen) -> Result<()> {
    if insert(conn, name, origin, seen).await? {
        return Ok(());
    }
    // A locking read sees what was committed a moment ago, a plain one would not.
    if !lock(conn, name, &seen.fsid).await?.iter().any(|row| row.fsid == seen.fsid) {
        return Err(taken(name));
    }
    rename(conn, &seen.fsid, name).await?;
    see(conn, seen).await
}

/// Gives a site another name: one that an operator has chosen.
///
/// # Errors
/// `Conflict` when another cluster has the name; `Database`.
pub async fn rename(conn: &mut Conn, fsid: &str, name: &str) -> Result<()> {
    let renamed = diesel::sql_query(
        "UPDATE scoria_sites SET name = ?, origin = 'registered', updated_at = UTC_TIMESTAMP(6) WHERE fsid = ?",
    )
    .bind::<Text, _>(name)
    .bind::<Text, _>(fsid)
    .execute(conn)
    .await;
    match renamed {
        Ok(_) => Ok(()),
        Err(e) if is_duplicate(&e) => Err(taken(name)),
        Err(e) => Err(e.into()),
    }
}

/// Another cluster has the name.
pub fn taken(name: &str) -> Error {
    Error::new(
        Code::Conflict,
        format!("There is a site {name} already, and it is another cluster; use another name"),
    )
}

/// Writes down what was seen of a site that is known.
///
/// # Errors
/// `Database`.
pub async fn see(conn: &mut Conn, seen: &Seen) -> Result<()> {
    diesel::sql_query(
        "UPDATE scoria_sites SET monitors = ?, version = ?, health = ?, report = ?, seen_at = UTC_TIMESTAMP(6) \
         WHERE fsid = ?",
    )
    .bind::<Text, _>(&seen.monitors)
    .bind::<Text, _>(&seen.version)
    .bind::<Text, _>(&seen.health)
    .bind::<Text, _>(&seen.report)
    .bind::<Text, _>(&seen.fsid)
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets a site. The files that Scoria wrote for it are removed by the services of their hosts; those that it did
/// not write are none of its business any more.
///
/// # Errors
/// `Database`.
pub async fn delete(conn: &mut Conn, fsid: &str) -> Result<()> {
    for text in [
        "DELETE FROM scoria_sites WHERE fsid = ?",
        "DELETE FROM scoria_site_hosts WHERE fsid = ? AND own = 0",
        "UPDATE scoria_site_hosts SET state = 'removing' WHERE fsid = ?",
    ] {
        diesel::sql_query(text).bind::<Text, _>(fsid).execute(conn).await?;
    }
    Ok(())
}

/// The files of a site, by host; those that are being removed are not among them.
///
/// # Errors
/// `Database`.
pub async fn hosts(conn: &mut Conn, fsid: &str) -> Result<Vec<HostRow>> {
    Ok(diesel::sql_query(format!("{HOST} WHERE fsid = ? AND state = 'present' ORDER BY host"))
        .bind::<Text, _>(fsid)
        .load(conn)
        .await?)
}

/// All that is known of the files on a host.
///
/// # Errors
/// `Database`.
pub async fn files_on(conn: &mut Conn, host: &str) -> Result<Vec<HostRow>> {
    Ok(diesel::sql_query(format!("{HOST} WHERE host = ? ORDER BY fsid"))
        .bind::<Text, _>(host)
        .load(conn)
        .await?)
}

/// All that is known of the files of sites, on all hosts.
///
/// # Errors
/// `Database`.
pub async fn all_files(conn: &mut Conn) -> Result<Vec<HostRow>> {
    Ok(diesel::sql_query(format!("{HOST} ORDER BY fsid, host")).load(conn).await?)
}

/// Writes down by which files a host reaches a site.
///
/// # Errors
/// `Database`.
pub async fn put_host(conn: &mut Conn, row: &HostRow) -> Result<()> {
    diesel::sql_query(
        "INSERT INTO scoria_site_hosts (fsid, host, conf, keyring, client, own, state, problem, checked_at) \
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, UTC_TIMESTAMP(6)) ON DUPLICATE KEY UPDATE conf = VALUES(conf), \
         keyring = VALUES(keyring), client = VALUES(client), own = VALUES(own), state = VALUES(state), \
         problem = VALUES(problem), checked_at = VALUES(checked_at)",
    )
    .bind::<Text, _>(&row.fsid)
    .bind::<Text, _>(&row.host)
    .bind::<Text, _>(&row.conf)
    .bind::<Nullable<Text>, _>(&row.keyring)
    .bind::<Nullable<Text>, _>(&row.client)
    .bind::<Bool, _>(row.own)
    .bind::<Text, _>(&row.state)
    .bind::<Nullable<Text>, _>(&row.problem)
    .execute(conn)
    .await?;
    Ok(())
}

/// The files of a deleted site are gone from a host. One that was registered again meanwhile keeps its row.
///
/// # Errors
/// `Database`.
pub async fn removed(conn: &mut Conn, fsid: &str, host: &str) -> Result<()> {
    diesel::sql_query("DELETE FROM scoria_site_hosts WHERE fsid = ? AND host = ? AND state = 'removing'")
        .bind::<Text, _>(fsid)
        .bind::<Text, _>(host)
        .execute(conn)
        .await?;
    Ok(())
}

/// Hosts that have a volume service, and so may need the files of a site.
///
/// # Errors
/// `Database`.
pub async fn service_hosts(conn: &mut Conn) -> Result<Vec<String>> {
    #[derive(diesel::QueryableByName)]
    struct Host {
        #[diesel(sql_type = Text)]
        host: String,
    }
    let rows: Vec<Host> = diesel::sql_query(
        "SELECT DISTINCT SUBSTRING_INDEX(host, '@', 1) AS host FROM services \
         WHERE `binary` = 'cinder-volume' AND deleted = 0 AND host IS NOT NULL ORDER BY 1",
    )
    .load(conn)
    .await?;
    Ok(rows.into_iter().map(|row| row.host).collect())
}

/// Makes a site known that a backend's conf leads to, under the first of `names` that is free. One that is known
/// keeps its name.
///
/// # Errors
/// `Internal` when no name is free, which the last, made from the fsid, prevents; `Database`.
pub async fn find_out(conn: &mut Conn, names: &[String], seen: &Seen) -> Result<Option<String>> {
    for name in names {
        // Two backends, or two services, may find the same cluster at the same time: the first gives it its name.
        if lock(conn, name, &seen.fsid).await?.iter().any(|row| row.fsid == seen.fsid) {
            see(conn, seen).await?;
            return Ok(None);
        }
        if insert(conn, name, "found", seen).await? {
            return Ok(Some(name.clone()));
        }
        if lock(conn, name, &seen.fsid).await?.iter().any(|row| row.fsid == seen.fsid) {
            return Ok(None);
        }
    }
    Err(Error::internal(format!("No name is free for the cluster {}", seen.fsid)))
}
