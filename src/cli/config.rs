//! `config`: is this what the operator meant? Needs neither database nor broker.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::{Exit, Report};
use crate::config::{Config, Severity};
use crate::error::Result;

/// Actions of `config`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)]
pub enum Action {
    /// Report errors and likely mistakes; fails (1) when there are any
    Check {
        /// Also options that Scoria does not read
        #[arg(long)]
        all: bool,
    },
}

pub(super) fn run(action: &Action, files: &[PathBuf], dirs: &[PathBuf]) -> Result<Report> {
    let Action::Check { all } = action;
    let found = Config::check(files, dirs, std::env::vars());
    let least = if *all { Severity::Ignored } else { Severity::Warning };
    let mut text = String::new();
    let mut problems = Vec::new();
    for problem in found.at_least(least) {
        let severity = match problem.severity {
            Severity::Ignored => "ignored",
            Severity::Warning => "warning",
            Severity::Suspect => "mistake?",
            Severity::LeftOut | Severity::Error => "error",
        };
        text.push_str(&format!("{severity:<8} {problem}\n"));
        problems.push(json!({
            "severity": severity.trim_end_matches('?'),
            "origin": problem.origin.as_ref().map(ToString::to_string),
            "section": problem.section,
            "option": problem.option,
            "text": problem.text,
        }));
    }
    let clean = found.is_clean();
    let backends: Vec<&str> =
        found.config.iter().flat_map(|c| &c.backends).map(|b| b.host.as_str()).collect();
    text.push_str(&match (clean, backends.is_empty()) {
        (false, _) => "The configuration needs attention.".to_owned(),
        (true, true) => "The configuration is good, but enables no backend.".to_owned(),
        (true, false) => format!("The configuration is good; backends: {}", backends.join(", ")),
    });
    let report = Report::new(text, &json!({"clean": clean, "problems": problems, "backends": backends}))?;
    Ok(report.ending(if clean { Exit::Done } else { Exit::Failed }))
}
