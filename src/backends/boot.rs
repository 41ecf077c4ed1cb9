//! Which backends a service starts with: those of its own files unless somebody has stopped them, and those of
//! `backends.d` that somebody has enabled.
//!
//! One that an order was making or removing when the service died is left to that order, which is run again.

use tracing::{error, info, warn};

use super::Backends;
use crate::config::{BackendConfig, Config, Fragment, Home};
use crate::db::backend::{self as rows, BackendRow, State, Wanted};
use crate::db::label;
use crate::error::{Error, Result};

/// Reads what is wanted, writes down what is new, and answers what is to be started.
///
/// # Errors
/// `Database`; `Config` when the files cannot be read any more.
pub async fn plan(b: &Backends, config: &Config) -> Result<Vec<BackendConfig>> {
    let host = b.host.as_str();
    let known = b.db.read("backends", async |conn| rows::list(conn, Some(host)).await).await?;
    let fragments = b.sources.fragments().await?;
    let (mut start, mut write) = (Vec::new(), Vec::new());
    for backend in &config.backends {
        let row = known.iter().find(|row| row.name == backend.section);
        if row.is_some_and(BackendRow::is_in_hand) {
            info!(backend = backend.host, "left to the order that has it in hand");
            continue;
        }
        let fresh = b.described(backend, checksum(&fragments, backend))?;
        let wanted = match row {
            None if backend.home == Home::Main => Wanted::On,
            None => Wanted::New,
            Some(row) if row.wants(Wanted::Off) => Wanted::Off,
            // A file that has become a section is its operator's to enable, and has been by being named.
            Some(row) if row.wants(Wanted::New) && backend.home != Home::Main => Wanted::New,
            Some(_) => Wanted::On,
        };
        let state = match wanted {
            Wanted::On => State::Running,
            Wanted::Off => State::Stopped,
            Wanted::New => State::New,
        };
        if wanted == Wanted::On {
            warn_strangers(b, backend).await?;
            start.push(backend.clone());
        } else {
            info!(backend = backend.host, wanted = wanted.as_str(), "a backend is not started");
        }
        write.push(BackendRow {
            wanted: wanted.as_str().to_owned(),
            state: state.as_str().to_owned(),
            ..fresh
        });
    }
    let labels: Vec<String> = config.backends.iter().filter_map(|backend| backend.label.clone()).collect();
    let missing: Vec<&BackendRow> = known
        .iter()
        .filter(|row| !row.is_in_hand() && !config.backends.iter().any(|c| c.section == row.name))
        .collect();
    for row in missing.iter().filter(|row| row.has_file()) {
        error!(
            backend = row.service,
            path = row.path,
            "the file of a backend is gone or wrong: it is not started"
        );
    }
    b.db.write("backends at start", async |conn| {
        label::found(conn, &labels).await?;
        for row in &write {
            rows::put(conn, row).await?;
        }
        for row in &missing {
            if row.has_file() && !row.is(State::New) {
                let state = if row.wants(Wanted::On) { State::Failed } else { State::Stopped };
                let problem = "its file is gone or wrong (scoria-manage config check)";
                rows::set(conn, host, &row.name, state, None, Some(problem)).await?;
            } else {
                // A section that is not named any more.
                rows::delete(conn, host, &row.name).await?;
            }
        }
        Ok(())
    })
    .await?;
    Ok(start)
}

fn checksum<'a>(fragments: &'a [Fragment], backend: &BackendConfig) -> &'a str {
    let own = |f: &&Fragment| backend.home == Home::File(f.path.clone());
    fragments.iter().find(own).map_or("", |fragment| &fragment.checksum)
}

/// Members of a Cinder cluster that serve different things are told of, not kept from starting.
async fn warn_strangers(b: &Backends, backend: &BackendConfig) -> Result<()> {
    for (host, options) in b.strangers(backend).await? {
        warn!(
            backend = backend.host,
            other.host = host,
            options = options.join(","),
            "another member of the Cinder cluster serves this backend with other options"
        );
    }
    Ok(())
}

/// Writes down that a backend could not be started.
///
/// # Errors
/// `Database`.
pub async fn failed(b: &Backends, name: &str, error: &Error) -> Result<()> {
    b.note(name, State::Failed, None, Some(&error.operator())).await
}
