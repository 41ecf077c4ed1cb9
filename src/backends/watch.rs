//! Files that somebody edits: noticed, checked, and applied or reported.
//!
//! Every two seconds the files of `backends.d` are looked at by size and time of change; what has changed is read. A file
//! that is new is written down and waits to be enabled. One that has changed is applied to its backend by the same code as
//! an order; if it is wrong, the old options stay in force, and the row says what is wrong. One that is gone changes
//! nothing, and the row says so. The service's own files are only looked at when a signal asks for it: an operator may
//! be in the middle of an edit that `replication adopt` is to follow.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use tracing::{error, info, warn};

use super::{Backends, blocking};
use crate::config::{BackendConfig, Fragment, Home};
use crate::db::backend::{self as rows, BackendRow, State, Wanted};
use crate::error::{Code, Result};

/// By what a change of a file is noticed: device, inode, size, time in nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

/// Remembers how the files were.
#[derive(Debug, Default)]
pub struct Watcher {
    seen: Mutex<Option<BTreeMap<PathBuf, Stamp>>>,
    /// Whatever was said of a file that has no row, so that it is said once.
    said: Mutex<BTreeMap<PathBuf, String>>,
}

fn stamps(dir: &std::path::Path) -> BTreeMap<PathBuf, Stamp> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.ends_with(".conf") && !name.starts_with('.')
        })
        .filter_map(|entry| {
            let meta = std::fs::metadata(entry.path()).ok()?;
            let stamp = (meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec());
            Some((entry.path(), stamp))
        })
        .collect()
}

impl Watcher {
    /// Looks at the files if they have changed since the last look.
    ///
    /// # Errors
    /// `Database`, or `Config` when the service's own files cannot be read.
    pub async fn look(&self, b: &Backends) -> Result<()> {
        let Some(dir) = b.sources.backends_dir() else { return Ok(()) };
        let now = blocking(move || stamps(&dir)).await?;
        let changed = {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.as_ref() != Some(&now)
        };
        if !changed {
            return Ok(());
        }
        self.read(b).await?;
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        Ok(())
    }

    /// Reads all files of `backends.d` and does what follows from them.
    ///
    /// # Errors
    /// As [`Watcher::look`].
    pub async fn read(&self, b: &Backends) -> Result<()> {
        let fragments = b.sources.fragments().await?;
        for fragment in &fragments {
            self.follow(b, fragment).await?;
        }
        let host = b.host.as_str();
        let all = b.db.read("backends", async |conn| rows::list(conn, Some(host)).await).await?;
        let there = |row: &BackendRow| fragments.iter().any(|f| f.path.display().to_string() == row.path);
        for row in all.iter().filter(|row| row.has_file() && !there(row)) {
            vanished(b, &row.name).await?;
        }
        Ok(())
    }

    /// Reads the service's own files, too, and applies what has changed in them to backends that run.
    ///
    /// # Errors
    /// As [`Watcher::look`].
    pub async fn read_all(&self, b: &Backends) -> Result<()> {
        self.read(b).await?;
        let config = b.sources.config().await?;
        let main: Vec<BackendConfig> =
            config.backends.into_iter().filter(|backend| backend.home == Home::Main).collect();
        for new in &main {
            let _one = b.locks.local(&new.section).await;
            match b.row(&new.section).await? {
                None => register(b, new, "").await?,
                Some(row) => apply(b, &row, new, "").await?,
            }
        }
        let host = b.host.as_str();
        let all = b.db.read("backends", async |conn| rows::list(conn, Some(host)).await).await?;
        for row in all.iter().filter(|r| !r.has_file() && !main.iter().any(|c| c.section == r.name)) {
            vanished(b, &row.name).await?;
        }
        Ok(())
    }

