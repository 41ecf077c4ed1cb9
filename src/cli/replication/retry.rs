//! `replication retry`: once more for the volumes that a failover left behind.
//!
//! It discards nothing: the service moves a volume only when that is safe, and leaves it where it is
//! otherwise.

use serde::Serialize;

use super::super::output::{table, volumes};
use super::super::target::Target;
use super::super::{Context, Report};
use super::{Retry, ids, order, require_settled};
use crate::db::group_replication::members_of_failed;
use crate::db::volume::{VolumeFilter, get_many, list};
use crate::error::{Code, Error, Result};
use crate::model::ReplicationStatus;
use crate::replication::orders::{self, Order};

#[derive(Debug, Serialize)]
struct Preview {
    backend: String,
    active_site: String,
    volumes: Vec<String>,
}

pub(super) async fn run(context: &Context, arguments: Retry) -> Result<Report> {
    let target = Target::find(context, &arguments.backend).await?;
    if target.sites().is_some_and(|sites| sites.len() < 2) {
        return Err(Error::new(
            Code::UnableToFailOver,
            format!("Backend {} is not replicated: its section has no replication_device", target.name()),
        ));
    }
    target.host()?;
    require_settled(context, &target).await?;
    let filter = VolumeFilter {
        replication_statuses: vec![ReplicationStatus::FailoverError.as_str().to_owned()],
        ..VolumeFilter::default()
    };
    let scope = &target.scope;
    let found = context
        .db
        .read("volumes to retry", async |conn| {
            let mut found = list(conn, scope, &filter).await?;
            let mut torn = members_of_failed(conn, scope).await?;
            torn.retain(|id| !found.iter().any(|v| v.id == *id));
            found.extend(get_many(conn, &torn).await?);
            Ok(found)
        })
        .await?;
    let named = ids(&arguments.volumes);
    for id in &named {
        if !found.iter().any(|v| v.id == *id) {
            return Err(Error::new(
                Code::InvalidVolume,
                format!(
                    "Volume {id} is not a volume of backend {} in failover-error, or a member of a group in error",
                    target.name()
                ),
            ));
        }
    }
    let chosen: Vec<_> = found.iter().filter(|v| named.is_empty() || named.contains(&v.id)).collect();
    let preview = Preview {
        backend: target.name().to_owned(),
        active_site: target.active_site(),
        volumes: chosen.iter().map(|v| v.id.clone()).collect(),
    };
    let count = volumes(chosen.len());
    if chosen.is_empty() {
        return Report::new(
            format!(
                "No volume of backend {} is in failover-error, or in a group in error; nothing to retry.",
                preview.backend
            ),
            &preview,
        );
    }
    let summary = format!("{count} of backend {} to {}", preview.backend, preview.active_site);
    if arguments.dry_run {
        let rows = chosen.iter().map(|v| {
            [v.id.clone(), v.display_name.clone().unwrap_or_default(), v.size.to_string(), v.status.clone()]
        });
        let text = format!("Would move {summary}:\n{}", table(["Volume", "Name", "GiB", "Status"], rows));
        return Report::new(text, &preview);
    }
    eprintln!("Moving {summary}.");
    let retry = orders::Retry { volumes: (!named.is_empty()).then_some(named) };
    order(context, &target, Order::Retry(retry), !arguments.no_wait).await
}
