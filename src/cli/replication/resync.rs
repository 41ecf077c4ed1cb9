//! `replication resync`: the explicit order without which no copy is ever thrown away.
//!
//! Which volumes are split is for the service to find out, volume by volume (`replication::resync::plan`);
//! this command decides which volumes may be touched at all: never one that is served from the site to
//! discard, unless the operator names that very volume and the backend is active elsewhere.

use std::collections::HashMap;

use serde::Serialize;

use super::super::output::volumes;
use super::super::target::Target;
use super::super::{Context, Report};
use super::preview::{Shown, propose, rows};
use super::{Resync, check_site, ids, require_settled};
use crate::db::{self, admin};
use crate::error::Result;
use crate::model::Volume;
use crate::replication::orders::{self, Order};
use crate::replication::resync::choice::choose;

/// A volume that may lose its copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Choice {
    #[serde(flatten)]
    shown: Shown,
    /// Site whose content survives.
    keep: String,
    /// It is served from the copy to discard at this moment.
    served_from_discarded: bool,
}

/// What would be ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Preview {
    backend: String,
    discard: String,
    active_site: String,
    volumes: Vec<Choice>,
    /// Left out because they are served from the site to discard.
    left_out: Vec<String>,
    #[serde(skip)]
    order: orders::Resync,
}

pub(super) async fn run(context: &Context, arguments: Resync) -> Result<Report> {
    let target = Target::find(context, &arguments.given.backend).await?;
    check_site(&target, &arguments.discard)?;
    target.host()?;
    require_settled(context, &target).await?;
    let scope = &target.scope;
    let (found, strays) = context
        .db
        .read("volumes to resync", async |conn| {
            Ok((db::failover::replicated(conn, scope).await?, admin::strays(conn, scope).await?))
        })
        .await?;
    let preview = select(
        &found,
        &strays.into_iter().collect(),
        target.name(),
        &arguments.discard,
        &target.active_site(),
        &ids(&arguments.volumes),
    )?;
    if preview.volumes.is_empty() && !arguments.given.dry_run {
        return Report::new(
            format!("Backend {} has no replicated volume; nothing to resync.", preview.backend),
            &preview,
        );
    }
    let question =
        format!("Type the name of the site whose copies are discarded ({}) to go on:", preview.discard);
    let (shown, question) = ((preview.render(), &preview), (question, preview.discard.as_str()));
    let order = Order::Resync(preview.order.clone());
    propose(context, &target, &arguments.given, shown, question, order).await
}

/// Which volumes the order may touch.
fn select(
    found: &[Volume],
    strays: &HashMap<String, String>,
    backend: &str,
    discard: &str,
    active: &str,
    named: &[String],
) -> Result<Preview> {
    let choice = choose(found, strays, backend, discard, active, named)?;
    let chosen: Vec<Choice> = choice
        .touched
        .iter()
        .map(|t| Choice {
            shown: t.volume.into(),
            keep: t.keep.clone(),
            served_from_discarded: t.served_from_discarded,
        })
        .collect();
    let order = orders::Resync { discard: discard.to_owned(), volumes: choice.named(named) };
    Ok(Preview {
        backend: backend.to_owned(),
        discard: discard.to_owned(),
        active_site: active.to_owned(),
        volumes: chosen,
        left_out: choice.left_out,
        order,
    })
}

