//! `replication failover`: one volume, some, a group or a whole backend, also when no cinder-api is there.
//!
//! The service looks again at everything that is looked at here. This is to tell the operator before he agrees
//! what would be moved and from where, and to refuse what makes no sense while he is still looking.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::super::output::volumes;
use super::super::target::Target;
use super::super::{Context, Report};
use super::preview::{Shown, propose, rows};
use super::{Failover, check_site, ids, require_settled};
use crate::db::{self, admin};
use crate::error::{Code, Error, Result};
use crate::model::{ReplicationStatus, Volume};
use crate::replication::intent::Intent;
use crate::replication::orders::{self, Order};
use crate::replication::set::admit;

/// A volume that would be moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Choice {
    #[serde(flatten)]
    shown: Shown,
    /// The site that serves it now.
    from: String,
}

/// What would be ordered.
#[derive(Debug, Serialize)]
struct Preview {
    backend: String,
    active_site: String,
    target: String,
    intent: Intent,
    /// `backend`, `group` or `volumes`.
    scope: &'static str,
    volumes: Vec<Choice>,
    #[serde(skip)]
    order: Order,
}

pub(super) async fn run(context: &Context, arguments: Failover) -> Result<Report> {
    let target = Target::find(context, &arguments.given.backend).await?;
    check_site(&target, &arguments.to)?;
    target.host()?;
    require_settled(context, &target).await?;
    let scope = &target.scope;
    let group = arguments.group.map(|id| id.to_string());
    let (found, strays, group_status) = context
        .db
        .read("volumes to fail over", async |conn| {
            let found = db::failover::replicated(conn, scope).await?;
            let strays = admin::strays(conn, scope).await?;
            let status = match &group {
                Some(id) => {
                    db::group::find(conn, id).await?.map(|g| g.replication_status.unwrap_or_default())
                }
                None => None,
            };
            Ok((found, strays, status))
        })
        .await?;
    let facts = Facts {
        found: &found,
        strays: &strays.into_iter().collect(),
        backend: target.name(),
        active: &target.active_site(),
        accepts: accepts(&target),
        group_status: group_status.as_deref(),
    };
    let preview = preview(&facts, &arguments, group.as_deref())?;
    let (word, question) = match preview.intent {
        Intent::Force => (
            arguments.to.as_str(),
            format!("Type the name of the site that takes over ({}) to go on:", arguments.to),
        ),
        _ => ("yes", "Type 'yes' to go on:".to_owned()),
    };
    let (text, order) = (preview.render(), preview.order.clone());
    propose(context, &target, &arguments.given, (text, &preview), (question, word), order).await
}

/// Whether the rows accept a failover, as cinder-api asks them.
fn accepts(target: &Target) -> bool {
    let well = |f: &admin::Fields| matches!(f.replication_status.as_deref(), Some("enabled" | "failed-over"));
    target.fields().as_ref().is_some_and(well)
}

struct Facts<'a> {
    found: &'a [Volume],
    strays: &'a HashMap<String, String>,
    backend: &'a str,
    active: &'a str,
    accepts: bool,
    group_status: Option<&'a str>,
}

