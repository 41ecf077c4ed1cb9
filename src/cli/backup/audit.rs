//! `backup audit`: what is left of backups that are gone, and what of the others is missing.

use clap::Args;
use serde_json::Value;

use super::super::follow::{follow, look};
use super::super::output::table;
use super::super::{Context, Exit, Report, confirm};
use crate::backup::audit::{Audit as Document, Finding};
use crate::backup::orders::{self, Order};
use crate::error::{Code, Error, Result};
use crate::journal::Submitted;

/// Arguments of `audit`.
#[derive(Debug, Args)]
#[allow(missing_docs)]
pub struct Audit {
    /// Host of the backup service that looks [default: the configuration's]
    #[arg(long)]
    pub host: Option<String>,
    /// Remove what is left of backups whose rows are deleted
    #[arg(long)]
    pub repair: bool,
    /// Also what is left of backups of which there is no row at all, because rows were purged from the database. Never
    /// where another Cinder keeps backups in the same pools, and not before records of backups that are to be
    /// imported are imported
    #[arg(long, requires = "repair")]
    pub purged: bool,
    /// Do not ask
    #[arg(long, requires = "repair")]
    pub yes: bool,
    /// Return once the order to repair is written down
    #[arg(long, requires = "repair")]
    pub no_wait: bool,
}

pub(super) async fn run(context: &Context, arguments: Audit) -> Result<Report> {
    let Audit { host, repair, purged, yes, no_wait } = arguments;
    let host = host.as_deref().unwrap_or(&context.config.host);
    if !repair {
        return answered(context, host, Order::Audit { repair: false, purged: false }).await;
    }
    if !yes {
        let before = answered(context, host, Order::Audit { repair: false, purged: false }).await?;
        let Ok(found) = read(before.json.clone()) else { return Ok(before) };
        let goes = found.findings.iter().filter(|finding| finding.goes(purged)).count();
        if goes == 0 {
            return Ok(before);
        }
        eprintln!("{}", before.text.trim_end());
        let question = format!(
            "Type repair to remove {goes} of them ({} are left to you):",
            found.findings.len() - goes
        );
        confirm::ask(question, "repair", yes).await?;
    }
    let order = Order::Audit { repair: true, purged };
    if no_wait {
        let (number, said) = submit(context, host, order).await?;
        let text = format!("{said}\nTo watch it: {}", look(number));
        return Report::new(text, &serde_json::json!({"operation": number}));
    }
    answered(context, host, order).await
}

async fn submit(context: &Context, host: &str, order: Order) -> Result<(i64, String)> {
    Ok(match context.journal.submit(&orders::entry(host, order)?).await? {
        Submitted::New(number) => (
            number,
            format!("Operation {number} is written down; the backup service of {host} takes it from here."),
        ),
        Submitted::Open(number) => {
            (number, format!("The same order is open already as operation {number}; nothing was added."))
        }
    })
}

/// Has the service look, and waits for the answer.
async fn answered(context: &Context, host: &str, order: Order) -> Result<Report> {
    let (number, said) = submit(context, host, order).await?;
    eprintln!("{said} Ctrl-C stops watching, not the operation.");
    let report = follow(context, number).await?;
    match context.journal.answer_of(number).await? {
        Some(document) if report.exit == Exit::Done => told(&read(document)?),
        _ => Ok(report),
    }
}

fn read(document: Value) -> Result<Document> {
    serde_json::from_value(document).map_err(|e| {
        Error::new(
            Code::BadArguments,
            "The service's answer cannot be read; use the scoria-manage of the service's version",
        )
        .caused_by(e)
    })
}

fn told(audit: &Document) -> Result<Report> {
    let exit = if audit.is_clean() { Exit::Done } else { Exit::Failed };
    Ok(Report::new(render(audit), audit)?.ending(exit))
}

