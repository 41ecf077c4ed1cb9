//! What came of an order for a site, in words.

use serde_json::{Value, json};

use super::super::Report;
use super::super::output::table;
use crate::error::Result;
use crate::site;

/// The answer of an operation.
pub(super) fn report(operation: i64, document: &Value) -> Result<Report> {
    if document.get("schedules_of").is_some() {
        return super::super::schedule::report(operation, document);
    }
    if document.get("reverted").is_some() {
        return super::super::rbd::reverted(operation, document);
    }
    if document.get("switched").is_some() {
        return super::super::rbd::switched(operation, document);
    }
    if document.get("moved").is_some() {
        return super::super::rbd::moved(operation, document);
    }
    if document.get("independent").is_some() {
        return super::independent::report(operation, document);
    }
    if document.get("which").is_some() {
        return super::super::rbd::which(operation, document);
    }
    if document.get("halves_of").is_some() {
        return super::super::rbd::half(operation, document);
    }
    if document.get("replicated").is_some() {
        return super::super::replicate::report(operation, document);
    }
    // Of an order for a daemon.
    if document.get("action").is_some() {
        return super::daemon::report(operation, document);
    }
    let text = |key: &str| document.get(key).and_then(Value::as_str).unwrap_or_default();
    let looked = document.get("report").cloned().and_then(|r| serde_json::from_value::<site::Report>(r).ok());
    let would = if document.get("dry_run") == Some(&Value::Bool(true)) { "would be " } else { "" };
    let mut said = format!("Site {}: {would}{}.\n", text("site"), text("what"));
    if let Some(looked) = &looked {
        said.push_str(&seen(looked));
    }
    for file in document.get("files_removed").and_then(Value::as_array).into_iter().flatten() {
        let of = |key: &str| file.get(key).and_then(Value::as_str).unwrap_or("-");
        said.push_str(&format!("{would}removed on {}: {}, {}\n", of("host"), of("conf"), of("keyring")));
    }
    Report::new(said, &json!({"operation": operation, "result": document}))
}

/// What was seen of a cluster.
pub(super) fn seen(report: &site::Report) -> String {
    let mut text = format!("fsid {}, Ceph {}, {}\n", report.fsid, report.version, report.health);
    for (code, sentence) in &report.checks {
        text.push_str(&format!("  {code}: {sentence}\n"));
    }
    let word = |granted: Option<bool>, word: &'static str| match granted {
        Some(true) => word,
        Some(false) => "-",
        None => "?",
    };
    let rows = report.pools.iter().map(|pool| {
        [
            pool.name.clone(),
            if pool.erasure { "erasure" } else { "replicated" }.to_owned(),
            format!("{}/{}", pool.size, pool.min_size),
            pool.applications.join(", "),
            format!("{}{}", word(pool.read, "r"), word(pool.write, "w")),
        ]
    });
    text.push_str(&table(["Pool", "Type", "Size/min", "For", "client"], rows));
    text.push('\n');
    for (daemon, caps) in report.caps.iter().flatten() {
        text.push_str(&format!("client.{} caps {daemon} = \"{caps}\"\n", report.client));
    }
    if report.findings.is_empty() {
        text.push_str(&format!("client.{} may do what is needed.\n", report.client));
    }
    for finding in &report.findings {
        let gap = match finding.gap {
            site::Gap::TooFew => "too few",
            site::Gap::TooMany => "too many",
        };
        text.push_str(&format!("client.{} has {gap} rights: {}\n", report.client, finding.text));
    }
    if let Some(line) = &report.advice {
        text.push_str(&format!("Just enough:\n    {line}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_come_with_the_line_that_mends_them() {
        let pool = json!({"name": "volumes", "erasure": false, "size": 3, "min_size": 2, "applications": ["rbd"],
            "read": true, "write": false});
        let looked = json!({"fsid": "f-1", "version": "16.2.15", "health": "HEALTH_WARN",
            "checks": [["SLOW_OPS", "slow operations"]], "monitors": [], "pools": [pool], "client": "cinder",
            "findings": [{"gap": "too-few", "text": "it cannot write to pool volumes"}],
            "advice": "ceph auth caps client.cinder"});
        let document = json!({"site": "paris", "what": "new", "dry_run": true, "report": looked});
        let report = report(7, &document).unwrap();
        for said in [
            "Site paris: would be new.",
            "SLOW_OPS: slow",
            "| r- ",
            "too few rights: it cannot write",
            "    ceph auth caps",
        ] {
            assert!(report.text.contains(said), "{said}: {}", report.text);
        }
        assert_eq!(report.json["operation"], 7);
    }
}
