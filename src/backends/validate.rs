//! Whether options would do, without anything being made, changed or written down.

use serde_json::{Value, json};

use super::files::Files;
use super::orders::Options;
use super::{Backends, blocking, change, text};
use crate::config::{Severity, check_name};
use crate::error::{Code, Error, Result};

impl Backends {
    /// Looks at a backend as it would be: new with these options; or, with `update` or without any option, the one that is
    /// there with these changed. Everything that is wrong is told at once.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is none, or that there is no backend of; `Config`, `Database`.
    pub async fn validate(&self, name: &str, options: &Options, update: bool) -> Result<Value> {
        let row = self.row(name).await?;
        let existing = update || (options.is_empty() && row.is_some());
        if existing && let Some(row) = row.as_ref().filter(|row| !row.has_file()) {
            if !options.is_empty() {
                return Err(Error::new(
                    Code::Invalid,
                    format!(
                        "Backend {name} is in {}: edit it there, and check it with config check",
                        row.path
                    ),
                ));
            }
            let config = self.sources.section(name).await?;
            let mut wrong = Vec::new();
            if let Err(error) = self.probe(&config).await {
                wrong.push(error.operator());
            }
            self.runner.release(&config);
            return Ok(
                json!({"backend": name, "valid": wrong.is_empty(), "problems": wrong, "warnings": []}),
            );
        }
        let (path, content) = match (existing, row) {
            (true, row) => {
                let row = match row {
                    Some(row) => row,
                    None => self.known(name).await?,
                };
                let of = Files::new(&row.path);
                let missing = || Error::new(Code::InvalidInput, format!("{} is gone", row.path));
                let old = blocking(move || of.content()).await??.ok_or_else(missing)?;
                (row.path.clone().into(), text::changed(&old, options)?)
            }
            (false, row) => {
                check_name(name)?;
                if let Some(row) = row {
                    return Err(Error::new(
                        Code::Conflict,
                        format!("There is a backend {name} on host {} already ({})", row.host, row.path),
                    ));
                }
                (self.sources.backend_file(name)?, text::new(name, options)?)
            }
        };
        let fragment = self.sources.fragment(path, content.into_bytes()).await?;
        let told = |least: Severity, below: Severity| {
            let of = fragment.problems.iter().filter(move |p| p.severity >= least && p.severity < below);
            of.map(ToString::to_string).collect::<Vec<_>>()
        };
        let warnings = told(Severity::Warning, Severity::Suspect);
        let mut wrong = told(Severity::Suspect, Severity::Error);
        wrong.extend(
            fragment.problems.iter().filter(|p| p.severity == Severity::Error).map(ToString::to_string),
        );
        let mut effect = None;
        if let Some(config) = &fragment.config {
            for checked in [self.marked(config).await, self.joins(config).await] {
                wrong.extend(checked.err().map(|error| error.operator()));
            }
            if let Err(error) = self.probe(config).await {
                wrong.push(error.operator());
            }
            self.runner.release(config);
            if let Some(running) = self.runner.running(name) {
                let change = change::difference(&running, config);
                let (word, keys) = change.told();
                effect = Some(json!({"effect": word, "options": keys}));
            }
        }
        Ok(json!({
            "backend": name, "valid": wrong.is_empty(), "problems": wrong, "warnings": warnings, "change": effect,
        }))
    }
}
