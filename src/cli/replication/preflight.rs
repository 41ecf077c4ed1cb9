//! `replication preflight`: is everything ready to fail over now?

use super::super::output::{table, volumes};
use super::super::target::Target;
use super::super::{Context, Exit, Report};
use super::Preflight as Arguments;
use super::ask::{ask, require_replicated};
use crate::error::Result;
use crate::replication::foresight::Inquiry;
use crate::replication::foresight::finding::{Finding, Severity};
use crate::replication::foresight::preflight::{Preflight, SiteState};

pub(super) async fn run(context: &Context, arguments: Arguments) -> Result<Report> {
    let target = Target::find(context, &arguments.backend).await?;
    require_replicated(&target)?;
    let inquiry = Inquiry::Preflight { to: arguments.to };
    let answer: Preflight = ask(context, &target, inquiry, arguments.timeout.within()).await?;
    report(&answer)
}

fn report(answer: &Preflight) -> Result<Report> {
    let exit = if answer.ready { Exit::Done } else { Exit::Failed };
    Ok(Report::new(render(answer), answer)?.ending(exit))
}

fn render(answer: &Preflight) -> String {
    let mut text = format!("Failover of {} from {} to {}\n", answer.backend, answer.from, answer.to);
    text.push_str(&sites(&answer.sites));
    let counts = answer.volumes.iter().map(|(fate, n)| format!("{fate} {n}")).collect::<Vec<_>>().join(", ");
    let counts = if counts.is_empty() { "none".to_owned() } else { counts };
    text.push_str(&format!("\nVolumes: {counts}\n"));
    if !answer.findings.is_empty() {
        let rows = answer.findings.iter().map(|f| {
            [
                f.severity.as_str().to_owned(),
                f.site.clone().unwrap_or_default(),
                f.text.clone(),
                concerned(f),
                f.advice.clone(),
            ]
        });
        text.push_str(&table(["Severity", "Site", "What", "Volumes", "What to do"], rows));
        text.push('\n');
    }
    let blockers = answer.findings.iter().filter(|f| f.severity == Severity::Blocker).count();
    text.push_str(&match blockers {
        0 => "Ready: nothing stands in the way.".to_owned(),
        1 => "NOT ready: one thing stands in the way.".to_owned(),
        n => format!("NOT ready: {n} things stand in the way."),
    });
    text
}

/// Sites as a table.
pub(super) fn sites(sites: &[SiteState]) -> String {
    let rows = sites.iter().map(|site| {
        let daemons = match (site.daemons.len(), &site.leader) {
            (0, _) => "none".to_owned(),
            (n, Some(leader)) => format!("{n}, led by {leader}"),
            (n, None) => format!("{n}, no leader"),
        };
        let peers = site
            .peers
            .iter()
            .map(|p| {
                let name = if p.site_name.is_empty() { &p.uuid } else { &p.site_name };
                let way = serde_json::to_value(p.direction).ok();
                format!("{name} ({})", way.as_ref().and_then(|w| w.as_str()).unwrap_or_default())
            })
            .collect::<Vec<_>>()
            .join(", ");
        [
            site.name.clone(),
            site.role.clone(),
            site.verdict.clone(),
            site.pool_mode.clone().unwrap_or_else(|| "?".to_owned()),
            daemons,
            peers,
        ]
    });
    table(["Site", "Role", "Verdict", "Pool mode", "rbd-mirror", "Peers"], rows)
}

/// `3 volumes: v1, v2, …`.
fn concerned(finding: &Finding) -> String {
    /// Volumes named before it is enough; JSON has all.
    const NAMED: usize = 3;
    if finding.volumes.is_empty() {
        return String::new();
    }
    let named = finding.volumes.iter().take(NAMED).cloned().collect::<Vec<_>>().join("\n");
    let more = if finding.volumes.len() > NAMED { "\n…" } else { "" };
    format!("{}:\n{named}{more}", volumes(finding.volumes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn what_stands_in_the_way_fails_the_command() {
        let finding = Finding {
            severity: Severity::Blocker,
            code: "volume-stays".into(),
            site: None,
            text: "its copy on the target site is not replaying".into(),
            advice: "look".into(),
            volumes: (0..5).map(|n| format!("v{n}")).collect(),
        };
        let mut answer = Preflight {
            backend: "node1@ceph".into(),
            from: "default".into(),
            to: "b".into(),
            ready: false,
            sites: vec![],
            volumes: BTreeMap::from([("stay".into(), 5)]),
            findings: vec![finding],
        };
        let said = report(&answer).unwrap();
        assert_eq!(said.exit, Exit::Failed);
        for expected in ["NOT ready: one thing", "5 volumes:", "not replaying", "Volumes: stay 5"] {
            assert!(said.text.contains(expected), "{expected} in {}", said.text);
        }
        assert_eq!(said.json["findings"][0]["severity"], "blocker");
        answer.ready = true;
        answer.findings.clear();
        let said = report(&answer).unwrap();
        assert_eq!(said.exit, Exit::Done);
        assert!(said.text.ends_with("Ready: nothing stands in the way."), "{}", said.text);
    }
}