    async fn follow(&self, b: &Backends, fragment: &Fragment) -> Result<()> {
        let _one = b.locks.local(&fragment.name).await;
        // Read again: whoever had the lock may have written it.
        let fragment = match b.fragment(fragment.path.clone()).await {
            Ok(fragment) => fragment,
            Err(error) if error.code() == Code::InvalidInput => return Ok(()),
            Err(error) => return Err(error),
        };
        let row = b.row(&fragment.name).await?;
        if row.as_ref().is_some_and(BackendRow::is_in_hand) {
            return Ok(());
        }
        match (row, fragment.accepted(false)) {
            (Some(row), Ok(_)) if !row.has_file() => Ok(()),
            (Some(row), Ok(config)) => apply(b, &row, config, &fragment.checksum).await,
            (None, Ok(config)) => register(b, config, &fragment.checksum).await,
            (Some(row), Err(error)) => complain(b, &row, &error.operator()).await,
            (None, Err(error)) => {
                let text = error.operator();
                let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
                if said.get(&fragment.path) != Some(&text) {
                    warn!(path = %fragment.path.display(), problem = text, "a file in backends.d is no backend");
                    said.insert(fragment.path.clone(), text);
                }
                Ok(())
            }
        }
    }
}

/// A backend that nobody has enabled yet.
async fn register(b: &Backends, config: &BackendConfig, checksum: &str) -> Result<()> {
    let row = BackendRow {
        wanted: Wanted::New.as_str().to_owned(),
        state: State::New.as_str().to_owned(),
        ..b.described(config, checksum)?
    };
    b.db.write("a new backend", async |conn| rows::put(conn, &row).await).await?;
    info!(
        backend = config.host,
        path = row.path,
        "a new backend was found; scoria-manage backend enable starts it"
    );
    Ok(())
}

/// What is wrong with a backend's file; said once.
async fn complain(b: &Backends, row: &BackendRow, problem: &str) -> Result<()> {
    if row.problem.as_deref() == Some(problem) {
        return Ok(());
    }
    error!(backend = row.service, problem, "the options of a backend are wrong: the old ones stay in force");
    let (host, name) = (row.host.as_str(), row.name.as_str());
    b.db.write("a problem", async |conn| rows::set_problem(conn, host, name, Some(problem)).await).await
}

/// Other options for a backend that is known.
async fn apply(b: &Backends, row: &BackendRow, new: &BackendConfig, checksum: &str) -> Result<()> {
    if row.is_in_hand() {
        return Ok(());
    }
    let Some(old) = b.runner.running(&row.name) else {
        if row.checksum == checksum && row.service == new.host && row.problem.is_none() {
            return Ok(());
        }
        // What does not run takes what its file says when it starts; a refusal to start stays worth reading.
        let problem = if row.is(State::Failed) { row.problem.clone() } else { None };
        let service = if row.is(State::New) { new.host.clone() } else { row.service.clone() };
        let row = BackendRow {
            wanted: row.wanted.clone(),
            state: row.state.clone(),
            problem,
            service,
            ..b.described(new, checksum)?
        };
        return b.db.write("options of a backend", async |conn| rows::put(conn, &row).await).await;
    };
    match b.change(row, &old, new).await {
        Ok(_) if row.checksum == checksum && row.problem.is_none() => Ok(()),
        Ok(_) => {
            let row = BackendRow {
                wanted: row.wanted.clone(),
                state: State::Running.as_str().to_owned(),
                ..b.described(new, checksum)?
            };
            b.db.write("options of a backend", async |conn| rows::put(conn, &row).await).await
        }
        Err(error) if matches!(error.code(), Code::Database | Code::Broker | Code::Cancelled) => Err(error),
        Err(error) => complain(b, row, &error.operator()).await,
    }
}

/// The file of a backend is gone, or its section: what runs goes on.
async fn vanished(b: &Backends, name: &str) -> Result<()> {
    let _one = b.locks.local(name).await;
    let Some(row) = b.row(name).await? else { return Ok(()) };
    if row.is_in_hand() || (row.has_file() && std::path::Path::new(&row.path).exists()) {
        return Ok(());
    }
    if row.is(State::New) {
        info!(backend = row.service, "a backend that nobody has enabled is gone with its file");
        return b.db.write("a backend", async |conn| rows::delete(conn, &row.host, &row.name).await).await;
    }
    let what = if row.has_file() {
        "its file is gone"
    } else {
        "its section, or its name in enabled_backends, is gone"
    };
    let problem = match b.runner.running(name) {
        Some(_) => format!("{what}: it runs on until it is stopped, and cannot start again"),
        None => format!("{what}: it cannot start"),
    };
    complain(b, &row, &problem).await
}
