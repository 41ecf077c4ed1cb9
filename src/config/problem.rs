//! What is wrong with a configuration, and where.
//!
//! All problems are collected before anything is said, so that an operator repairs a file in one
//! pass. A problem names file and line (or the environment variable), section and option; it never
//! holds the value of an option that may be secret.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A line of a file.
    File {
        /// The file.
        path: Arc<Path>,
        /// The line, from 1.
        line: usize,
    },
    /// An environment variable, by name.
    Environment(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// How much a problem matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// An option that Scoria does not read; for the debug log only.
    Ignored,
    /// Something that the operator should know; the configuration is usable as it is.
    Warning,
    /// Most likely a mistake (a misspelt option): a warning at start, an error under
    /// `--check-config`.
    Suspect,
    /// A backend that cannot be served and is left out: an error in the log and under `--check-config`,
    /// but the other backends are served.
    LeftOut,
    /// The configuration cannot be used.
    Error,
}

/// One finding about a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// Where the value came from; `None` when the problem is that there is none.
    pub origin: Option<Origin>,
    /// Section, verbatim.
    pub section: String,
    /// Option, when it is about one.
    pub option: Option<String>,
    /// What is wrong and what would be right.
    pub text: String,
}

/// A finding that does not keep the service from starting.
pub type Warning = Problem;

impl Problem {
    /// Writes the finding to the log at the level of its severity.
    pub fn log(&self) {
        match self.severity {
            Severity::Ignored => tracing::debug!("configuration: {self}"),
            Severity::Warning | Severity::Suspect => tracing::warn!("configuration: {self}"),
            Severity::LeftOut | Severity::Error => tracing::error!("configuration: {self}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        if !self.section.is_empty() {
            write!(f, "[{}] ", self.section)?;
        }
        if let Some(option) = &self.option {
            write!(f, "{option}: ")?;
        }
        f.write_str(&self.text)
    }
}

/// A value as it may be shown: shortened, control characters escaped.
pub(super) fn shown(value: &str) -> String {
    let mut text: String = value.chars().take(60).flat_map(char::escape_debug).collect();
    if value.chars().nth(60).is_some() {
        text.push('…');
    }
    text
}