fn preview(facts: &Facts<'_>, arguments: &Failover, group: Option<&str>) -> Result<Preview> {
    let (to, intent) = (arguments.to.clone(), arguments.intent());
    let named = ids(&arguments.volumes);
    let movable = |v: &&Volume| {
        v.replication_status
            .as_deref()
            .and_then(ReplicationStatus::parse)
            .is_some_and(ReplicationStatus::means_mirrored)
    };
    let (scope, chosen, order) = match group {
        Some(id) => {
            check_group(facts, id)?;
            let members: Vec<String> = facts
                .found
                .iter()
                .filter(|v| v.group_id.as_deref() == Some(id))
                .map(|v| v.id.clone())
                .collect();
            let chosen = admit(facts.found, &members, facts.strays, facts.active, &to, facts.backend)?;
            let order =
                orders::Move { target: Some(to.clone()), intent, volumes: None, group: Some(id.to_owned()) };
            ("group", chosen, Order::Move(order))
        }
        None if !named.is_empty() => {
            let chosen = admit(facts.found, &named, facts.strays, facts.active, &to, facts.backend)?;
            let order =
                orders::Move { target: Some(to.clone()), intent, volumes: Some(chosen.clone()), group: None };
            ("volumes", chosen, Order::Move(order))
        }
        None => {
            let left: Vec<&Volume> = facts
                .found
                .iter()
                .filter(movable)
                .filter(|v| facts.active != to || v.replication_status.as_deref() == Some("failover-error"))
                .collect();
            check_backend(facts, &to, left.is_empty())?;
            let order = orders::Failover { target: Some(to.clone()), intent };
            ("backend", left.iter().map(|v| v.id.clone()).collect(), Order::Failover(order))
        }
    };
    let site = |v: &Volume| facts.strays.get(&v.id).cloned().unwrap_or_else(|| facts.active.to_owned());
    let choice = |v: &Volume| Choice { shown: v.into(), from: site(v) };
    let volumes = facts.found.iter().filter(|v| chosen.contains(&v.id)).map(choice).collect();
    Ok(Preview {
        backend: facts.backend.to_owned(),
        active_site: facts.active.to_owned(),
        target: to,
        intent,
        scope,
        volumes,
        order,
    })
}

fn check_group(facts: &Facts<'_>, id: &str) -> Result<()> {
    match facts.group_status {
        Some("enabled" | "failed-over") => Ok(()),
        Some("error") => Err(Error::new(
            Code::UnableToFailOver,
            format!(
                "An earlier failover of group {id} has failed; scoria-manage replication retry moves what it left"
            ),
        )),
        Some(other) => Err(Error::new(
            Code::UnableToFailOver,
            format!("Group {id} cannot be failed over: its replication_status is {other:?}"),
        )),
        None => Err(Error::new(Code::Invalid, format!("There is no group {id}"))),
    }
}

fn check_backend(facts: &Facts<'_>, to: &str, nothing_left: bool) -> Result<()> {
    if !facts.accepts {
        return Err(Error::new(
            Code::UnableToFailOver,
            format!(
                "The rows of backend {0} accept no failover; see: scoria-manage replication status --backend {0}, and reset",
                facts.backend
            ),
        ));
    }
    if facts.active == to && nothing_left {
        return Err(Error::new(
            Code::InvalidReplicationTarget,
            format!(
                "Backend {} is active on {to} already, and no volume is in failover-error",
                facts.backend
            ),
        ));
    }
    Ok(())
}

