//! `cluster`: rows of Cinder's clusters, in `cinder-manage`'s own form.

use clap::Subcommand;
use serde_json::json;

use super::label;
use super::output::{is_up, python_time};
use super::{Context, Report};
use crate::db::admin;
use crate::error::Result;

/// Actions of `cluster`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// All clusters, in the form of cinder-manage
    List,
    /// Labels that backends bear (host_cluster_id); nothing of Cinder's
    #[command(subcommand, arg_required_else_help = true)]
    Label(label::Action),
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    match action {
        Action::Label(action) => label::run(context, action).await,
        Action::List => {
            let found = context.db.read("clusters", async |conn| admin::clusters(conn).await).await?;
            let (now, limit) = (crate::db::now(), context.config.service_down_time);
            let mut text =
                line(["Name", "Binary", "Status", "State", "Heartbeat", "Hosts", "Down Hosts", "Updated At"]);
            let mut rows = Vec::new();
            for cluster in &found {
                let down = cluster.heartbeats.iter().filter(|h| !is_up(**h, now, limit)).count();
                let up = is_up(cluster.last_heartbeat, now, limit);
                text.push_str(&line([
                    &cluster.name,
                    &cluster.binary,
                    if cluster.disabled { "disabled" } else { "enabled" },
                    if up { ":-)" } else { "XXX" },
                    &python_time(cluster.last_heartbeat),
                    &cluster.heartbeats.len().to_string(),
                    &down.to_string(),
                    &python_time(cluster.updated_at),
                ]));
                rows.push(json!({
                    "name": cluster.name,
                    "binary": cluster.binary,
                    "disabled": cluster.disabled,
                    "up": up,
                    "last_heartbeat": cluster.last_heartbeat.map(|t| python_time(Some(t))),
                    "hosts": cluster.heartbeats.len(),
                    "down_hosts": down,
                    "updated_at": cluster.updated_at.map(|t| python_time(Some(t))),
                }));
            }
            Report::new(text, &rows)
        }
    }
}

/// `%-36s %-16s %-10s %-5s %-20s %-7s %-12s %-20s` (`cinder/cmd/manage.py`, ClusterCommands.list).
fn line(fields: [&str; 8]) -> String {
    let [name, binary, status, state, heartbeat, hosts, down, updated] = fields;
    format!(
        "{name:<36} {binary:<16} {status:<10} {state:<5} {heartbeat:<20} {hosts:<7} {down:<12} {updated:<20}\n"
    )
}
