//! `service`: rows of Cinder's services, in `cinder-manage`'s own form.

use chrono::NaiveDateTime;
use clap::Subcommand;
use serde_json::json;

use super::output::{is_up, python_time};
use super::{Context, Report};
use crate::db::admin::{self, ServiceLine};
use crate::error::{Code, Error, Result};

/// Actions of `service`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// All services, in the form of cinder-manage
    List,
    /// Remove a service's row; the host must be exact (HOST@BACKEND for volume services)
    Remove {
        /// E.g. cinder-volume
        binary: String,
        /// E.g. node1@ceph
        host: String,
    },
}

pub(super) async fn run(context: &Context, action: Action) -> Result<Report> {
    match action {
        Action::List => {
            let found = context.db.read("services", async |conn| admin::services(conn).await).await?;
            let (now, limit) = (crate::db::now(), context.config.service_down_time);
            let mut text = line([
                "Binary",
                "Host",
                "Zone",
                "Status",
                "State",
                "Updated At",
                "RPC Version",
                "Object Version",
                "Cluster",
            ]);
            let mut rows = Vec::new();
            for service in &found {
                text.push_str(&row(service, now, limit));
                rows.push(json!({
                    "binary": service.binary,
                    "host": service.host,
                    "zone": service.availability_zone,
                    "disabled": service.disabled.unwrap_or(false),
                    "up": is_up(service.updated_at, now, limit),
                    "updated_at": service.updated_at.map(|t| t.format("%Y-%m-%d %H:%M:%S").to_string()),
                    "rpc_version": service.rpc_current_version,
                    "object_version": service.object_current_version,
                    "cluster": service.cluster_name,
                }));
            }
            Report::new(text, &rows)
        }
        Action::Remove { binary, host } => {
            // Removing a row needs the commit markers of our transactions.
            context.require_tables().await?;
            let removed = context
                .db
                .write("remove service", async |conn| admin::remove_service(conn, &binary, &host).await)
                .await?;
            if !removed {
                return Err(Error::new(
                    Code::ServiceNotFound,
                    format!("Host not found. Failed to remove {binary} on {host}."),
                ));
            }
            Report::new(
                format!("Service {binary} on host {host} removed."),
                &json!({"removed": {"binary": binary, "host": host}}),
            )
        }
    }
}

/// `%-16s %-36s %-16s %-10s %-5s %-20s %-12s %-15s %-36s` (`cinder/cmd/manage.py`, ServiceCommands.list).
fn line(fields: [&str; 9]) -> String {
    let [binary, host, zone, status, state, updated, rpc, object, cluster] = fields;
    format!(
        "{binary:<16} {host:<36} {zone:<16} {status:<10} {state:<5} {updated:<20} {rpc:<12} {object:<15} {cluster:<36}\n"
    )
}

fn row(service: &ServiceLine, now: NaiveDateTime, limit: std::time::Duration) -> String {
    // What Python prints for a NULL, except for the cluster.
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "None".to_owned());
    line([
        &text(&service.binary),
        &text(&service.host),
        &text(&service.availability_zone),
        if service.disabled.unwrap_or(false) { "disabled" } else { "enabled" },
        if is_up(service.updated_at, now, limit) { ":-)" } else { "XXX" },
        &python_time(service.updated_at),
        &text(&service.rpc_current_version),
        &text(&service.object_current_version),
        service.cluster_name.as_deref().unwrap_or_default(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_cinder_manages() {
        let now = NaiveDateTime::default();
        let service = ServiceLine {
            binary: Some("cinder-volume".into()),
            host: Some("node1@ceph".into()),
            availability_zone: Some("nova".into()),
            disabled: Some(true),
            updated_at: Some(now),
            rpc_current_version: Some("3.20".into()),
            object_current_version: Some("1.39".into()),
            cluster_name: None,
        };
        let limit = std::time::Duration::from_secs(60);
        let expected = format!(
            "cinder-volume    node1@ceph{} nova             disabled   :-)   1970-01-01 00:00:00  3.20         1.39            {}\n",
            " ".repeat(26),
            " ".repeat(36)
        );
        assert_eq!(row(&service, now, limit), expected);
        let silent = ServiceLine { updated_at: None, disabled: None, ..service };
        assert!(row(&silent, now, limit).contains("enabled    XXX   None "));
    }
}