impl Preview {
    fn render(&self) -> String {
        let what = match self.scope {
            "backend" => format!("Backend {} fails over", self.backend),
            "group" => format!("A group of backend {} moves", self.backend),
            _ => format!("Volumes of backend {} move", self.backend),
        };
        let gigabytes: i64 = self.volumes.iter().map(|c| i64::from(c.shown.gigabytes)).sum();
        let mut text = format!(
            "{what} to {} ({}): {}, {gigabytes} GiB\n",
            self.target,
            self.intent.as_str(),
            volumes(self.volumes.len())
        );
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        for choice in &self.volumes {
            *places.entry(&choice.from).or_default() += 1;
        }
        text.push_str(&rows("From", self.volumes.iter().map(|c| (&c.shown, c.from.as_str()))));
        for (place, count) in places {
            text.push_str(&format!("{} served from {place} now\n", volumes(count)));
        }
        if self.scope == "backend" && self.active_site != self.target {
            text.push_str("Volumes that are not replicated stay behind, in error until failback\n");
        }
        text.push_str(match self.intent {
            Intent::Automatic => "In good order where their site lives; by force where it is dead.",
            Intent::Planned => "In good order only: refused unless their site is alive, and nothing is forced.",
            Intent::Unplanned => {
                "By force where their site is dead or does not answer: refused while it is alive. What it had \
                 not sent yet is lost."
            }
            Intent::Force => {
                "WARNING: where their site does not demote an image in time, the copy is promoted beside it, although \
                 the site may live. Whoever still writes there writes to a second primary, and one of the two is \
                 thrown away later. Stop those writers, or fence them (replication fence)."
            }
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::Given;
    use super::*;
    use uuid::Uuid;

    fn volume(n: u8, status: &str) -> Volume {
        Volume {
            id: Uuid::from_u128(u128::from(n)).to_string(),
            size: 2,
            status: "available".into(),
            replication_status: Some(status.into()),
            ..Volume::default()
        }
    }

    fn arguments(volumes: &[u8], to: &str) -> Failover {
        Failover {
            given: Given { backend: "node1@ceph".into(), yes: false, dry_run: false, no_wait: false },
            to: to.into(),
            volumes: volumes.iter().map(|n| Uuid::from_u128(u128::from(*n))).collect(),
            group: None,
            planned: false,
            unplanned: false,
            force: false,
        }
    }

    fn facts<'a>(found: &'a [Volume], strays: &'a HashMap<String, String>) -> Facts<'a> {
        Facts { found, strays, backend: "node1@ceph", active: "default", accepts: true, group_status: None }
    }

    #[test]
    fn a_backend_goes_as_a_whole_or_is_there_already() {
        let found = [volume(1, "enabled"), volume(2, "failover-error"), volume(3, "not-capable")];
        let strays = HashMap::new();
        let whole = preview(&facts(&found, &strays), &arguments(&[], "west"), None).unwrap();
        assert_eq!((whole.scope, whole.volumes.len()), ("backend", 2));
        assert!(whole.render().contains("stay behind"), "{}", whole.render());
        let again = preview(&facts(&found, &strays), &arguments(&[], "default"), None).unwrap();
        assert_eq!(again.volumes.len(), 1, "only what was left behind");
        let there = preview(&facts(&found[..1], &strays), &arguments(&[], "default"), None).unwrap_err();
        assert_eq!(there.code(), Code::InvalidReplicationTarget);
        let refusing = Facts { accepts: false, ..facts(&found, &strays) };
        let refused = preview(&refusing, &arguments(&[], "west"), None).unwrap_err();
        assert!(refused.user().contains("reset"), "{refused}");
    }

    #[test]
    fn an_order_names_exactly_what_was_shown() {
        let found = [volume(1, "enabled"), volume(2, "enabled")];
        let strays = HashMap::from([(found[1].id.clone(), "west".to_owned())]);
        let shown = preview(&facts(&found, &strays), &arguments(&[1, 2], "west"), None).unwrap();
        assert_eq!(shown.volumes.len(), 1, "the other is there already");
        let expected = orders::Move {
            target: Some("west".into()),
            intent: Intent::Automatic,
            volumes: Some(vec![found[0].id.clone()]),
            group: None,
        };
        assert_eq!(shown.order, Order::Move(expected));
        let force = Failover { force: true, ..arguments(&[1], "west") };
        let text = preview(&facts(&found, &strays), &force, None).unwrap().render();
        assert!(text.contains("WARNING") && text.contains("second primary"), "{text}");
    }

    #[test]
    fn a_group_that_waits_or_failed_is_refused() {
        let member = Volume { group_id: Some("g".into()), ..volume(1, "enabled") };
        let (found, strays) = ([member], HashMap::new());
        for (status, fine) in
            [(Some("enabled"), true), (Some("failing-over"), false), (Some("error"), false), (None, false)]
        {
            let facts = Facts { group_status: status, ..facts(&found, &strays) };
            assert_eq!(preview(&facts, &arguments(&[], "west"), Some("g")).is_ok(), fine, "{status:?}");
        }
    }
}