impl Preview {
    fn render(&self) -> String {
        let Preview { backend, discard, active_site, volumes: chosen, left_out, .. } = self;
        let gigabytes: i64 = chosen.iter().map(|c| i64::from(c.shown.gigabytes)).sum();
        let mut text = format!(
            "Backend {backend} (active on {active_site}): discard the copies on {discard} of {}, {gigabytes} GiB\n",
            volumes(chosen.len())
        );
        // What failed first: it is why the operator is here.
        let mut sorted: Vec<&Choice> = chosen.iter().collect();
        sorted.sort_by_key(|c| (!c.served_from_discarded, c.shown.replication_status != "failover-error"));
        text.push_str(&rows("Kept site", sorted.iter().map(|c| (&c.shown, c.keep.as_str()))));
        if !left_out.is_empty() {
            text.push_str(&format!(
                "Left out: {} served from {discard} itself (name one with --volume if its \
                 copy there is really the one to lose)\n",
                volumes(left_out.len())
            ));
        }
        if chosen.iter().any(|c| c.served_from_discarded) {
            text.push_str(&format!(
                "WARNING: a volume named here is served from {discard} at this moment; what its users have \
                 written there will be gone\n"
            ));
        }
        text.push_str(&format!(
            "Only split copies are discarded (primary on both sites, or unable to replay); healthy ones are left \
             alone. What was written on {discard} after the split is lost for good."
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    fn volume(id: &str, replication: Option<&str>) -> Volume {
        Volume {
            id: id.into(),
            size: 2,
            status: "available".into(),
            replication_status: replication.map(str::to_owned),
            ..Volume::default()
        }
    }

    fn strays(of: &[(&str, &str)]) -> HashMap<String, String> {
        of.iter().map(|(v, s)| ((*v).to_owned(), (*s).to_owned())).collect()
    }

    fn chosen(preview: &Preview) -> Vec<&str> {
        preview.volumes.iter().map(|c| c.shown.volume.as_str()).collect()
    }

    #[test]
    fn after_a_disaster_all_replicated_volumes_are_offered() {
        let found =
            [volume("v1", Some("failed-over")), volume("v2", Some("failover-error")), volume("v3", None)];
        let preview = select(&found, &strays(&[]), "b1", "default", "b", &[]).unwrap();
        assert_eq!(chosen(&preview), ["v1", "v2"]);
        assert_eq!(preview.order, orders::Resync { discard: "default".into(), volumes: None });
        let text = preview.render();
        assert!(text.contains("discard the copies on default of 2 volumes, 4 GiB"), "{text}");
        assert!(text.find("v2") < text.find("v1"), "failures first\n{text}");
    }

    #[test]
    fn the_active_site_is_never_discarded() {
        let found = [volume("v1", Some("enabled"))];
        let refused = select(&found, &strays(&[]), "b1", "default", "default", &[]).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidReplicationTarget);
        let refused = select(&found, &strays(&[]), "b1", "default", "default", &["v1".into()]).unwrap_err();
        assert!(refused.user().contains("served from default"), "{refused}");
    }

    #[test]
    fn a_failback_that_left_volumes_behind_may_discard_their_old_copies_at_home() {
        // Failed back to `default`; v1 was primary on both sides and stayed served from b.
        let found = [volume("v1", Some("failover-error")), volume("v2", Some("enabled"))];
        let preview = select(&found, &strays(&[("v1", "b")]), "b1", "default", "default", &[]).unwrap();
        assert_eq!(chosen(&preview), ["v1"]);
        assert_eq!(preview.volumes[0].keep, "b");
        assert_eq!(preview.order.volumes, Some(vec!["v1".to_owned()]), "v2 must not be in the order");
    }

    #[test]
    fn what_is_served_from_the_discarded_site_must_be_named() {
        let found = [volume("v1", Some("failover-error")), volume("v2", Some("failed-over"))];
        let at_home = strays(&[("v1", "default")]);
        let preview = select(&found, &at_home, "b1", "default", "b", &[]).unwrap();
        assert_eq!(chosen(&preview), ["v2"]);
        assert_eq!(preview.left_out, ["v1"]);
        assert_eq!(preview.order.volumes, Some(vec!["v2".to_owned()]));
        let preview = select(&found, &at_home, "b1", "default", "b", &["v1".into()]).unwrap();
        assert_eq!(chosen(&preview), ["v1"]);
        assert!(preview.render().contains("WARNING"));
    }

    #[test]
    fn a_volume_of_somebody_else_is_refused() {
        let found = [volume("v1", Some("enabled"))];
        let refused = select(&found, &strays(&[]), "b1", "default", "b", &["v9".into()]).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidVolume);
    }

    #[test]
    fn a_long_list_is_cut() {
        let found: Vec<Volume> = (0..25).map(|i| volume(&format!("v{i}"), Some("failed-over"))).collect();
        let text = select(&found, &strays(&[]), "b1", "default", "b", &[]).unwrap().render();
        assert!(text.contains("and 5 more"), "{text}");
    }
}
