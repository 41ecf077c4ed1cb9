//! `replication audit`: where the database and the clusters disagree, and what may be mended by itself.

use super::super::confirm;
use super::super::output::{table, volumes};
use super::super::target::Target;
use super::super::{Context, Exit, Report};
use super::ask::ask;
use super::{Audit as Arguments, ids, order, require_settled};
use crate::error::Result;
use crate::replication::foresight::Inquiry;
use crate::replication::foresight::audit::{Audit, Drift};
use crate::replication::orders::{self, Order};

pub(super) async fn run(context: &Context, arguments: Arguments) -> Result<Report> {
    let target = Target::find(context, &arguments.backend).await?;
    let named = ids(&arguments.volumes);
    let only = (!named.is_empty()).then_some(named);
    if arguments.repair {
        require_settled(context, &target).await?;
    }
    let inquiry = Inquiry::Audit { volumes: only.clone() };
    let answer: Audit = ask(context, &target, inquiry, arguments.timeout.within()).await?;
    let mendable = answer.drifts.iter().filter(|d| d.repair.is_some()).count();
    if !arguments.repair || mendable == 0 {
        return report(&answer);
    }
    eprintln!("{}", render(&answer));
    let question = format!(
        "Type repair to mend {mendable} of them ({} are left to you):",
        answer.drifts.len() - mendable
    );
    confirm::ask(question, "repair", arguments.yes).await?;
    order(context, &target, Order::Repair(orders::Repair { volumes: only }), !arguments.no_wait).await
}

fn report(answer: &Audit) -> Result<Report> {
    let clean = answer.drifts.is_empty() && answer.sites.values().all(|verdict| verdict != "dead");
    let exit = if clean { Exit::Done } else { Exit::Failed };
    Ok(Report::new(render(answer), answer)?.ending(exit))
}

fn render(audit: &Audit) -> String {
    let mut text = String::new();
    let sites =
        audit.sites.iter().map(|(name, verdict)| format!("{name} {verdict}")).collect::<Vec<_>>().join(", ");
    text.push_str(&format!(
        "Backend {}, active on {}; sites: {sites}\n{} compared, {} skipped\n",
        audit.backend,
        audit.active,
        volumes(audit.checked),
        audit.skipped.len()
    ));
    if !audit.drifts.is_empty() {
        let rows = audit.drifts.iter().map(|d| {
            [
                d.severity.as_str().to_owned(),
                subject(d),
                d.site.clone().unwrap_or_default(),
                d.text.clone(),
                d.repair.as_ref().map(|r| r.text()).unwrap_or_default(),
                d.advice.clone(),
            ]
        });
        text.push_str(&table(
            ["Severity", "Volume or image", "Site", "What", "--repair would", "By hand"],
            rows,
        ));
        text.push('\n');
    }
    if !audit.skipped.is_empty() {
        let rows = audit.skipped.iter().map(|s| [s.volume.clone(), s.reason.clone()]);
        text.push_str(&table(["Skipped", "Why"], rows));
        text.push('\n');
    }
    let mendable = audit.drifts.iter().filter(|d| d.repair.is_some()).count();
    text.push_str(&match (audit.drifts.len(), mendable) {
        (0, _) => "No disagreement was found.".to_owned(),
        (n, 0) => format!("{n} disagreements; none that can be mended by itself."),
        (n, mendable) => format!("{n} disagreements; --repair mends {mendable} of them."),
    });
    text
}

fn subject(drift: &Drift) -> String {
    drift.volume.clone().or_else(|| drift.image.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::foresight::audit::{Mend, Skipped};
    use crate::replication::foresight::finding::Severity;
    use std::collections::BTreeMap;

    #[test]
    fn a_page_tells_what_is_mended_and_what_is_left() {
        let drift = |code: &str, repair: Option<Mend>, advice: &str| Drift {
            code: code.into(),
            severity: Severity::Blocker,
            volume: Some("v1".into()),
            image: None,
            site: Some("b".into()),
            text: "it is primary on b".into(),
            repair,
            advice: advice.into(),
        };
        let mut audit = Audit {
            backend: "node1@ceph".into(),
            active: "default".into(),
            sites: BTreeMap::from([("default".into(), "alive".into()), ("b".into(), "alive".into())]),
            checked: 2,
            skipped: vec![Skipped { volume: "v3".into(), reason: "its status is creating".into() }],
            drifts: vec![
                drift("primary-elsewhere", Some(Mend::Stray { site: "b".into() }), ""),
                drift("both-primary", None, "scoria-manage replication resync"),
            ],
        };
        let said = report(&audit).unwrap();
        assert_eq!(said.exit, Exit::Failed);
        for expected in
            ["2 disagreements; --repair mends 1", "served from b", "resync", "its status is creating"]
        {
            assert!(said.text.contains(expected), "{expected} in {}", said.text);
        }
        assert_eq!(said.json["drifts"][0]["repair"]["do"], "stray");
        audit.drifts.clear();
        assert_eq!(report(&audit).unwrap().exit, Exit::Done);
        // What could not be looked at has not been found well.
        audit.sites.insert("b".into(), "dead".into());
        assert_eq!(report(&audit).unwrap().exit, Exit::Failed);
    }
}
