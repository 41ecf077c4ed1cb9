//! `replication affected`: whose servers have volumes attached that have moved.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use super::super::output::table;
use super::super::target::Target;
use super::super::{Context, Report};
use super::ask::ask;
use super::{Affected as Arguments, order};
use crate::db;
use crate::db::volume::{VolumeFilter, get_many, list};
use crate::error::{Code, Error, Result};
use crate::model::{Attachment, ReplicationStatus, Volume};
use crate::replication::foresight::Inquiry;
use crate::replication::foresight::affected::{Asked, Monitors};
use crate::replication::orders::{self, Order};

/// One attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Line {
    volume: String,
    name: Option<String>,
    attachment: String,
    server: Option<String>,
    host: Option<String>,
    mode: Option<String>,
    device: Option<String>,
    attach_status: Option<String>,
    /// Site that serves the volume.
    served_from: String,
    /// What the stored connection information names: a site, `unknown` monitors, or nothing.
    connection_info: Option<String>,
    /// It names another site than the one that serves the volume; `None`: not known.
    stale: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct View {
    backend: String,
    active_site: String,
    /// Why it is not known what the stored connection information names.
    unknown: Option<String>,
    attachments: Vec<Line>,
}

pub(super) async fn run(context: &Context, arguments: Arguments) -> Result<Report> {
    let target = Target::find(context, &arguments.backend).await?;
    let scope = &target.scope;
    let moved = match arguments.operation {
        Some(id) => Some(moved_by(context, id).await?),
        None => None,
    };
    let (volumes, strays, attachments) = context
        .db
        .read("affected volumes", async |conn| {
            let volumes = match &moved {
                Some(ids) => get_many(conn, ids).await?,
                None => list(conn, scope, &away()).await?,
            };
            let ids: Vec<String> = volumes.iter().map(|v| v.id.clone()).collect();
            let strays: HashMap<String, String> = db::stray::list(conn, &ids).await?.into_iter().collect();
            let attachments = db::attachment::list_for_volumes(conn, &ids).await?;
            Ok((volumes, strays, attachments))
        })
        .await?;
    if arguments.refresh {
        let ids: Vec<String> =
            volumes.iter().filter(|v| attachments.contains_key(&v.id)).map(|v| v.id.clone()).collect();
        if ids.is_empty() {
            return Report::new(
                "No server has one of these volumes attached; nothing to refresh.",
                &Vec::<Line>::new(),
            );
        }
        let refresh = orders::Refresh { volumes: Some(ids) };
        return order(context, &target, Order::Refresh(refresh), !arguments.no_wait).await;
    }
    let asked: Result<BTreeMap<String, Asked>> = match attachments.is_empty() {
        true => Ok(BTreeMap::new()),
        false => ask(context, &target, Inquiry::Monitors {}, arguments.timeout.within()).await,
    };
    // Who is affected is worth knowing also while nobody can say what is written down of him.
    let (sites, unknown) = match asked {
        Ok(sites) => (sites, None),
        Err(error) if error.code() == Code::Cancelled => return Err(error),
        Err(error) => (BTreeMap::new(), Some(error.user().to_owned())),
    };
    let view = View {
        backend: target.name().to_owned(),
        active_site: target.active_site(),
        unknown,
        attachments: lines(volumes, &strays, attachments, &target.active_site(), &sites),
    };
    Report::new(render(&view), &view)
}

/// Volumes that are not where they are at home.
fn away() -> VolumeFilter {
    let statuses = [ReplicationStatus::FailedOver, ReplicationStatus::FailoverError];
    VolumeFilter {
        replication_statuses: statuses.map(|s| s.as_str().to_owned()).to_vec(),
        ..VolumeFilter::default()
    }
}

/// Volumes that an operation has moved.
async fn moved_by(context: &Context, id: i64) -> Result<Vec<String>> {
    if context.journal.find(id).await?.is_none() {
        return Err(Error::new(
            Code::InvalidInput,
            format!("There is no operation {id}, or it has been purged"),
        ));
    }
    let items = context.journal.items_of(id).await?;
    let moved = items.iter().filter(|i| !i.step.resource_id.is_empty() && i.name() == "moved");
    let ids: HashSet<String> = moved.map(|i| i.step.resource_id.clone()).collect();
    Ok(ids.into_iter().collect())
}

