//! Servers that have volumes attached, when the volumes have moved.
//!
//! A running VM keeps the monitors that it was started with. What Cinder has stored of an attachment is what Nova asks
//! for when it starts the VM the next time: after a failover it still names the old site. Nova reads it again at a hard
//! reboot, so that rewriting it is what brings a VM over without detaching anything.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::Backend;
use crate::db;
use crate::db::volume::VolumeFilter;
use crate::error::{Code, Error, Result};
use crate::journal::{Ending, Operation, Outcome};
use crate::model::Attachment;
use crate::rbd::protocol::MonDump;
use crate::replication::candidates::strays;
use crate::volume::connection::{Monitor, monitor};
use crate::volume::crash;

/// Where a site's monitors are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Monitors {
    /// Addresses.
    pub hosts: Vec<String>,
    /// Their ports, as texts.
    pub ports: Vec<String>,
}

impl Monitors {
    /// Whether stored connection information names these. `None` when it names none at all, or is not of RBD.
    pub fn are_in(&self, connection_info: Option<&Value>) -> Option<bool> {
        let list = |key: &str| -> Option<Vec<&str>> {
            connection_info?.get(key)?.as_array()?.iter().map(Value::as_str).collect()
        };
        let (hosts, ports) = (list("hosts")?, list("ports")?);
        let mut stored: Vec<(&str, &str)> = hosts.into_iter().zip(ports).collect();
        let mut mine: Vec<(&str, &str)> =
            self.hosts.iter().map(String::as_str).zip(self.ports.iter().map(String::as_str)).collect();
        stored.sort_unstable();
        mine.sort_unstable();
        Some(stored == mine)
    }
}

/// What a site answered, or why it did not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Its monitors.
    pub monitors: Option<Monitors>,
    /// Why they are not known.
    pub error: Option<String>,
}

/// The monitors of each site.
pub(super) async fn monitors(backend: &Backend) -> BTreeMap<String, Asked> {
    let names = super::all_sites(backend);
    let asked = names.iter().map(|name| of_site(backend, name));
    let answers = futures::future::join_all(asked).await.into_iter().map(|answer| match answer {
        Ok(monitors) => Asked { monitors: Some(monitors), error: None },
        Err(error) => Asked { monitors: None, error: Some(error.user().to_owned()) },
    });
    names.into_iter().zip(answers).collect()
}

fn of_site<'a>(backend: &'a Backend, name: &'a str) -> BoxFuture<'a, Result<Monitors>> {
    Box::pin(async move {
        let dump = backend.site(name)?.call_within(backend.config.verdict_timeout, MonDump {}).await?;
        let monitors: Vec<Monitor> = dump.iter().filter_map(|address| monitor(address)).collect();
        if monitors.is_empty() {
            return Err(Error::new(Code::VolumeBackend, "Ceph lists no monitor with a legacy (v1) address"));
        }
        let (hosts, ports) = monitors.into_iter().map(|m| (m.host, m.port)).unzip();
        Ok(Monitors { hosts, ports })
    })
}

/// The keys of connection information that depend on the site, as JSON texts.
async fn keys(backend: &Backend, name: &str) -> Result<(Monitors, Vec<(&'static str, String)>)> {
    let site = backend.site(name)?;
    let monitors = of_site(backend, name).await?;
    let fsid = backend.facts(&site).await?.fsid.clone();
    let (user, secret_uuid) = backend.credentials(name, &fsid);
    let text = |value: Value| value.to_string();
    let keys = vec![
        ("hosts", text(monitors.hosts.clone().into())),
        ("ports", text(monitors.ports.clone().into())),
        ("cluster_name", text(site.connection().cluster_name.clone().into())),
        ("auth_enabled", text(user.is_some().into())),
        ("auth_username", text(user.map_or(Value::Null, Value::from))),
        ("secret_uuid", text(secret_uuid.into())),
    ];
    Ok((monitors, keys))
}

/// Rewrites the stored connection information of attachments that name another site than the one that serves their
/// volume: of all volumes of the backend, or of `only` these.
///
/// # Errors
/// What a site that serves attached volumes answered, when it could not be asked: the others are done.
pub fn refresh<'a>(
    backend: &'a Backend,
    operation: &'a Operation,
    only: Option<&'a [String]>,
) -> BoxFuture<'a, Result<()>> {
    Box::pin(async move {
        let scope = backend.scope();
        let mut volumes = backend
            .db
            .read("volumes to refresh", async |conn| {
                db::volume::list(conn, &scope, &VolumeFilter::default()).await
            })
            .await?;
        volumes.retain(|v| only.is_none_or(|ids| ids.contains(&v.id)));
        let strays = strays(backend, &volumes).await?;
        let ids: Vec<String> = volumes.into_iter().map(|v| v.id).collect();
        let attachments = backend
            .db
            .read("attachments to refresh", async |conn| db::attachment::list_for_volumes(conn, &ids).await)
            .await?;
        let active = backend.active_name();
        let mut by_site: BTreeMap<String, Vec<Attachment>> = BTreeMap::new();
        for (volume, list) in attachments {
            by_site.entry(strays.get(&volume).unwrap_or(&active).clone()).or_default().extend(list);
        }
        let (mut rewritten, mut right, mut other, mut failures) = (0, 0, 0, Vec::new());
        for (site, list) in by_site {
            match keys(backend, &site).await {
                Ok((monitors, keys)) => {
                    let mut stale = Vec::new();
                    for attachment in list {
                        match monitors.are_in(attachment.connection_info.as_ref()) {
                            Some(false) => stale.push(attachment.id),
                            Some(true) => right += 1,
                            None => other += 1,
                        }
                    }
                    crash::point("refresh:asked");
                    rewritten += operation
                        .write("connection information", async |conn| {
                            db::audit::point_attachments(conn, &stale, &keys).await
                        })
                        .await?;
                    crash::point("refresh:written");
                }
                Err(error) => {
                    failures.push(format!("{} on {site} left as they are: {}", list.len(), error.user()))
                }
            }
        }
        let mut detail = format!("{rewritten} attachments rewritten, {right} were right");
        if other > 0 {
            detail.push_str(&format!(", {other} have no connection information of RBD"));
        }
        for failure in &failures {
            detail.push_str(&format!("; {failure}"));
        }
        let ending = if failures.is_empty() { Ending::Succeeded } else { Ending::Failed };
        backend.journal.finish(operation, &Outcome { ending, detail: Some(detail), reply: None }).await
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn monitors_are_compared_as_a_set() {
        let mine = Monitors { hosts: vec!["a".into(), "b".into()], ports: vec!["1".into(), "2".into()] };
        let stored = |hosts: Value, ports: Value| json!({"hosts": hosts, "ports": ports, "name": "p/v"});
        assert_eq!(mine.are_in(Some(&stored(json!(["b", "a"]), json!(["2", "1"])))), Some(true));
        assert_eq!(mine.are_in(Some(&stored(json!(["a", "b"]), json!(["2", "1"])))), Some(false));
        assert_eq!(mine.are_in(Some(&stored(json!(["a"]), json!(["1"])))), Some(false));
        assert_eq!(mine.are_in(Some(&json!({"driver_volume_type": "iscsi"}))), None);
        assert_eq!(mine.are_in(None), None);
    }
}
