//! Backends for people and programs: what is wanted, what is, and where they are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::db::backend::{self as rows, BackendRow};
use crate::db::{Conn, admin, label, site};
use crate::error::{Code, Error, Result};

/// One backend of one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Its name.
    pub name: String,
    /// The host that serves it.
    pub host: String,
    /// `[LABEL!]host@name`.
    pub service: String,
    /// `file` (of backends.d) or `main` (the service's own files).
    pub origin: String,
    /// That file.
    pub path: String,
    /// `new`, `on` or `off`.
    pub wanted: String,
    /// `creating`, `new`, `running`, `stopped`, `failed`, `deleting`.
    pub state: String,
    /// The operation that has it in hand.
    pub operation: Option<i64>,
    /// What is wrong.
    pub problem: Option<String>,
    /// Its Ceph cluster by name, or by fsid.
    pub site: Option<String>,
    /// Its pool.
    pub pool: String,
    /// Cinder cluster.
    pub cluster: Option<String>,
    /// Its mark.
    pub label: Option<String>,
    /// The mark's name.
    pub label_name: Option<String>,
    /// From the service's row.
    pub availability_zone: Option<String>,
    /// New volumes are not placed there.
    pub disabled: Option<bool>,
    /// Why not.
    pub disabled_reason: Option<String>,
    /// Seconds since the last heartbeat.
    pub heartbeat_age_seconds: Option<i64>,
    /// Hosts that share it in a Cinder cluster and have other options, with their names.
    pub differing: BTreeMap<String, Vec<String>>,
}

/// All backends, or those of a host.
///
/// # Errors
/// `Database`.
pub async fn all(conn: &mut Conn, host: Option<&str>) -> Result<Vec<View>> {
    let every = rows::list(conn, None).await?;
    let services: BTreeMap<String, _> =
        admin::volume_services(conn).await?.into_iter().map(|s| (s.host.clone(), s)).collect();
    let sites: BTreeMap<String, String> =
        site::list(conn).await?.into_iter().map(|s| (s.fsid, s.name)).collect();
    let labels: BTreeMap<String, String> =
        label::list(conn).await?.into_iter().map(|l| (l.id, l.name)).collect();
    let now = crate::db::now();
    let of = every.iter().filter(|row| host.is_none_or(|host| row.host == host));
    Ok(of
        .map(|row| {
            let service = services.get(&row.service);
            View {
                name: row.name.clone(),
                host: row.host.clone(),
                service: row.service.clone(),
                origin: row.origin.clone(),
                path: row.path.clone(),
                wanted: row.wanted.clone(),
                state: row.state.clone(),
                operation: row.operation_id,
                problem: row.problem.clone(),
                site: row.fsid.as_ref().map(|fsid| sites.get(fsid).unwrap_or(fsid).clone()),
                pool: row.pool.clone(),
                cluster: row.cluster.clone(),
                label: row.label.clone(),
                label_name: row.label.as_ref().and_then(|id| labels.get(id)).cloned(),
                availability_zone: service.and_then(|s| s.availability_zone.clone()),
                disabled: service.map(|s| s.disabled),
                disabled_reason: service.and_then(|s| s.disabled_reason.clone()).filter(|r| !r.is_empty()),
                heartbeat_age_seconds: service.and_then(|s| s.updated_at).map(|at| (now - at).num_seconds()),
                differing: differing(row, &every),
            }
        })
        .collect())
}

fn differing(row: &BackendRow, every: &[BackendRow]) -> BTreeMap<String, Vec<String>> {
    type Hashes = BTreeMap<String, String>;
    let read = |row: &BackendRow| serde_json::from_str::<Hashes>(&row.fingerprints).unwrap_or_default();
    let shared =
        |other: &&BackendRow| other.host != row.host && row.cluster.is_some() && other.cluster == row.cluster;
    let ours = read(row);
    every
        .iter()
        .filter(shared)
        .filter_map(|other| {
            let theirs = read(other);
            let keys: Vec<String> = ours
                .iter()
                .filter(|(key, hash)| theirs.get(*key).is_some_and(|o| o != *hash))
                .map(|(key, _)| key.clone())
                .collect();
            (!keys.is_empty()).then(|| (other.host.clone(), keys))
        })
        .collect()
}

/// One backend, by name or by service host.
///
/// # Errors
/// `InvalidInput` when there is none, or several hosts have one of that name and none is said; `Database`.
pub async fn one(conn: &mut Conn, host: Option<&str>, name: &str) -> Result<View> {
    let all = all(conn, host).await?;
    let found: Vec<&View> = all.iter().filter(|view| view.name == name || view.service == name).collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        [] => {
            let names: Vec<&str> = all.iter().map(|view| view.service.as_str()).collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            Err(Error::new(
                Code::InvalidInput,
                format!("There is no backend {name}; the backends are: {known}"),
            ))
        }
        several => {
            let names: Vec<&str> = several.iter().map(|view| view.service.as_str()).collect();
            Err(Error::new(
                Code::InvalidInput,
                format!("Several hosts have a backend {name}: name one of {}", names.join(", ")),
            ))
        }
    }
}