fn render(audit: &Document) -> String {
    let places = audit.places.iter().map(|place| {
        let kept = match (place.backups, place.volumes) {
            (true, true) => "backups, volumes",
            (true, false) => "backups",
            (false, _) => "volumes",
        };
        [
            place.site.clone(),
            place.pool.clone(),
            kept.to_owned(),
            place.images.to_string(),
            place.objects.to_string(),
            place.unknown.to_string(),
            place
                .trouble
                .clone()
                .map_or_else(|| "all was looked at".to_owned(), |why| format!("NOT ALL: {why}")),
        ]
    });
    let head = ["Site", "Pool", "Of", "Images", "Objects", "Unknown images", ""];
    let mut text = format!("Audit by the backup service of {}\n{}\n", audit.host, table(head, places));
    for place in audit.places.iter().filter(|place| place.unknown > 0) {
        let more = place.unknown.saturating_sub(place.unknown_images.len() as u64);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let names = place.unknown_images.join(", ");
        text.push_str(&format!("Unknown in {} of {}: {names}{more}\n", place.pool, place.site));
    }
    text.push_str(&format!("The data of {} backups was looked for.\n", audit.backups));
    if audit.skipped > 0 {
        text.push_str(&format!(
            "That of {} could NOT be looked for: {}\n",
            audit.skipped,
            audit.reasons.join("; ")
        ));
    }
    if !audit.removed.is_empty() {
        let rows = audit.removed.iter().map(|one| {
            [one.kind.as_str().to_owned(), one.site.clone(), format!("{}/{}", one.pool, one.subject())]
        });
        text.push_str(&table(["Removed", "Site", "What"], rows));
        text.push('\n');
    }
    if !audit.findings.is_empty() {
        let rows = audit.findings.iter().map(|one| {
            [
                one.kind.as_str().to_owned(),
                one.site.clone(),
                format!("{}/{}", one.pool, one.subject()),
                one.text.clone(),
                removal(one).to_owned(),
            ]
        });
        text.push_str(&table(["Finding", "Site", "What", "Why", "--repair would"], rows));
        text.push('\n');
    }
    if audit.more > 0 {
        text.push_str(&format!("{} more are not told: repair these, and audit again.\n", audit.more));
    }
    let sure = audit.findings.iter().filter(|one| one.goes(false)).count();
    text.push_str(&match (audit.findings.len(), sure) {
        (0, _) if audit.is_clean() => "Nothing is orphaned, and nothing is lost.".to_owned(),
        (0, _) => "Nothing wrong was found where it could be looked.".to_owned(),
        (n, 0) => format!("{n} findings; none that --repair removes."),
        (n, sure) => format!("{n} findings; --repair removes {sure} of them."),
    });
    text
}

fn removal(finding: &Finding) -> &'static str {
    match (finding.goes(false), finding.goes(true)) {
        (true, _) => "remove it",
        (false, true) => "remove it with --purged",
        (false, false) => "leave it",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::audit::Looked;
    use serde_json::json;

    fn document() -> Value {
        let finding = |kind: &str, removal: &str, what: Value| {
            let mut one = json!({"kind": kind, "site": "west", "pool": "backups", "image": null, "snap": null,
                "object": null, "backups": ["b1"], "removal": removal, "text": "why"});
            one.as_object_mut().unwrap().extend(what.as_object().unwrap().clone());
            one
        };
        json!({"host": "h", "backups": 3, "skipped": 0, "reasons": [], "more": 0, "removed": [],
            "places": [{"site": "west", "pool": "backups", "backups": true, "volumes": false, "images": 4,
                "objects": 6, "unknown": 1, "unknown_images": ["golden"], "trouble": null}],
            "findings": [finding("orphan-image", "sure", json!({"image": "i"})),
                finding("orphan-snapshot", "purged", json!({"image": "j", "snap": "s"})),
                finding("orphan-object", "never", json!({"object": "o"})),
                finding("lost-image", "never", json!({}))]})
    }

    #[test]
    fn a_page_tells_what_is_wrong_and_what_would_go() {
        let mut audit = read(document()).unwrap();
        let said = told(&audit).unwrap();
        assert_eq!(said.exit, Exit::Failed);
        for expected in [
            "4 findings; --repair removes 1",
            "remove it with --purged",
            "backups/j@s",
            "Unknown in backups of west: golden",
            "data of 3 backups",
            "lost-image",
        ] {
            assert!(said.text.contains(expected), "{expected} in {}", said.text);
        }
        assert_eq!(said.json["findings"][1]["removal"], "purged");
        audit.findings.clear();
        assert_eq!(told(&audit).unwrap().exit, Exit::Done);
        // What was not looked at is not well.
        let trouble = Some("it does not answer".to_owned());
        audit.places.push(Looked { site: "east".into(), trouble, ..Looked::default() });
        let said = told(&audit).unwrap();
        assert!(said.exit == Exit::Failed && said.text.contains("NOT ALL"), "{}", said.text);
        audit.places.pop();
        audit.skipped = 1;
        assert_eq!(told(&audit).unwrap().exit, Exit::Failed);
        assert_eq!(read(json!({"host": 3})).unwrap_err().code(), Code::BadArguments);
    }
}
