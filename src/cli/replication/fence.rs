//! `replication fence`, `fences`, `unfence`: who is kept out of a site that volumes have left.
//!
//! The service lays and lifts; the rows tell, also while it is down. Until when a fence holds is what the cluster
//! said last.

use serde::Serialize;

use super::super::output::{table, time, volumes};
use super::super::target::Target;
use super::super::{Context, Report};
use super::preview::propose;
use super::{Fence, Unfence, check_site, ids, order};
use crate::db::{self, admin, fence};
use crate::error::Result;
use crate::replication::fence::{choose, name_of};
use crate::replication::orders::{self, Order};

#[derive(Debug, Serialize)]
struct Preview {
    backend: String,
    site: String,
    seconds: u32,
    volumes: Vec<String>,
}

pub(super) async fn lay(context: &Context, arguments: Fence) -> Result<Report> {
    let target = Target::find(context, &arguments.given.backend).await?;
    check_site(&target, &arguments.site)?;
    target.host()?;
    let scope = &target.scope;
    let (found, strays) = context
        .db
        .read("volumes to fence", async |conn| {
            Ok((db::failover::replicated(conn, scope).await?, admin::strays(conn, scope).await?))
        })
        .await?;
    let named = ids(&arguments.volumes);
    let only = (!named.is_empty()).then_some(named.as_slice());
    let strays = strays.into_iter().collect();
    let chosen = choose(&found, &strays, &target.active_site(), &arguments.site, only, target.name())?;
    let preview = Preview {
        backend: target.name().to_owned(),
        site: arguments.site.clone(),
        seconds: arguments.seconds,
        volumes: chosen,
    };
    let text = format!(
        "Clients on site {} that have an image of {} of backend {} open are fenced for {} s: whatever else they have \
         open there stops too.",
        preview.site,
        volumes(preview.volumes.len()),
        preview.backend,
        preview.seconds,
    );
    if preview.volumes.is_empty() && !arguments.given.dry_run {
        let text = format!("No volume of backend {} has left site {}.", preview.backend, preview.site);
        return Report::new(text, &preview);
    }
    let question =
        format!("Type the name of the site whose clients are fenced ({}) to go on:", arguments.site);
    let volumes = only.is_some().then(|| preview.volumes.clone());
    let fence = orders::Fence { site: preview.site.clone(), volumes, seconds: preview.seconds };
    let (shown, question) = ((text, &preview), (question, arguments.site.as_str()));
    propose(context, &target, &arguments.given, shown, question, Order::Fence(fence)).await
}

pub(super) async fn lift(context: &Context, arguments: Unfence) -> Result<Report> {
    let target = Target::find(context, &arguments.backend).await?;
    check_site(&target, &arguments.site)?;
    target.host()?;
    let named = ids(&arguments.volumes);
    let unfence = orders::Unfence { site: arguments.site, volumes: (!named.is_empty()).then_some(named) };
    order(context, &target, Order::Unfence(unfence), !arguments.no_wait).await
}

pub(super) async fn list(context: &Context, backend: &str) -> Result<Report> {
    let target = Target::find(context, backend).await?;
    let name = name_of(&target.scope);
    let rows = context.db.read("fences", async |conn| fence::list(conn, name).await).await?;
    let shown = rows.iter().filter(|r| r.state != "noted").map(|r| {
        [
            r.site.clone(),
            if r.is_laid() { r.address.clone() } else { "(when the site answers)".to_owned() },
            r.volume_id.clone(),
            time(Some(r.recorded_at)),
            r.expires.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    });
    let text = match rows.is_empty() {
        true => format!("Nothing is fenced by backend {}.", target.name()),
        false => table(["Site", "Client", "Volume", "Since", "Until"], shown),
    };
    Report::new(text, &rows)
}
