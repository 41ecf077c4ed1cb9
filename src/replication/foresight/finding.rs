//! One thing that an operator should know, with what to do about it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// A failover now would leave something behind, or be refused.
    Blocker,
    /// It would work, and cost something.
    Warning,
    /// Good to know.
    Note,
}

impl Severity {
    /// For tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Blocker => "blocker",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// What was found, for as many volumes as it concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Name of the finding, for scripts; stable.
    pub code: String,
    /// Site that it is about.
    pub site: Option<String>,
    /// In words.
    pub text: String,
    /// What to do.
    pub advice: String,
    /// Volumes that it is about; none when it is about the whole.
    pub volumes: Vec<String>,
}

/// All of a finding but its volumes.
type Key = (Severity, String, Option<String>, String, String);

/// Gathers findings: the same about several volumes is one.
#[derive(Debug, Default)]
pub(super) struct Findings {
    found: BTreeMap<Key, Vec<String>>,
}

impl Findings {
    /// Adds one about the whole.
    pub(super) fn add(
        &mut self,
        severity: Severity,
        code: &str,
        site: Option<&str>,
        text: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.entry(severity, code, site, text.into(), advice.into());
    }

    /// Adds one about a volume.
    pub(super) fn about(
        &mut self,
        volume: &str,
        severity: Severity,
        code: &str,
        site: Option<&str>,
        text: impl Into<String>,
        advice: impl Into<String>,
    ) {
        self.entry(severity, code, site, text.into(), advice.into()).push(volume.to_owned());
    }

    fn entry(
        &mut self,
        severity: Severity,
        code: &str,
        site: Option<&str>,
        text: String,
        advice: String,
    ) -> &mut Vec<String> {
        self.found.entry((severity, code.to_owned(), site.map(str::to_owned), text, advice)).or_default()
    }

    /// All of them, the worst first.
    pub(super) fn list(self) -> Vec<Finding> {
        self.found
            .into_iter()
            .map(|((severity, code, site, text, advice), volumes)| Finding {
                severity,
                code,
                site,
                text,
                advice,
                volumes,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_about_two_volumes_is_one_finding_and_the_worst_comes_first() {
        let mut findings = Findings::default();
        findings.add(Severity::Note, "frozen", None, "frozen", "thaw");
        for volume in ["v1", "v2"] {
            findings.about(volume, Severity::Blocker, "left", Some("b"), "stays", "repair");
        }
        let list = findings.list();
        assert_eq!(list.len(), 2);
        assert_eq!((list[0].code.as_str(), list[0].volumes.len()), ("left", 2));
        assert!(list[1].volumes.is_empty());
    }
}