fn lines(
    mut volumes: Vec<Volume>,
    strays: &HashMap<String, String>,
    mut attachments: HashMap<String, Vec<Attachment>>,
    active: &str,
    sites: &BTreeMap<String, Asked>,
) -> Vec<Line> {
    volumes.sort_by(|a, b| a.id.cmp(&b.id));
    let mut lines = Vec::new();
    for volume in volumes {
        let served = strays.get(&volume.id).map_or(active, String::as_str);
        for attachment in attachments.remove(&volume.id).unwrap_or_default() {
            let (names, stale) = named(&attachment, served, sites);
            lines.push(Line {
                volume: volume.id.clone(),
                name: volume.display_name.clone(),
                attachment: attachment.id,
                server: attachment.instance_uuid,
                host: attachment.attached_host,
                mode: attachment.attach_mode.filter(|m| m != "null"),
                device: attachment.mountpoint,
                attach_status: attachment.attach_status,
                served_from: served.to_owned(),
                connection_info: names,
                stale,
            });
        }
    }
    lines
}

/// What the stored connection information names, and whether that is not the site that serves the volume.
fn named(
    attachment: &Attachment,
    served: &str,
    sites: &BTreeMap<String, Asked>,
) -> (Option<String>, Option<bool>) {
    let info = attachment.connection_info.as_ref();
    let names = |monitors: &Monitors| monitors.are_in(info);
    let mut known = sites.iter().filter_map(|(name, asked)| Some((name, asked.monitors.as_ref()?)));
    let Some(right) = sites.get(served).and_then(|asked| asked.monitors.as_ref()) else {
        return (None, None);
    };
    match names(right) {
        None => (None, None),
        Some(true) => (Some(served.to_owned()), Some(false)),
        Some(false) => {
            let other = known.find(|(_, monitors)| names(monitors) == Some(true));
            (Some(other.map_or_else(|| "unknown".to_owned(), |(name, _)| name.clone())), Some(true))
        }
    }
}

fn render(view: &View) -> String {
    if view.attachments.is_empty() {
        return format!("No server has a volume attached that has moved (backend {}).", view.backend);
    }
    let rows = view.attachments.iter().map(|l| {
        [
            l.volume.clone(),
            l.server.clone().unwrap_or_default(),
            l.host.clone().unwrap_or_default(),
            l.mode.clone().unwrap_or_default(),
            l.device.clone().unwrap_or_default(),
            l.served_from.clone(),
            match (&l.connection_info, l.stale) {
                (Some(site), Some(true)) => format!("{site} (stale)"),
                (Some(site), _) => site.clone(),
                (None, _) => "?".to_owned(),
            },
        ]
    });
    let mut text =
        table(["Volume", "Server", "Host", "Mode", "Device", "Served from", "Connection info names"], rows);
    let stale = view.attachments.iter().filter(|l| l.stale == Some(true)).count();
    if let Some(unknown) = &view.unknown {
        text.push_str(&format!("\nWhat the connection information names is not known: {unknown}"));
    } else if stale > 0 {
        text.push_str(&format!(
            "\n{stale} of {} name another site: scoria-manage replication affected --backend {} --refresh, then reboot the servers hard",
            view.attachments.len(),
            view.backend
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_names_the_old_site_is_stale() {
        let monitors = |host: &str| Asked {
            monitors: Some(Monitors { hosts: vec![host.into()], ports: vec!["6789".into()] }),
            error: None,
        };
        let sites = BTreeMap::from([
            ("default".to_owned(), monitors("10.0.0.1")),
            ("b".to_owned(), monitors("10.0.0.2")),
        ]);
        let volume = |n: u32| Volume { id: format!("v{n}"), ..Volume::default() };
        let attachment = |n: u32, host: Option<&str>| Attachment {
            id: format!("a{n}"),
            volume_id: format!("v{n}"),
            instance_uuid: Some(format!("s{n}")),
            attach_mode: Some("null".into()),
            connection_info: host.map(|h| json!({"hosts": [h], "ports": ["6789"]})),
            ..Attachment::default()
        };
        let list = [(1, Some("10.0.0.1")), (2, Some("10.0.0.2")), (3, Some("10.9.9.9")), (4, None)];
        let attachments =
            list.iter().map(|(n, host)| (format!("v{n}"), vec![attachment(*n, *host)])).collect();
        let strays = HashMap::from([("v1".to_owned(), "default".to_owned())]);
        let found = lines((1..=4).map(volume).collect(), &strays, attachments, "b", &sites);
        let stale: Vec<Option<bool>> = found.iter().map(|l| l.stale).collect();
        assert_eq!(stale, [Some(false), Some(false), Some(true), None]);
        assert_eq!(found[2].connection_info.as_deref(), Some("unknown"));
        assert_eq!((found[0].served_from.as_str(), found[0].mode.as_deref()), ("default", None));
        let view = View { backend: "n@c".into(), active_site: "b".into(), unknown: None, attachments: found };
        assert!(render(&view).contains("1 of 4 name another site"), "{}", render(&view));
        let blind = View { unknown: Some("no service is alive".into()), ..view };
        assert!(render(&blind).contains("no service is alive"));
    }
}
