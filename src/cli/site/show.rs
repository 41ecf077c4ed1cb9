//! `site list` and `site show`.

use super::super::output::{facts, table};
use super::super::{Context, Report};
use super::answer;
use crate::error::Result;
use crate::site::{self, View};

pub(super) async fn list(context: &Context) -> Result<Report> {
    let views = context.db.read("sites", async |conn| site::all(conn).await).await?;
    let rows = views.iter().map(|v| {
        [
            v.name.clone(),
            v.fsid.clone(),
            v.version.clone(),
            v.health.clone(),
            v.seen_at.clone(),
            backends(v),
            v.lacking().join(", "),
        ]
    });
    let text = match views.is_empty() {
        true => "No site is known: scoria-volume finds those of its backends when they answer.".to_owned(),
        false => table(["Site", "fsid", "Ceph", "Health", "Seen", "Backends", "Hosts without files"], rows),
    };
    Report::new(text, &views)
}

fn backends(view: &View) -> String {
    let mut names: Vec<&str> = view.backends.iter().map(|b| b.backend.as_str()).collect();
    names.dedup();
    names.join(", ")
}

pub(super) async fn one(context: &Context, name: &str) -> Result<Report> {
    let view = context.db.read("a site", async |conn| site::one(conn, name).await).await?;
    let mut text = facts([
        ("Site", Some(view.name.clone())),
        ("fsid", Some(view.fsid.clone())),
        ("Known", Some(format!("{} since {}", view.origin, view.created_at))),
        ("Seen", Some(view.seen_at.clone())),
        ("Monitors", Some(view.monitors.join("\n"))),
    ]);
    text.push('\n');
    if let Some(report) = &view.report {
        text.push_str(&answer::seen(report));
    }
    let rows = view.hosts.iter().map(|h| {
        [
            h.host.clone(),
            h.conf.clone().map_or_else(
                || "none".to_owned(),
                |conf| if conf.is_empty() { "(searched)".into() } else { conf },
            ),
            h.keyring.clone().unwrap_or_default(),
            h.client.clone().unwrap_or_default(),
            if h.kept { "Scoria" } else { "" }.to_owned(),
            h.problem.clone().unwrap_or_default(),
        ]
    });
    text.push_str(&table(["Host", "Conf", "Keyring", "Client", "Kept by", "Problem"], rows));
    text.push('\n');
    let lacking = view.lacking();
    if !lacking.is_empty() {
        text.push_str(&format!(
            "Without usable files: {}. To give them: scoria-manage site register {} --host HOST --conf …\n",
            lacking.join(", "),
            view.name
        ));
    }
    let rows = view
        .backends
        .iter()
        .map(|b| [b.backend.clone(), b.site.clone(), b.pool.clone(), b.client.clone().unwrap_or_default()]);
    text.push_str(&table(["Backend", "As", "Pool", "Client"], rows));
    Report::new(text, &view)
}
