//! `replication reset`: after a failover that failed, cinder-api refuses the next one because of the
//! service row. This makes the row say again what is true: where the backend is active.
//!
//! It changes no volume and no image. Volumes left behind are `retry`'s and `resync`'s business.

use super::super::confirm::{self, Confirmed};
use super::super::output::table;
use super::super::target::Target;
use super::super::{Context, Report};
use super::{Reset, require_settled};
use crate::db::admin::{self, Fields};
use crate::error::{Code, Error, Result};
use crate::replication::orders::MOVES;

pub(super) async fn run(context: &Context, arguments: Reset) -> Result<Report> {
    let target = Target::find(context, &arguments.backend).await?;
    target.host()?;
    require_settled(context, &target).await?;
    let scope = &target.scope;
    let changes = context.db.read("rows to reset", async |conn| admin::resets(conn, scope).await).await?;
    if changes.is_empty() {
        return nothing(&target);
    }
    let text = render(&target, &changes);
    if arguments.dry_run {
        return Report::new(text, &changes);
    }
    eprintln!("{text}");
    let confirmed = confirm::ask("Type 'yes' to go on:".to_owned(), "yes", arguments.yes).await?;
    apply(context, &target, &changes, confirmed).await?;
    Report::new(format!("Backend {} accepts failovers again; its rows are reset.", target.name()), &changes)
}

async fn apply(
    context: &Context,
    target: &Target,
    changes: &[admin::Reset],
    _confirmed: Confirmed,
) -> Result<()> {
    let scope = &target.scope;
    context.db.write("reset", async |conn| admin::reset(conn, scope, changes, MOVES).await).await
}

/// Rows that are acceptable already are left alone; those of a backend that is not replicated cannot
/// be made so by writing to the database.
fn nothing(target: &Target) -> Result<Report> {
    let status = target.fields().and_then(|f| f.replication_status).unwrap_or_else(|| "NULL".to_owned());
    if matches!(status.as_str(), "enabled" | "failed-over") {
        let text = format!("Backend {} is {status}: cinder-api accepts failovers.", target.name());
        return Report::new(text, &Vec::<admin::Reset>::new());
    }
    Err(Error::new(
        Code::UnableToFailOver,
        format!(
            "Backend {} has replication_status {status}: it is not replicated, or its service has not \
             started with a replication_device yet",
            target.name()
        ),
    ))
}

fn render(target: &Target, changes: &[admin::Reset]) -> String {
    let show = |f: &Fields| {
        let frozen = if f.frozen { ", frozen" } else { "" };
        format!(
            "{}, active {}, {} ({}){frozen}",
            f.replication_status.as_deref().unwrap_or("NULL"),
            f.active_backend_id.as_deref().map_or("NULL".to_owned(), |id| format!("'{id}'")),
            if f.disabled { "disabled" } else { "enabled" },
            f.disabled_reason.as_deref().unwrap_or_default(),
        )
    };
    let rows = changes.iter().map(|c| [format!("{} {}", c.row, c.name), show(&c.before), show(&c.after)]);
    let mut text = table(["Row", "Now", "After"], rows);
    if changes.iter().any(|c| c.before.replication_status.as_deref() == Some("failing-over")) {
        text.push_str(
            "\nNo failover is in the journal. If one was ordered a moment ago, or while no service ran, its \
             message is still in the queue: let the service take it first.",
        );
    }
    let moved: Vec<&str> = changes
        .iter()
        .filter(|c| {
            let id = |f: &Fields| f.active_backend_id.clone().unwrap_or_default();
            id(&c.before) != id(&c.after)
        })
        .map(|c| c.name.as_str())
        .collect();
    if !moved.is_empty() {
        text.push_str(&format!(
            "\nRestart the service of {} afterwards: its row named another active site than its cluster's.",
            moved.join(", ")
        ));
    }
    text.push_str(&format!("\nThe volumes of {} are not changed.", target.name()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Scope, Service};

    fn target(status: &str) -> Target {
        let service = Service {
            host: "node1@ceph".into(),
            replication_status: Some(status.into()),
            ..Service::default()
        };
        Target {
            scope: Scope::Host("node1@ceph".into()),
            config: None,
            services: vec![service],
            cluster: None,
        }
    }

    #[test]
    fn only_a_replicated_backend_has_nothing_to_reset() {
        assert!(nothing(&target("failed-over")).unwrap().text.contains("accepts failovers"));
        assert_eq!(nothing(&target("disabled")).unwrap_err().code(), Code::UnableToFailOver);
    }

    #[test]
    fn the_preview_warns_of_what_it_cannot_see() {
        let before = Fields { replication_status: Some("failing-over".into()), ..Fields::default() };
        let change = admin::Reset {
            row: "service",
            name: "node2@ceph".into(),
            after: before.settled(Some("b")),
            before,
        };
        let text = render(&target("failing-over"), &[change]);
        assert!(text.contains("failing-over, active NULL, enabled ()"), "{text}");
        assert!(text.contains("failed-over, active 'b', disabled (failed-over)"), "{text}");
        assert!(text.contains("still in the queue"), "{text}");
        assert!(text.contains("Restart the service of node2@ceph"), "{text}");
    }
}
